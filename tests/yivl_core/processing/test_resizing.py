"""Squares against Pillow's own resizing of the whole padded square."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling

from yivl_core.processing import resizing
from yivl_core.processing.resizing import pad_and_resize

PADDING = (122, 116, 104)


def picture(width: int, height: int, is_harsh: bool) -> Image.Image:
    """Noise; harsh noise is black and white, so that bicubic sums leave 0 to 255."""
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray((values // 128 * 255) if is_harsh else values)


def whole_square(image: Image.Image, size: int, resample: Resampling) -> bytes:
    side = max(image.size)
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.array(square.resize((size, size), resample)).tobytes()


@settings(max_examples=150)
@example(200, 25, 224, Resampling.BICUBIC, True)
@example(2048, 1, 224, Resampling.BICUBIC, True)
@example(2049, 1, 224, Resampling.BICUBIC, True)
@example(3, 1, 448, Resampling.BICUBIC, False)
@example(224, 30, 224, Resampling.BICUBIC, False)
@example(700, 1, 5, Resampling.NEAREST, False)
@given(
    width=st.integers(1, 400) | st.integers(400, 2100),
    height=st.integers(1, 130) | st.integers(130, 700),
    size=st.sampled_from([1, 84, 224, 448]),
    resample=st.sampled_from([Resampling.BICUBIC, *Resampling]),
    is_harsh=st.booleans(),
)
def test_a_square_is_what_pillow_makes_of_the_whole_square(
    width: int, height: int, size: int, resample: Resampling, is_harsh: bool
) -> None:
    image = picture(width, height, is_harsh)
    rows, top = pad_and_resize(image, size, PADDING, resample)
    assert (rows.dtype, rows.shape[1:]) == (np.uint8, (size, 3))
    made = np.full((size, size, 3), PADDING, dtype=np.uint8)
    made[top : top + len(rows)] = rows
    assert made.tobytes() == whole_square(image, size, resample)


def test_pictures_up_to_a_side_and_no_others_go_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the short way was taken")

    short = resizing._shortened
    sizes = {(200, 25): True, (300, 300): True, (2048, 9): True, (2049, 9): False, (9, 2049): False}
    for size, is_short in sizes.items():
        with monkeypatch.context() as patched:
            patched.setattr(Image.Image if is_short else resizing, "paste" if is_short else "_shortened", refuse)
            pad_and_resize(picture(*size, is_harsh=False), 84, PADDING, Resampling.BICUBIC)
    assert resizing._shortened is short


@pytest.mark.parametrize("size", [84, 224, 448])
@pytest.mark.parametrize("length", [1, 2, 83, 200, 500, 2048])
def test_weights_add_up_to_one_and_tables_stay_small(length: int, size: int) -> None:
    first, weights = resizing._resize_weights(length, size, Resampling.BICUBIC)
    assert first.shape == (size,)
    assert abs(weights.sum(axis=1) - (1 << 22)).max() <= weights.shape[1]
    assert (np.diff(first) >= 0).all()
    assert weights.nbytes < 200_000
