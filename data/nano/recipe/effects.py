"""What printing, paper and scanning do to a line.

Ink is an array uint8 [height, width], 255 full ink; a picture is float32 [height, width], 0 black to 255 white.
"""

import random

import numpy as np
import numpy.typing as npt
from glyphs import Ink
from PIL import Image

Picture = npt.NDArray[np.float32]

_TILE_SHAPE = (192, 2048)
_DOTS = {
    2: np.array([[1, 1], [1, 0.55]], np.float32),
    3: np.array([[0.5, 1, 0.5], [1, 1, 1], [0.5, 1, 0.5]], np.float32),
    4: np.array([[0.1, 0.8, 0.8, 0.1], [0.8, 1, 1, 0.8], [0.8, 1, 1, 0.8], [0.1, 0.8, 0.8, 0.1]], np.float32),
}


class NoiseTiles:
    """Noise made once: each line cuts a piece from it, which costs far less than drawing noise anew."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.fine = rng.standard_normal(_TILE_SHAPE, np.float32)
        self.medium = self._enlarge(rng, 3)
        self.coarse = self._enlarge(rng, 24)

    @staticmethod
    def _enlarge(rng: np.random.Generator, factor: int) -> Picture:
        """Noise with grains of about `factor` pixels, mean 0, standard deviation 1."""
        height, width = _TILE_SHAPE
        small = Image.fromarray(rng.standard_normal((height // factor + 1, width // factor + 1), np.float32))
        tile = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        return np.asarray((tile - tile.mean()) / tile.std(), np.float32)


def cut_tile(tile: Picture, shape: tuple[int, ...], rng: random.Random) -> Picture:
    """A piece of `tile` of the given shape, from a random place; a view, not to be written to."""
    top, left = rng.randint(0, tile.shape[0] - shape[0]), rng.randint(0, tile.shape[1] - shape[1])
    return tile[top : top + shape[0], left : left + shape[1]]


def harden(ink: Ink, threshold: int) -> Ink:
    """Ink with no greys, as a print head without levels sets it."""
    return np.where(ink > threshold, np.uint8(255), np.uint8(0))


def enlarge_dots(ink: Ink, factor: int, is_round: bool) -> Ink:
    """Each pixel as a square of `factor` x `factor` pixels, or as a dot with paper in its corners."""
    large = ink.repeat(factor, 0).repeat(factor, 1)
    if is_round:
        rows, columns = ink.shape
        large = (large * np.tile(_DOTS[factor], (rows, columns))).astype(np.uint8)
    return large


def thicken(ink: Ink, down: bool) -> Ink:
    """Strokes one pixel wider: to the right, or downwards."""
    result = ink.copy()
    if down:
        np.maximum(result[1:], ink[:-1], out=result[1:])
    else:
        np.maximum(result[:, 1:], ink[:, :-1], out=result[:, 1:])
    return result


def thin(ink: Ink, down: bool) -> Ink:
    """Strokes about a pixel thinner, unless that would take more than four tenths of the ink."""
    result = ink.copy()
    if down:
        np.minimum(result[1:], ink[:-1], out=result[1:])
    else:
        np.minimum(result[:, 1:], ink[:, :-1], out=result[:, 1:])
    return result if result.sum(dtype=np.int64) > 0.6 * ink.sum(dtype=np.int64) else ink


def drop_ink(ink: Ink, noise: Picture, share: float) -> Ink:
    """Ink with about `share` of its area missing where `noise` (standard deviation 1) is high."""
    threshold = 1.9 - 7 * share  # 3 % of a normal distribution lie above 1.9, 13 % above 1.15
    kept: Picture = np.clip((threshold - noise) * 2.5 + 0.5, 0, 1)
    return (ink * kept).astype(np.uint8)


def fade_ink(ink: Ink, noise: Picture, rng: random.Random) -> Ink:
    """Ink that is weaker in places, or towards one side."""
    least = rng.uniform(0.35, 0.9)
    if rng.random() < 0.4:
        level = np.linspace(*rng.choice(((least, 1.0), (1.0, least))), ink.shape[1], dtype=np.float32)[None]
    elif rng.random() < 0.3:
        level = np.linspace(*rng.choice(((least, 1.0), (1.0, least))), ink.shape[0], dtype=np.float32)[:, None]
    else:
        level = np.clip(0.5 + 0.5 * noise, 0, 1) * (1 - least) + least
    return (ink * level).astype(np.uint8)


def fail_head(ink: Ink, rng: random.Random) -> Ink:
    """One row or a few columns without ink, as broken elements of a print head leave them."""
    result = ink.copy()
    height, width = ink.shape
    if rng.random() < 0.4 and height > 16:
        row = rng.randint(height // 5, height - height // 5)
        result[row] = result[row] // 8
    else:
        for _ in range(rng.randint(1, 1 + width // 60)):
            column = rng.randint(1, width - 2)
            result[:, column] = result[:, column] // rng.randint(2, 9)
    return result


def skew(ink: Ink, rng: random.Random) -> Ink:
    """The line turned a little and its letters slanted, on a canvas of the same size."""
    height, width = ink.shape
    slope = rng.uniform(-1, 1) * min(0.045, 0.22 * height / width)
    slant = rng.gauss(0, 0.07)
    matrix = (1, slant, -slant * height / 2, slope, 1, -slope * width / 2)
    return np.asarray(Image.fromarray(ink).transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def blur(picture: Picture, across: float, down: float) -> Picture:
    """Weights `share/4, 1 - share/2, share/4` along each axis; shares from 0 to 1, more than 1 for two passes."""
    for share, axis in ((across, 1), (down, 0)):
        while share > 0:
            part = min(share, 1.0) / 4
            view = picture if axis else picture.T
            inner = view[:, 1:-1] * (1 - 2 * part) + (view[:, :-2] + view[:, 2:]) * part
            blurred = view.copy()
            blurred[:, 1:-1] = inner
            picture = blurred if axis else blurred.T
            share -= 1
    return picture


def sharpen(picture: Picture, strength: float) -> Picture:
    """Edges overdrawn, as scanners do."""
    return picture + strength * (picture - blur(picture, 1, 1))


def lower_resolution(picture: Picture, factor: float, way_up: Image.Resampling) -> Picture:
    """The picture scaled down by `factor` and up again."""
    height, width = picture.shape
    small = Image.fromarray(picture).resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), way_up))


def add_stains(picture: Picture, noise: Picture, depth: float) -> Picture:
    """Darker patches on paper and ink alike."""
    darkness: Picture = np.clip(noise - 0.8, 0, 1.5)
    return picture - depth * darkness
