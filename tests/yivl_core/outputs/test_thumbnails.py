"""Small pictures are those of the image, and what has become of an image that is not as it was is said in words."""

import base64
import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from yivl_core.data.images import ImageReference, ImageStore
from yivl_core.outputs.thumbnails import MAX_ENLARGEMENT, MAX_SIDE_PX, Thumbnail, load_thumbnail, to_thumbnail


def decoded(picture: Thumbnail) -> Image.Image:
    head, _, data = str(picture.data_uri).partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert head == f"data:image/{str(image.format).lower()};base64"
    return image


@given(width=st.integers(1, 900), height=st.integers(1, 900))
def test_a_picture_fits_and_keeps_its_shape_and_the_image_stays_as_it_is(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), "red")
    picture = to_thumbnail(image)
    assert image.size == (width, height)
    small, longest = decoded(picture).size, max(width, height)
    assert max(small) == min(longest, MAX_SIDE_PX)
    assert max(picture.width, picture.height) == min(MAX_SIDE_PX, round(MAX_ENLARGEMENT * longest))
    for side, shown, original in zip(small, (picture.width, picture.height), (width, height), strict=True):
        assert abs(side - original * max(small) / longest) <= 1
        assert abs(shown - max(1, side * max(picture.width, picture.height) / max(small))) <= 0.5


def test_flat_pictures_are_kept_exactly_and_noise_is_kept_small() -> None:
    flat, noise = Image.new("RGB", (300, 200), "#12ab9f"), Image.effect_noise((300, 200), 90).convert("RGB")
    assert decoded(to_thumbnail(flat)).tobytes() == flat.tobytes()
    assert decoded(to_thumbnail(noise)).format == "JPEG"
    assert len(str(to_thumbnail(noise).data_uri)) < 80_000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is not there any more"),
        (b"other", "was changed since the run began"),
        (b"the same", "cannot be shown (not_an_image)"),
    ],
)
def test_what_has_become_of_an_image_is_told(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    sha256 = hashlib.sha256(b"the same").hexdigest()
    reference = ImageReference(uri="a.png", address="a.png", root=tmp_path, sha256=sha256)
    assert load_thumbnail(ImageStore(), reference, since="the run began") == Thumbnail(problem=problem)


def test_an_image_that_is_there_as_it_was_is_loaded(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    reference = ImageReference(uri="a.png", address="a.png", root=tmp_path)
    picture = load_thumbnail(ImageStore(), reference, since="the run began")
    assert (picture.problem, picture.width, picture.height) == (None, 60, 40)
    assert decoded(picture).getpixel((29, 19)) == (255, 0, 0)
