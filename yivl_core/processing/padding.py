"""Squares of pixels without the rows that are padding alone: of a line of text a tenth is left to be moved between memories."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

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
    def of(cls, pictures: Sequence[tuple[npt.NDArray[np.uint8], int]], size: int, padding: tuple[int, ...]) -> "UnpaddedPixels":
        """Squares of which all is padding but these pictures.

        Args:
            pictures: for each square rows that hold its picture, uint8 `[N, S, 3]`, and where the first of them stands.
            size: side of the squares.
            padding: red, green and blue.
        """
        line = np.frombuffer(bytes(padding) * size, dtype=np.uint8)
        rows, places = [np.empty((0, 3 * size), dtype=np.uint8)], [np.empty(0, dtype=np.int64)]
        for number, (picture, top) in enumerate(pictures):
            lines = picture.reshape(-1, 3 * size)
            kept = np.flatnonzero((lines != line).any(axis=1))
            rows.append(lines[kept])
            places.append(kept + (number * size + top))
        return cls(
            rows=torch.from_numpy(np.concatenate(rows).reshape(-1, size, 3)),
            places=torch.from_numpy(np.concatenate(places)),
            num_images=len(pictures),
            padding=padding,
        )

    @classmethod
    def joined(cls, parts: Sequence["UnpaddedPixels"], *, is_pinned: bool = False) -> "UnpaddedPixels":
        """The squares of all parts in their order, in memory on the host.

        Args:
            parts: squares of one size and padding.
            is_pinned: whether that memory is such that a GPU reads it by itself.
        """
        size = parts[0].rows.shape[1]
        firsts = accumulate((part.num_images for part in parts), initial=0)
        num_rows = sum(len(part.rows) for part in parts)
        rows = torch.empty(num_rows, size, 3, dtype=torch.uint8, pin_memory=is_pinned)
        places = torch.empty(num_rows, dtype=torch.int64, pin_memory=is_pinned)
        # PyTorch would share this out among threads, which wait for each other where other processes have the cores: 145 ms for
        # 16 squares beside as many processes as cores, and 3 ms in one thread, on the host of an H100.
        np.concatenate([part.rows.numpy() for part in parts], out=rows.numpy())
        np.concatenate(
            [part.places.numpy() + first * size for part, first in zip(parts, firsts, strict=False)], out=places.numpy()
        )
        return cls(rows=rows, places=places, num_images=sum(part.num_images for part in parts), padding=parts[0].padding)

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
