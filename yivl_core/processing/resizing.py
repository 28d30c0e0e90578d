"""RGB picture -> its square of the mean colour, resized: bit for bit as Pillow resizes that square, which is never built.

```
picture      first pass, row by row      second pass, column by column
                                          ................
                     ........             ................   padding
----------->         --------     --->    ----------------
----------->         --------             ----------------   rows that see the picture
                     ........             ................
                                          ................   padding
```
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

Colour = tuple[int, ...]

# Pillow keeps four bytes a pixel: 64 rows of the longest image that is taken make 17 MB.
_BAND_ROWS = 64
_MAX_TABLE_SIDE_PX = 2048  # so that the tables of weights stay small
# Pillow's weights for 8-bit pixels are whole numbers, parts of 2^22 (src/libImaging/Resample.c, PRECISION_BITS).
_WEIGHT_BITS = 22
_WHOLE_WEIGHT = 1 << _WEIGHT_BITS
_BLOCK_PRODUCTS = 1 << 18  # are summed at once: too few for BLAS to start threads, which are slow where all cores are busy
_WIDEST_FILTER = 5  # rows; Magic Kernel Sharp 2021 sees 4.5 on each side, Lanczos 3, bicubic 2


def pad_and_resize(
    image: Image.Image, size: int, padding: Colour, resample: Image.Resampling
) -> tuple[npt.NDArray[np.uint8], int]:
    """An RGB image of any shape, centred on a square of the padding's colour and resized.

    A band of rows at a time is narrowed, then the narrow picture is shortened, as Pillow's own two passes do it. So a picture of
    60,000 x 3 pixels takes 0.1 GB instead of 14. Pillow's own second pass is for large pictures: it is slower, and makes rows
    that see nothing but padding, too.

    Args:
        image: RGB.
        size: side of the result.
        padding: colour around the image.
        resample: Pillow's filter.

    Returns:
        Rows of the new square, uint8 `[N, S, 3]`, and where the first of them stands; all others are padding alone.
    """
    side = max(image.size)
    top = (side - image.height) // 2
    rows = _narrowed(image, size, padding, resample)
    if side <= _MAX_TABLE_SIDE_PX:
        return _shortened(rows, top, side, padding, resample)
    narrow = Image.new("RGB", (size, side), padding)
    narrow.paste(Image.fromarray(rows), (0, top))
    return np.array(narrow.resize((size, size), resample)), 0


def _narrowed(image: Image.Image, size: int, padding: Colour, resample: Image.Resampling) -> npt.NDArray[np.uint8]:
    """The first pass over the rows of the square that hold the image: uint8 `[image height, S, 3]`."""
    side = max(image.size)
    rows = np.empty((image.height, size, 3), dtype=np.uint8)
    for start in range(0, image.height, _BAND_ROWS):
        end = min(start + _BAND_ROWS, image.height)
        band = image.crop((0, start, image.width, end))
        if image.width < side:
            band, picture = Image.new("RGB", (side, end - start), padding), band
            band.paste(picture, ((side - image.width) // 2, 0))
        rows[start:end] = np.asarray(band.resize((size, end - start), resample))
    return rows


def _shortened(
    rows: npt.NDArray[np.uint8], top: int, side: int, padding: Colour, resample: Image.Resampling
) -> tuple[npt.NDArray[np.uint8], int]:
    """The second pass: the rows that see something else than padding, and where the first of them stands.

    Args:
        rows: uint8 `[H, S, 3]`, what the first pass gave.
        top: row of the square where they begin.
        side: rows of the square.
        padding: colour of its other rows.
        resample: Pillow's filter.
    """
    size, bottom = rows.shape[1], top + len(rows)
    first, weights = _resize_weights(side, size, resample)
    reach = weights.shape[1]
    begin, end = np.searchsorted(first, (top - reach + 1, bottom)).tolist()
    if begin == end:  # a filter that skips rows
        return rows[:0], 0
    start, stop = int(first[begin]), int(first[end - 1]) + reach
    above, below = max(top - start, 0), bottom - start
    seen = np.empty((stop - start, size * 3), dtype=np.uint8)  # rows are laid out flat, so that they are filled fast
    seen[:above] = seen[below:] = np.frombuffer(bytes(padding) * size, dtype=np.uint8)
    seen[above:below] = rows.reshape(-1, size * 3)[max(start - top, 0) : stop - top]
    shortened = _weighed(seen, first[begin:end] - start, weights[begin:end]).astype(np.uint8)
    return shortened.reshape(-1, size, 3), begin


def _weighed(seen: npt.NDArray[np.uint8], first: npt.NDArray[np.int64], weights: npt.NDArray[np.int32]) -> npt.NDArray[np.int16]:
    """New rows, 0 to 255: int16 `[N, C]`.

    Sums are of whole numbers over a power of two, and so exact in double precision, in whatever order they are made.

    Args:
        seen: the rows that they are made of: `[R, C]`.
        first: the first of these that each one sees: `[N]`.
        weights: of that and the next ones: `[N, K]`.
    """
    (num_rows, reach), num_columns = weights.shape, seen.shape[1]
    matrix = np.zeros((num_rows, len(seen)))
    matrix[np.arange(num_rows)[:, None], first[:, None] + np.arange(reach)] = weights / _WHOLE_WEIGHT
    made = np.empty((num_rows, num_columns), dtype=np.int16)
    block_rows = _block_rows(len(seen) / num_rows, reach, num_columns)
    for block in range(0, num_rows, block_rows):
        own = slice(block, block + block_rows)
        columns = slice(first[own][0], first[own][-1] + reach)
        sums = matrix[own, columns] @ seen[columns].astype(np.float64)
        sums += 0.5  # what follows the point is cut off
        made[own] = sums
    return made.clip(0, 255, out=made)


def _block_rows(scale: float, reach: int, num_columns: int) -> int:
    """How many new rows are summed at once: the largest n with n * (n * scale + reach) * num_columns <= _BLOCK_PRODUCTS."""
    products = _BLOCK_PRODUCTS / num_columns
    return max(int((math.sqrt(reach**2 + 4 * scale * products) - reach) / (2 * scale)), 1)


@lru_cache(maxsize=512)
def _resize_weights(length: int, size: int, resample: Image.Resampling) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """How Pillow weighs `length` rows to make `size` of them. It tells so itself: 32-bit pixels show a weight's every digit.

    Returns:
        The first row that each new row may see: `[S]`, below 0 at the edge. The weights from there on: int32 `[S, K]`, parts of
        2^22, 0 for what is not seen.
    """
    reach = math.ceil(_WIDEST_FILTER * max(length / size, 1)) + 1
    num_columns = 2 * reach + 1
    # All rows that a new row may see have different columns.
    probe = np.zeros((length, num_columns), dtype=np.int32)
    probe[np.arange(length), np.arange(length) % num_columns] = _WHOLE_WEIGHT
    answer = np.asarray(Image.fromarray(probe).resize((num_columns, size), resample))  # [S, num_columns]
    first = ((np.arange(size) + 0.5) * length / size).astype(np.int64) - reach
    weights = np.take_along_axis(answer, (first[:, None] + np.arange(num_columns)) % num_columns, axis=1)
    used = np.flatnonzero(weights.any(axis=0))
    return first + used[0], weights[:, used[0] : used[-1] + 1]
