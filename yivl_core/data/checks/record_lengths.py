"""Lengths of records, for the report: kept on disk, so that those of records which are left out later need not count."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

_LENGTH = np.dtype("<i4")
_READ_AT_A_TIME = 1_000_000
_NUM_BINS = 20

Lengths = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How long records are.

    Attributes:
        num: of those that have a length.
        total: of all of them together.
        shortest, median, long, longest: the smallest, the middle one, that which 95 % do not exceed, the largest.
        longest_number: number of the first record of the largest length.
        bins: from, to (inclusive), how many; of one width.
    """

    num: int
    total: int
    shortest: int
    median: int
    long: int
    longest: int
    longest_number: int
    bins: tuple[tuple[int, int, int], ...]


class RecordLengths:
    """Takes in lengths record by record; use it as a context manager."""

    def __enter__(self) -> "RecordLengths":
        self._resources = ExitStack()
        self._file = self._resources.enter_context(tempfile.TemporaryFile())
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    def add(self, lengths: Lengths) -> None:
        """Add the lengths of the next records, int32 `[N]`; -1 where there is none."""
        self._file.write(lengths.astype(_LENGTH).tobytes())

    def distribution(self, left_out: npt.NDArray[np.uint64]) -> Distribution | None:
        """What there is to say about them; None where no record has a length.

        Args:
            left_out: numbers of the records that do not count, in order.
        """
        values, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        longest, longest_number = -1, 0
        first = 0
        self._file.seek(0)
        while data := self._file.read(_LENGTH.itemsize * _READ_AT_A_TIME):
            lengths = np.frombuffer(data, _LENGTH).copy()
            start, end = np.searchsorted(left_out, [first, first + len(lengths)])
            lengths[(left_out[start:end] - np.uint64(first)).astype(np.int64)] = -1
            if lengths.max() > longest:
                longest, longest_number = int(lengths.max()), first + int(lengths.argmax())
            values, counts = _merged(values, counts, *np.unique(lengths[lengths >= 0], return_counts=True))
            first += len(lengths)
        if longest < 0:
            return None
        ranks = np.cumsum(counts)
        num = int(ranks[-1])
        return Distribution(
            num=num,
            total=int((values * counts).sum()),
            shortest=int(values[0]),
            median=int(values[np.searchsorted(ranks, (num + 1) // 2)]),
            long=int(values[np.searchsorted(ranks, -(-num * 95 // 100))]),
            longest=longest,
            longest_number=longest_number,
            bins=_bins(values, counts),
        )


def _merged(values: Counts, counts: Counts, more_values: Lengths, more_counts: Counts) -> tuple[Counts, Counts]:
    """Lengths in order, and how often each was seen, of two such pairs."""
    both, places = np.unique(np.concatenate([values, more_values.astype(np.int64)]), return_inverse=True)
    sums = np.zeros(len(both), np.int64)
    np.add.at(sums, places, np.concatenate([counts, more_counts]))
    return both, sums


def _bins(values: Counts, counts: Counts) -> tuple[tuple[int, int, int], ...]:
    shortest, longest = int(values[0]), int(values[-1])
    width = _round_up(max(1, -(-(longest + 1 - shortest) // (_NUM_BINS - 1))))
    starts = np.arange(shortest // width * width, longest + 1, width)
    numbers = np.zeros(len(starts), np.int64)
    np.add.at(numbers, values // width - shortest // width, counts)
    return tuple((int(start), int(start) + width - 1, int(number)) for start, number in zip(starts, numbers, strict=True))


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50 ..."""
    power: int = 10 ** (len(str(width)) - 1)
    return min(factor * power for factor in (1, 2, 5, 10) if factor * power >= width)
