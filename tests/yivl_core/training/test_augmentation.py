"""Changed pictures: the padding stays, what is drawn follows from the seed, and nothing is drawn at strength nought."""

import shutil

import numpy as np
import pytest

from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.training.augmentation import augment

PADDING = (122, 116, 104)
SIZE = 56


def make_squares(num_images: int = 6) -> np.ndarray:
    """Lines of dark strokes on a light ground in the middle of squares of padding."""
    squares = np.full((num_images, SIZE, SIZE, 3), PADDING, dtype=np.uint8)
    squares[:, 20:36] = 220
    squares[:, 24:32, 6:50:4] = 30
    return squares


def augmented(strength: float, seed: int = 3) -> np.ndarray:
    return augment(UnpaddedPixels.of([(square, 0) for square in make_squares()], SIZE, PADDING), strength, seed).squares().numpy()


def test_without_strength_nothing_changes() -> None:
    assert np.abs(augmented(0.0).astype(int) - make_squares()).max() <= 1


def test_the_seed_decides() -> None:
    assert np.array_equal(augmented(0.7), augmented(0.7))
    assert not np.array_equal(augmented(0.7), augmented(0.7, seed=4))


def test_each_picture_changes_in_its_own_way() -> None:
    changed = augmented(1.0)
    assert len({picture.tobytes() for picture in changed}) == len(changed)


@pytest.mark.parametrize("seed", range(5))
def test_padding_stays_padding_and_the_line_stays_in_the_middle(seed: int) -> None:
    changed = augmented(1.0, seed)
    is_padding = (changed == PADDING).all(axis=-1)
    assert is_padding[:, :18].all()
    assert is_padding[:, 38:].all()
    assert is_padding[:, 24:32, 8:48].mean() < 0.01  # where a value happens to be the padding's


@pytest.mark.parametrize("seed", range(5))
def test_strokes_stay_darker_than_their_ground(seed: int) -> None:
    for picture in augmented(1.0, seed).astype(float):
        is_inside = (picture != PADDING).any(axis=-1)
        values = picture[is_inside]
        assert np.percentile(values, 10) + 40 < np.percentile(values, 90)


def test_a_stronger_change_is_a_larger_one() -> None:
    distances = [np.abs(augmented(strength).astype(float) - make_squares()).mean() for strength in (0.1, 0.4, 1.0)]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # within torch's compiler
def test_compiled_it_changes_the_same() -> None:
    pixels = UnpaddedPixels.of([(square, 0) for square in make_squares()], SIZE, PADDING)
    plain, compiled = (augment(pixels, 0.7, 3, compiled=compiled).squares().int() for compiled in (False, True))
    assert (plain - compiled).abs().max() <= 1
    assert (plain != compiled).float().mean() < 0.01
