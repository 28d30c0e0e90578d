"""Bytes as an image file -> pixels, or why there are none, with all that has to hold of either."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

from finding_invariants import check_findings
from mutations import mutate_bytes, with_png_checksums
from PIL import Image

from yivl_core.data.checks.image_checks import image_finding
from yivl_core.data.decoding import HEAD_BYTES, DecodedImage, ImageError, InspectedImage, decode_image, head_error, inspect_image

MAX_PIXELS = 1 << 16
MAX_SEED_BYTES = 30_000
KINDS = frozenset(
    {"truncated", "corrupt", "not_an_image", "empty", "unsupported_format", "too_many_pixels", "out_of_memory"}
)  # that `decode_image` promises
_SIZE_PX = (20, 13)


class ImageTarget:
    """Image files.

    Args:
        samples: folder of files to begin with, where there is one.
    """

    tokens = (
        b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT", b"IEND", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"iCCP", b"zTXt",
        b"\xff\xd8\xff", b"\xff\xc0", b"\xff\xc2", b"\xff\xe1", b"\xff\xda", b"\xff\xd9", b"Exif\x00\x00",
        b"GIF89a", b"\x21\xf9\x04", b"RIFF", b"WEBPVP8 ", b"VP8X", b"VP8L", b"ANIM", b"BM", b"II*\x00", b"MM\x00*",
        b"P5\n", b"P6\n", b"P3\n", b"Pf\n", b"%PDF", b"<svg", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff",
    )  # fmt: skip

    def __init__(self, samples: Path | None) -> None:
        self._samples = samples

    def check(self, data: bytes) -> None:
        """Everything that has to hold of a file."""
        decoded = _decoded(data)
        full, header = _inspected(data, "full"), _inspected(data, "header")
        for outcome in (decoded, full, header):
            if isinstance(outcome, ImageError):
                assert outcome.kind in KINDS, outcome.kind
                check_findings([image_finding(outcome)])
        if isinstance(decoded, ImageError):
            assert isinstance(full, ImageError), f"decode_image says {decoded.kind}, inspect_image nothing"
            assert full.kind == decoded.kind
            return
        assert not isinstance(full, ImageError), f"inspect_image says {full}, decode_image nothing"
        assert not isinstance(header, ImageError), f"the header is refused: {header}"
        assert head_error(data[:HEAD_BYTES]) is None
        assert decoded.image.mode == "RGB"
        assert (full.width, full.height) == decoded.image.size
        assert full.width * full.height <= MAX_PIXELS
        assert {header.width, header.height} == {full.width, full.height}  # PNG may tell behind its pixels how it is turned
        for found in (full, header):
            assert (found.mode, found.format, found.is_animated) == (decoded.mode, decoded.format, decoded.is_animated)

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        """A file near this one, of PNG files half with checksums that fit."""
        data = mutate_bytes(data, chance, self.tokens)
        return with_png_checksums(data) if chance.random() < 0.5 and data.startswith(b"\x89PNG") else data

    def seeds(self) -> Iterator[bytes]:
        """Small images of every format that is read, and the samples."""
        for mode, colour in (
            ("1", 1),
            ("L", 90),
            ("LA", (90, 50)),
            ("P", 3),
            ("RGB", "red"),
            ("RGBA", (9, 8, 7, 60)),
            ("I;16", 700),
        ):
            image = Image.new(mode, _SIZE_PX, colour)  # type: ignore[arg-type]
            for image_format in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG"):
                yield from _saved(image, image_format)
        image = Image.linear_gradient("L").resize(_SIZE_PX).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6
        frames = [image.convert("L"), Image.new("L", _SIZE_PX, 9)]
        for image_format, settings in (
            ("JPEG", {"progressive": True, "exif": exif}),
            ("PNG", {"exif": exif}),
            ("PNG", {"transparency": (0, 0, 0)}),
            ("PNG", {"save_all": True, "append_images": frames}),
            ("GIF", {"save_all": True, "append_images": frames}),
            ("WEBP", {"save_all": True, "append_images": frames, "exif": exif}),
            ("WEBP", {"lossless": True}),
            ("TIFF", {"compression": "tiff_lzw", "exif": exif}),
            ("TIFF", {"compression": "tiff_adobe_deflate"}),
            ("TIFF", {"compression": "jpeg"}),
            ("TIFF", {"save_all": True, "append_images": frames}),
            ("MPO", {"save_all": True, "append_images": [image]}),
        ):
            yield from _saved(image, image_format, **settings)
        yield from _saved(image.convert("CMYK"), "JPEG")
        yield from _saved(image.convert("F"), "TIFF")
        yield from (
            b"P3\n2 1\n255\n1 2 3 4 5 6\n",
            b"P5\n2 1\n65535\n\x01\x02\x03\x04",
            b"",
            b"<svg/>",
            b"%PDF-1.4",
            b"PK\x03\x04",
        )
        for path in sorted(self._samples.iterdir()) if self._samples is not None else ():
            if path.is_file() and path.stat().st_size <= MAX_SEED_BYTES:
                yield path.read_bytes()


def _saved(image: Image.Image, image_format: str, **settings: object) -> Iterator[bytes]:
    """The file of an image, if the format can hold it."""
    sink = io.BytesIO()
    try:
        image.save(sink, image_format, **settings)
    except (OSError, ValueError, KeyError):
        return
    yield sink.getvalue()


def _decoded(data: bytes) -> DecodedImage | ImageError:
    try:
        return decode_image(data, MAX_PIXELS)
    except ImageError as cause:
        return cause


def _inspected(data: bytes, depth: str) -> InspectedImage | ImageError:
    try:
        return inspect_image(data, MAX_PIXELS, depth)  # type: ignore[arg-type]
    except ImageError as cause:
        return cause
