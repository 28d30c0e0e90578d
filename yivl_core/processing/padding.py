"""Squares of pixels without the rows that are padding alone: of a line of text a tenth is left to be moved between memories."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpaddedPixels:
    """Squares of one size; nothing is lost.

    Attributes:
        rows: uint8 `[R, S, 3]`, the rows that hold something else than the padding's colour.
        places: int64 `[R]`, where they belong: number of the image times S, plus the row.
        num_images: how many squares.
        padding: the padding's red, green and blue.
    """

    rows: torch.Tensor
    places: torch.Tensor
    num_images: int
    padding: tuple[int, ...]

    @classmethod
    def of(cls, squares: Sequence[npt.NDArray[np.uint8]], padding: tuple[int, ...]) -> "UnpaddedPixels":
        """The same pixels in less memory.

        Args:
            squares: each uint8 `[N, S, S, 3]`.
            padding: red, green and blue.
        """
        size = squares[0].shape[1]
        line = np.array(padding * size, dtype=np.uint8)
        lines = [square.reshape(-1, 3 * size) for square in squares]
        kept = [(part != line).any(axis=1) for part in lines]
        rows = np.concatenate([part[is_kept] for part, is_kept in zip(lines, kept, strict=True)])
        return cls(
            rows=torch.from_numpy(rows.reshape(-1, size, 3)),
            places=torch.from_numpy(np.flatnonzero(np.concatenate(kept))),
            num_images=sum(len(square) for square in squares),
            padding=padding,
        )

    def to(self, device: torch.device, *, copy: bool = False) -> "UnpaddedPixels":
        """The same on a device, in memory of its own where it is a copy; to a GPU from pinned memory nothing waits for it."""
        rows, places = (tensor.to(device, non_blocking=True, copy=copy) for tensor in (self.rows, self.places))
        return replace(self, rows=rows, places=places)

    def pin_memory(self) -> "UnpaddedPixels":
        """The same in memory that a GPU reads by itself."""
        return replace(self, rows=self.rows.pin_memory(), places=self.places.pin_memory())

    @property
    def colour(self) -> torch.Tensor:
        """The padding's colour, uint8 `[3]`, on the device of the pixels; to send it there does not wait for the device."""
        return torch.tensor(self.padding, dtype=torch.uint8).to(self.rows.device, non_blocking=True)

    def squares(self) -> torch.Tensor:
        """The squares again: uint8 `[N, S, S, 3]`."""
        size = self.rows.shape[1]
        squares = self.colour.repeat(self.num_images * size, size, 1)
        squares[self.places] = self.rows
        return squares.view(-1, size, size, 3)
