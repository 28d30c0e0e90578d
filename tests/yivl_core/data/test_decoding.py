import io
import itertools
import json
import random
import resource
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from yivl_core.data import decoding
from yivl_core.data.decoding import (
    FORMATS,
    HEAD_BYTES,
    DecodedImage,
    ImageError,
    InspectedImage,
    decode_image,
    head_error,
    inspect_image,
)

MAX_PIXELS = 64_000_000


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def noise(size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def refused(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, max_pixels)
    return caught.value


def awkward_files(shared_data: Path, expect: str) -> list[dict[str, Any]]:
    manifest = json.loads((shared_data / "data/awkward/manifest.json").read_text(encoding="utf-8"))
    return [entry for entry in manifest["files"] if entry["expect"] == expect]


def test_every_awkward_file_to_accept_has_its_size_and_pixels(shared_data: Path) -> None:
    entries = awkward_files(shared_data, "accept")
    num_pixels = 0
    for entry in entries:
        decoded = decode_image((shared_data / "data/awkward" / entry["file"]).read_bytes(), MAX_PIXELS)
        assert decoded.image.mode == "RGB"
        assert list(decoded.image.size) == entry["size"], entry["file"]
        for pixel in entry.get("pixels", []):
            found = decoded.image.getpixel(tuple(pixel["xy"]))
            assert isinstance(found, tuple)
            assert max(abs(a - b) for a, b in zip(found, pixel["rgb"], strict=True)) <= pixel["tol"], (entry["file"], found)
            num_pixels += 1
    assert len(entries) == 20
    assert num_pixels > 50


def test_every_awkward_file_to_reject_has_its_kind(shared_data: Path) -> None:
    entries = awkward_files(shared_data, "reject")
    found = {e["file"]: refused((shared_data / "data/awkward" / e["file"]).read_bytes()).kind for e in entries}
    assert found == {entry["file"]: entry["kind"] for entry in entries}
    assert len(found) == 7


def test_too_many_pixels_are_refused_from_the_header_with_little_memory(shared_data: Path) -> None:
    files = shared_data / "data/awkward/files"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    small = refused((files / "bomb_10000x10000.png").read_bytes())
    large = refused((files / "bomb_30000x30000.png").read_bytes(), max_pixels=178_956_970)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 50
    assert str(small) == "10000 x 10000 pixels are more than 64,000,000; scale the image down, or raise max_pixels"
    assert str(large) == "the image has more than 178,956,970 pixels; scale the image down"


def test_the_pixel_limit_is_inclusive() -> None:
    data = saved(noise((40, 30)), "PNG")
    assert decode_image(data, 1200).image.size == (40, 30)
    assert refused(data, 1199).kind == "too_many_pixels"


@pytest.mark.parametrize("image_format", FORMATS)
def test_each_named_format_is_read_and_a_cut_file_never_passes_for_whole(image_format: str) -> None:
    data = saved(noise(), image_format)
    assert decode_image(data, MAX_PIXELS).format == image_format
    kinds = {refused(data[:num_bytes]).kind for num_bytes in range(64, len(data) * 9 // 10, len(data) // 40)}
    assert "truncated" in kinds
    assert kinds <= {"truncated", "corrupt"}  # where it is cut within its head, some formats cannot tell the two apart
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM"])
def test_damaged_files_are_read_or_refused_but_never_crash(image_format: str) -> None:
    data = saved(noise(), image_format)
    generator = random.Random(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[generator.randrange(generator.choice([60, len(data)]))] = generator.randrange(256)
        try:
            decode_image(bytes(damaged), MAX_PIXELS)
            outcomes.add("read")
        except ImageError as error:
            outcomes.add(error.kind)
    assert outcomes <= {"read", "corrupt", "truncated", "not_an_image", "too_many_pixels", "unsupported_format"}
    assert "corrupt" in outcomes


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"", "empty", "the file has no content; replace the file"),
        (b"hello", "not_an_image", "the file is not an image; give a PNG, JPEG"),
        (b'<?xml version="1.0"?>\n<SVG xmlns=""/>', "unsupported_format", "the file is SVG, which is not read; save it as PNG"),
        (b"\x00\x00\x00\x18ftypheic", "unsupported_format", "the file is HEIC, AVIF or video"),
        (b"%PDF-1.7", "unsupported_format", "the file is PDF"),
        (b"\x00\x00\x01\x00\x01\x00", "unsupported_format", "the file is an icon"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "corrupt", "damaged"),
        (b"\xff\xd8\xff" + b"x" * 40, "corrupt", "the head of the image file is damaged; replace the file"),
    ],
)
def test_what_is_no_readable_image_says_what_it_is(data: bytes, kind: str, message: str) -> None:
    error = refused(data)
    assert error.kind == kind
    assert message in str(error)


def test_formats_outside_the_list_are_not_decoded_even_though_pillow_could() -> None:
    for image_format in ("ICO", "TGA", "PCX", "SGI"):
        data = saved(noise((32, 32)), image_format)
        assert Image.open(io.BytesIO(data)).format == image_format
        assert refused(data).kind in ("unsupported_format", "not_an_image")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = noise((16, 8)).resize((64, 32), Image.Resampling.NEAREST)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode_image(saved(stored, "PNG", exif=exif), MAX_PIXELS).image.tobytes() == upright.tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_broken_exif_does_not_cost_the_image(exif: bytes) -> None:
    assert decode_image(saved(noise(), "JPEG", exif=exif), MAX_PIXELS).image.size == (40, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_what_is_fully_transparent_is_white(mode: str) -> None:
    options = {} if mode in ("LA", "RGBA") else {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    decoded = decode_image(saved(Image.new(mode, (4, 4)), "PNG", **options), MAX_PIXELS)
    assert decoded.image.getcolors() == [(16, (255, 255, 255))]
    assert decoded.mode == mode


def test_half_transparent_pixels_are_mixed_with_white_as_pillow_composites_them() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    found = decode_image(saved(image, "PNG"), MAX_PIXELS).image
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1


def test_sixteen_bits_are_scaled_and_rounded() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    png = decode_image(saved(Image.fromarray(values), "PNG"), MAX_PIXELS)
    pgm = decode_image(b"P5\n8 1\n65535\n" + values.astype(">u2").tobytes(), MAX_PIXELS)
    for decoded in (png, pgm):
        assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]
    transparent = decode_image(saved(Image.fromarray(values), "PNG", transparency=257), MAX_PIXELS)
    assert np.asarray(transparent.image)[0, :, 0].tolist() == [0, 0, 1, 255, 128, 254, 255, 255]


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_an_agreed_range_are_refused_and_not_guessed(mode: str) -> None:
    error = refused(saved(Image.new(mode, (4, 4)), "TIFF"))
    assert (error.kind, error.message) == ("unsupported_format", f"pixels of mode {mode} have no agreed range")


@pytest.mark.parametrize(
    ("image_format", "is_animated"), [("GIF", True), ("WEBP", True), ("TIFF", True), ("PNG", True), ("MPO", False)]
)
def test_of_several_frames_the_first_is_used(image_format: str, is_animated: bool) -> None:
    data = saved(Image.new("RGB", (8, 8), "red"), image_format, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    decoded = decode_image(data, MAX_PIXELS)
    assert decoded.is_animated is is_animated
    red, _, blue = np.asarray(decoded.image)[4, 4].tolist()
    assert red > 200
    assert blue < 60


def test_a_webp_header_that_claims_a_huge_canvas_takes_no_memory() -> None:
    data = bytearray(saved(Image.new("RGB", (8, 8)), "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]))
    chunk = data.index(b"VP8X") + 12
    data[chunk : chunk + 6] = struct.pack("<I", 16382)[:3] * 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(bytes(data)).kind == "too_many_pixels"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 50


def test_pillows_warnings_are_kept_back_also_with_threads_and_the_filters_are_as_before(shared_data: Path) -> None:
    bomb = (shared_data / "data/awkward/files/bomb_10000x10000.png").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(bomb))
        before = list(warnings.filters)
        kinds: list[str] = []
        threads = [threading.Thread(target=lambda: kinds.append(refused(bomb).kind)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kinds == ["too_many_pixels"] * 8
        assert list(warnings.filters) == before


def test_an_open_file_is_read_like_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(noise(), "PNG"))
    with path.open("rb") as file:
        decoded: DecodedImage = decode_image(file, MAX_PIXELS)
    assert decoded.image.tobytes() == noise().tobytes()


def judged(decode: Callable[[], DecodedImage | InspectedImage]) -> tuple[Any, ...]:
    """What there is to tell of an image, or the kind of the error."""
    try:
        found = decode()
    except ImageError as error:
        return (error.kind, error.message)
    size = found.image.size if isinstance(found, DecodedImage) else (found.width, found.height)
    return (size, found.mode, found.format, found.is_animated)


def jpegs() -> dict[str, bytes]:
    """Of all ways in which JPEG files are commonly coded."""
    image = noise((203, 157))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "baseline": saved(image, "JPEG", quality=85),
        "progressive": saved(image, "JPEG", quality=85, progressive=True),
        "restarts": saved(image, "JPEG", quality=70, restart_marker_blocks=3),
        "grey": saved(image.convert("L"), "JPEG"),
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "unsampled": saved(image, "JPEG", subsampling=0, optimize=True),
        "turned": saved(image, "JPEG", exif=exif),
        "smallest": saved(noise((1, 1)), "JPEG"),
    }


@pytest.mark.parametrize("name", jpegs())
def test_a_jpeg_that_is_inspected_is_judged_as_one_that_is_decoded(name: str) -> None:
    """Its data is read as a whole, at an eighth of its size, too."""
    data, rng = jpegs()[name], random.Random(name)
    variants = [data, *(data[: rng.randrange(len(data))] for _ in range(150))]
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 3, 30])):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        variants.append(bytes(damaged))
    verdicts = set()
    for variant in variants:
        decoded = judged(lambda: decode_image(variant, 1_000_000))  # noqa: B023
        assert judged(lambda: inspect_image(variant, 1_000_000)) == decoded  # noqa: B023
        verdicts.add(decoded[0])
    assert len(verdicts) >= 3  # whole ones, too, and errors of several kinds


@pytest.mark.parametrize(("luma", "chroma"), [*itertools.permutations((0x11, 0x12, 0x21, 0x22, 0x13, 0x14, 0x23), 2)])
@pytest.mark.parametrize("name", ["baseline", "progressive"])
def test_a_jpeg_of_any_sampling_is_judged_as_one_that_is_decoded(name: str, luma: int, chroma: int) -> None:
    data = bytearray(jpegs()[name])
    start = data.index(b"\xff\xc2" if name == "progressive" else b"\xff\xc0") + 10
    for channel, factors in enumerate((luma, chroma, chroma)):
        data[start + 3 * channel + 1] = factors
    assert judged(lambda: inspect_image(bytes(data), 1_000_000)) == judged(lambda: decode_image(bytes(data), 1_000_000))


@pytest.mark.parametrize("image_format", [name for name in FORMATS if name != "JPEG"])
def test_other_files_that_are_inspected_are_judged_as_those_that_are_decoded(image_format: str) -> None:
    data, rng = saved(noise((61, 47)), image_format), random.Random(image_format)
    variants = [data, *(data[: rng.randrange(len(data))] for _ in range(100))]
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] = rng.randrange(256)
        variants.append(bytes(damaged))
    for variant in variants:
        decoded = judged(lambda: decode_image(variant, 1_000_000))  # noqa: B023
        assert judged(lambda: inspect_image(variant, 1_000_000)) == decoded  # noqa: B023


def test_a_palette_that_is_missing_is_damage_and_no_grey() -> None:
    file = io.BytesIO()
    Image.new("P", (20, 13), 3).save(file, "PNG")
    data = file.getvalue().replace(b"PLTE", b"abCd")  # a chunk that nobody knows and anybody may leave out
    start = data.index(b"abCd")
    size = int.from_bytes(data[start - 4 : start])
    checksum = zlib.crc32(data[start : start + 4 + size]).to_bytes(4)
    data = data[: start + 4 + size] + checksum + data[start + 8 + size :]
    for look in (decode_image, inspect_image):
        with pytest.raises(ImageError, match="no palette") as refusal:
            look(data, 1000)
        assert refusal.value.kind == "corrupt"


def test_every_awkward_file_is_inspected_as_it_is_decoded(shared_data: Path) -> None:
    paths = sorted((shared_data / "data/awkward/files").iterdir())
    for path in paths:
        data = path.read_bytes()
        decoded = judged(lambda: decode_image(data, MAX_PIXELS))  # noqa: B023
        assert judged(lambda: inspect_image(data, MAX_PIXELS)) == decoded, path.name  # noqa: B023
    assert len(paths) >= 29


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_header_tells_the_same_of_a_whole_file_and_nothing_is_decoded_for_it(
    image_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(noise((61, 47)), image_format)
    whole = inspect_image(data, MAX_PIXELS)

    def fail(_: object) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert inspect_image(data, MAX_PIXELS, "header") == whole


def test_a_header_does_not_show_what_is_cut_off() -> None:
    data = saved(noise((61, 47)), "JPEG")[:-500]
    assert inspect_image(data, MAX_PIXELS, "header").width == 61
    with pytest.raises(ImageError, match="the end of the image file is missing"):
        inspect_image(data, MAX_PIXELS)


def test_threads_decode_no_more_pixels_at_a_time_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_room", decoding._Room(3000))
    lock, num_pixels, most = threading.Lock(), 0, 0
    load = ImageFile.ImageFile.load

    def counted(image: ImageFile.ImageFile) -> Any:
        nonlocal num_pixels, most
        with lock:
            num_pixels += image.width * image.height
            most = max(most, num_pixels)
        threading.Event().wait(0.01)
        pixels = load(image)
        with lock:
            num_pixels -= image.width * image.height
        return pixels

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    files = [saved(noise(size), "BMP") for size in ((40, 30), (30, 30), (80, 60), (20, 20)) * 4]
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(lambda data: decode_image(data, MAX_PIXELS), files))
    assert [image.image.size for image in decoded] == [(40, 30), (30, 30), (80, 60), (20, 20)] * 4
    assert 1200 < most <= 4800  # which is one image that is larger than all room


def test_memory_that_is_not_there_is_no_damage_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    error = refused(saved(noise(), "PNG"))
    assert (error.kind, error.message) == ("out_of_memory", "decoding the image takes more memory than there is")


@pytest.mark.parametrize("name", FORMATS)
def test_the_head_of_every_format_that_is_read_is_accepted(name):
    assert head_error(saved(Image.new("RGB", (9, 9)), name)[:HEAD_BYTES]) is None


@pytest.mark.parametrize(
    ("head", "kind", "name"),
    [
        (b"", "empty", "no content"),
        (b"hello", "not_an_image", "not an image"),
        (b"\xef\xbb\xbf\r\n<!doctype HTML><svg>", "not_an_image", "an HTML page"),
        (b"<?xml version='1.0'?><!-- --><SVG>", "unsupported_format", "SVG"),
        (b"%PDF-1.4", "unsupported_format", "PDF"),
        (b"PK\x03\x04....", "not_an_image", "a ZIP archive or an office document"),
        (b"\x1f\x8b\x08", "not_an_image", "compressed with gzip"),
        (b"7z\xbc\xaf\x27\x1c", "not_an_image", "a 7z archive"),
        (b"a/b".ljust(257, b"\0") + b"ustar\x00", "not_an_image", "a tar archive"),
        (b"RIFF....WAVE", "not_an_image", "not an image"),
    ],
)
def test_a_head_tells_what_a_file_is_that_is_no_image(head, kind, name):
    found = head_error(head)
    assert found is not None
    assert found.kind == kind
    assert name in found.message
    with pytest.raises(ImageError) as refused:
        decode_image(head, 1000)
    assert (refused.value.kind, refused.value.message) == (found.kind, found.message)
