"""Pixels against those of the original code, of PIL on the whole padded square, and of transformers' PIL processor."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from yivl_core.data.decoding import ImageError, decode_image
from yivl_core.errors import CheckpointError
from yivl_core.processing.image import MAX_SIDE_PX, ImagePreprocessor

PADDING = (122, 116, 104)  # CLIP's mean colour
OPENED_AS_THEY_ARE = ["gray_square.png", "palette_square.png", "sliver.png", "square.png", "tall.png", "wide.jpg"]


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, np.ndarray]:
    return load_file(reference / "golden.safetensors")


@pytest.fixture(scope="session")
def config_path(reference: Path) -> Path:
    return next((reference / "checkpoint" / "vit").glob("*/preprocessor_config.json"))


@pytest.fixture(scope="session")
def preprocessor(config_path: Path) -> ImagePreprocessor:
    return ImagePreprocessor.from_file(config_path)


def pixel_values(preprocessor: ImagePreprocessor, image: Image.Image) -> np.ndarray:
    return preprocessor.normalise(preprocessor.to_squares([image]).squares())[0].numpy()


def square_of(preprocessor: ImagePreprocessor, image: Image.Image) -> np.ndarray:
    return preprocessor.to_squares([image]).squares()[0].numpy()


def padded(image: Image.Image, color: tuple[int, int, int] = PADDING) -> Image.Image:
    """The whole square, as the original builds it, in the mode of the picture."""
    side = max(image.size)
    square = Image.new(image.mode, (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def opened(path: Path) -> Image.Image:
    """The picture as it is stored, which is all that the original looked at."""
    with Image.open(path) as image:
        image.load()
        return image


def decoded(path: Path) -> Image.Image:
    """The picture as the pipeline reads it."""
    return decode_image(path.read_bytes(), max_pixels=10**6).image


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_every_golden_picture_is_tested(golden: dict[str, np.ndarray]) -> None:
    named = [*OPENED_AS_THEY_ARE, "exif_rotated.jpg", "rgba.png", "palette.png"]
    assert {name for name in golden if name.startswith("pixel_values.")} == {f"pixel_values.{name}" for name in named}


@pytest.mark.parametrize("name", OPENED_AS_THEY_ARE)
def test_pixel_values_are_the_originals(
    golden: dict[str, np.ndarray], reference: Path, preprocessor: ImagePreprocessor, name: str
) -> None:
    image = decoded(reference / "images" / name)
    values = pixel_values(preprocessor, image)
    assert values.dtype == np.float32
    assert values.tobytes() == golden[f"pixel_values.{name}"].tobytes()


@pytest.mark.parametrize("name", ["gray.png", "palette.png"])
def test_grey_and_palette_pictures_are_made_rgb_before_the_square_unlike_in_the_original(
    golden: dict[str, np.ndarray], reference: Path, preprocessor: ImagePreprocessor, name: str
) -> None:
    image = decoded(reference / "images" / name)
    assert square_of(preprocessor, image).transpose(2, 0, 1).tobytes() == golden[f"rgb_pad_uint8.{name}"].tobytes()


def test_palette_picture_that_the_original_spoilt_gives_its_pixel_values(
    golden: dict[str, np.ndarray], reference: Path, preprocessor: ImagePreprocessor
) -> None:
    spoilt = padded(opened(reference / "images" / "palette.png")).convert("RGB")
    assert pixel_values(preprocessor, spoilt).tobytes() == golden["pixel_values.palette.png"].tobytes()


def test_exif_orientation_is_applied_unlike_in_the_original(
    golden: dict[str, np.ndarray], reference: Path, preprocessor: ImagePreprocessor
) -> None:
    path = reference / "images" / "exif_rotated.jpg"
    as_stored, shown = opened(path), decoded(path)
    assert shown.size == as_stored.size[::-1]
    assert pixel_values(preprocessor, as_stored).tobytes() == golden["pixel_values.exif_rotated.jpg"].tobytes()
    assert pixel_values(preprocessor, shown).tobytes() != golden["pixel_values.exif_rotated.jpg"].tobytes()


def test_transparency_is_put_over_white_unlike_in_the_original(
    golden: dict[str, np.ndarray], reference: Path, preprocessor: ImagePreprocessor
) -> None:
    path = reference / "images" / "rgba.png"
    hidden_colours, shown = opened(path).convert("RGB"), decoded(path)
    assert pixel_values(preprocessor, hidden_colours).tobytes() == golden["pixel_values.rgba.png"].tobytes()
    assert pixel_values(preprocessor, shown).tobytes() != golden["pixel_values.rgba.png"].tobytes()


@settings(deadline=None, max_examples=60)
@example(1, 1)
@example(84, 84)
@example(84, 3)
@example(3, 85)
@example(6000, 3)
@example(1, 6000)
@example(129, 300)
@given(st.integers(1, 300), st.integers(1, 300))
def test_the_square_in_bands_is_the_whole_square_resized(preprocessor: ImagePreprocessor, width: int, height: int) -> None:
    image = picture(width, height)
    expected = np.array(padded(image).resize((84, 84), Image.Resampling.BICUBIC))
    assert square_of(preprocessor, image).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(1500, 3), (3, 1500), (1, 1), (100, 99), (31, 64)])
def test_pixel_values_are_those_of_transformers_pil_processor(
    preprocessor: ImagePreprocessor, config_path: Path, size: tuple[int, int]
) -> None:
    theirs = CLIPImageProcessorPil(**json.loads(config_path.read_text()))
    image = picture(*size)
    expected = theirs(padded(image), return_tensors="np")["pixel_values"][0]
    assert pixel_values(preprocessor, image).tobytes() == expected.tobytes()


def test_the_published_size_works_too() -> None:
    published = ImagePreprocessor(
        image_size_px=448,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )
    image = picture(500, 90)
    expected = CLIPImageProcessorPil(size=448, crop_size=448)(padded(image), return_tensors="np")["pixel_values"][0]
    assert pixel_values(published, image).tobytes() == expected.tobytes()


def test_many_pictures_are_normalised_as_one_at_a_time(preprocessor: ImagePreprocessor) -> None:
    pixels = preprocessor.to_squares([picture(50, 40, seed) for seed in range(3)]).squares()
    together = preprocessor.normalise(pixels)
    assert together.shape == (3, 3, 84, 84)
    assert torch.equal(together, torch.cat([preprocessor.normalise(pixels[number : number + 1]) for number in range(3)]))
    assert preprocessor.normalise(pixels[:0]).shape == (0, 3, 84, 84)


def test_a_side_that_would_take_gigabytes_is_a_named_error(preprocessor: ImagePreprocessor) -> None:
    with pytest.raises(ImageError, match=r"the image has 65536 x 1 pixels, and a side may have 65535 at most; cut") as raised:
        preprocessor.to_squares([Image.new("RGB", (MAX_SIDE_PX + 1, 1))])
    assert raised.value.kind == "too_many_pixels"


def test_bytes_are_the_same_with_torchvision_installed(
    tmp_path: Path, config_path: Path, preprocessor: ImagePreprocessor, repository: Path
) -> None:
    """A stand-in that gives all that transformers asks it for, but cannot resize or normalise: whoever uses it fails."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        textwrap.dedent(
            """
            __version__ = "0.26.0"
            def __getattr__(name):
                if name.startswith("__"):
                    raise AttributeError(name)
                raise RuntimeError(f"torchvision.{name} was used")
            """
        )
    )
    code = f"""
import hashlib, importlib.util, torch, numpy as np
from PIL import Image
from yivl_core.processing.image import ImagePreprocessor
assert importlib.util.find_spec("torchvision").origin.startswith({str(tmp_path)!r})
preprocessor = ImagePreprocessor.from_file({str(config_path)!r})
values = np.random.default_rng(0).integers(0, 256, (77, 130, 3), dtype=np.uint8)
pixels = preprocessor.to_squares([Image.fromarray(values)])
print(hashlib.sha256(preprocessor.normalise(pixels.squares()).numpy().tobytes()).hexdigest())
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(repository), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    here = hashlib.sha256(pixel_values(preprocessor, picture(130, 77)).tobytes()).hexdigest()
    assert (done.stdout.strip(), done.returncode) == (here, 0), done.stderr


def changed(config_path: Path, folder: Path, **changes: Any) -> Path:
    config = {**json.loads(config_path.read_text()), **changes}
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return path


@pytest.mark.parametrize(
    "sizes",
    [
        {"size": {"shortest_edge": 84}, "crop_size": {"height": 84, "width": 84}},
        {"rescale_factor": 1 / 255, "do_rescale": True, "do_convert_rgb": True},
        {"resample": "absent"},
    ],
)
def test_later_forms_of_the_file_say_the_same(
    config_path: Path, tmp_path: Path, preprocessor: ImagePreprocessor, sizes: dict[str, Any]
) -> None:
    read = ImagePreprocessor.from_file(changed(config_path, tmp_path, **sizes))
    assert pixel_values(read, picture(50, 70)).tobytes() == pixel_values(preprocessor, picture(50, 70)).tobytes()


@pytest.mark.parametrize(
    ("change", "effect"),
    [
        ({"resample": 2}, "pixels"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "padding"),
        ({"image_std": [0.5, 0.5, 0.5]}, "values"),
        ({"rescale_factor": 1 / 127.5}, "values"),
        ({"size": 42, "crop_size": 42}, "shape"),
    ],
)
def test_every_key_counts(
    config_path: Path, tmp_path: Path, preprocessor: ImagePreprocessor, change: dict[str, Any], effect: str
) -> None:
    read, image = ImagePreprocessor.from_file(changed(config_path, tmp_path, **change)), picture(50, 70)
    assert pixel_values(read, image).tobytes() != pixel_values(preprocessor, image).tobytes()
    same_pixels = square_of(read, image).tobytes() == square_of(preprocessor, image).tobytes()
    assert same_pixels == (effect == "values")
    assert square_of(read, image).shape == ((42, 42, 3) if effect == "shape" else (84, 84, 3))
    if effect == "padding":
        assert square_of(read, image)[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop is False; Yi-VL has True; correct it, or fetch the file again"),
        ({"crop_size": 70}, "crop_size is 70; size is 84, and Yi-VL never crops"),
        ({"size": {"height": 84, "width": 70}}, "size is {'height': 84, 'width': 70}; it should be the side of a square"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean is \[0\.5, 0\.5\]; it should have at least 3 items"),
        ({"image_mean": [122.8, 116.7, 104.1]}, r"image_mean\.0 is 122\.8; it should be less than or equal to 1"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"image_std\.1 is 0\.0; it should be greater than 0"),
        ({"image_std": "absent", "size": "absent"}, "lacks size, image_std"),
        ({"resample": 17}, "resample is 17; it should be less than or equal to 5"),
    ],
)
def test_a_file_that_asks_for_something_else_is_a_named_error(
    config_path: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: {message}"):
        ImagePreprocessor.from_file(changed(config_path, tmp_path, **change))


def test_a_missing_file_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: file is missing; it says how images are prepared"):
        ImagePreprocessor.from_file(tmp_path / "preprocessor_config.json")
