"""Which of many contents are equal, by 16 bytes of their digests, in memory that does not grow with their number.

Keys are collected in an array, which is sorted at the end. Where there are more than fit, they are spread over files by their
first bits, so that equal ones meet in one file, and each file is sorted alone, in pieces, since all entries may have one key.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16  # of a sha256: enough to tell a billion records apart

_ENTRY = np.dtype([("key", "<u8"), ("more", "<u8"), ("number", "<u8"), ("file", "<u4"), ("line", "<u8")])
_MAX_ENTRIES_IN_MEMORY = 500_000  # 18 MB, and twice as much again while they are sorted
_PAIRS_AT_A_TIME = 10_000
_NUM_BUCKETS = 64
_BUCKET_SHIFT = np.uint64(58)

Entries = npt.NDArray[np.void]
Integers = npt.NDArray[np.int64]


class Repeat(NamedTuple):
    """An entry whose key another entry has.

    Attributes:
        number: of the entry.
        file, line: of the entry.
        first_file, first_line: of the first entry with that key.
    """

    number: int
    file: int
    line: int
    first_file: int
    first_line: int


class Frequent(NamedTuple):
    """A key.

    Attributes:
        num_entries: how many have it.
        number: of the first of them.
        key: its 16 bytes.
    """

    num_entries: int
    number: int
    key: bytes


class KeyTable:
    """Collects keys, each with the place that it belongs to; use it as a context manager.

    Args:
        max_entries_in_memory: more go to files in the system's folder for temporary files (TMPDIR).
    """

    def __init__(self, max_entries_in_memory: int = _MAX_ENTRIES_IN_MEMORY) -> None:
        self._max_entries = max_entries_in_memory
        self._held: list[Entries] = []
        self._num_held = 0
        self._buckets: list[IO[bytes]] = []
        self._files = ExitStack()

    def __enter__(self) -> "KeyTable":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    def add(self, keys: bytes, numbers: Integers, file: int, lines: Integers) -> None:
        """Add entries.

        Args:
            keys: 16 bytes each.
            numbers: int64 `[N]`, of each; no number is smaller than one before.
            file: number of the file that all of them are from.
            lines: int64 `[N]`, in which each stands.
        """
        entries = np.empty(len(lines), _ENTRY)
        halves = np.frombuffer(keys, "<u8").reshape(-1, 2)
        entries["key"], entries["more"] = halves[:, 0], halves[:, 1]
        entries["number"], entries["file"], entries["line"] = numbers, file, lines
        self._num_held += len(lines)
        self._held.append(entries)
        if self._num_held > self._max_entries:
            self._spill()

    def repeats(self) -> Iterator[Repeat]:
        """The entries whose key has come before, in no order."""
        for part in self._parts(spread=bool(self._buckets)):
            for entries, starts in self._groups(part):
                is_first = np.zeros(len(entries), dtype=bool)
                is_first[starts] = True
                first = entries[starts[np.cumsum(is_first) - 1]]
                yield from _pairs(entries[~is_first], first[~is_first])

    def matches(self, others: "KeyTable") -> Iterator[Repeat]:
        """The entries whose key is one of another table's, in no order, each with the first there."""
        for own_part, their_part in zip(self._parts(spread=True), others._parts(spread=True), strict=True):
            first = np.empty(0, _ENTRY)
            for entries, starts in others._groups(their_part):
                first = entries[starts]
            while len(first) and len(own := _read(own_part, self._max_entries)):
                place = np.minimum(np.searchsorted(first["key"], own["key"]), len(first) - 1)
                # Of two keys that share a half the second is missed: once in 2^64.
                is_known = (first["key"][place] == own["key"]) & (first["more"][place] == own["more"])
                yield from _pairs(own[is_known], first[place[is_known]])

    def most_frequent(self, number: int, left_out: npt.NDArray[np.uint64]) -> tuple[int, list[Frequent]]:
        """How many different keys there are, and the most frequent ones.

        Args:
            number: how many of these.
            left_out: numbers of entries that do not count, in order.
        """
        num_keys = 0
        best: list[Frequent] = []
        for part in self._parts(spread=bool(self._buckets)):
            first, counts = self._counted(part, left_out)
            num_keys += len(first)
            order = np.lexsort((first["number"], -counts))[:number]
            for count, entry in zip(counts[order].tolist(), first[order], strict=True):
                best.append(Frequent(count, int(entry["number"]), entry["key"].tobytes() + entry["more"].tobytes()))
        return num_keys, sorted(best, key=lambda key: (-key.num_entries, key.number))[:number]

    def _counted(self, part: IO[bytes], left_out: npt.NDArray[np.uint64]) -> tuple[Entries, Integers]:
        """The first entry of each key of a part, and how many have that key."""
        first, counts = np.empty(0, _ENTRY), np.empty(0, np.int64)
        while len(new := _read(part, max(self._max_entries, len(first)))):
            new = new[~_is_among(new["number"], left_out)]
            entries = np.concatenate([first, new])
            entries["line"] = np.concatenate([counts, np.ones(len(new), np.int64)])  # nobody asks for the lines
            entries, starts = _sorted_groups(entries)
            if len(starts):
                first, counts = entries[starts], np.add.reduceat(entries["line"], starts).astype(np.int64)
        return first, counts

    def _groups(self, part: IO[bytes]) -> Iterator[tuple[Entries, Integers]]:
        """The entries of a part, so many at a time that memory does not grow with how often a key comes.

        Yields:
            As `_sorted_groups` gives them: the first entry of each key that came before, and new entries.
        """
        first = np.empty(0, _ENTRY)
        while len(new := _read(part, max(self._max_entries, len(first)))):
            entries, starts = _sorted_groups(np.concatenate([first, new]))
            yield entries, starts
            first = entries[starts]

    def _parts(self, *, spread: bool) -> Iterator[IO[bytes]]:
        """All entries, in parts between which no key is shared: one part, or one for each bucket."""
        if self._buckets:
            self._spill()
            for bucket in self._buckets:
                bucket.seek(0)
                yield bucket
            return
        held = np.concatenate([np.empty(0, _ENTRY), *self._held])
        self._held = [held]
        if not spread:
            yield BytesIO(held.tobytes())
            return
        bucket_of = held["key"] >> _BUCKET_SHIFT
        for bucket_number in range(_NUM_BUCKETS):
            yield BytesIO(held[bucket_of == bucket_number].tobytes())

    def _spill(self) -> None:
        if not self._buckets:
            self._buckets = [self._files.enter_context(TemporaryFile()) for _ in range(_NUM_BUCKETS)]  # noqa: SIM115
        entries = np.concatenate(self._held) if self._held else np.empty(0, _ENTRY)
        bucket_of = entries["key"] >> _BUCKET_SHIFT
        for number, bucket in enumerate(self._buckets):
            bucket.seek(0, 2)
            bucket.write(entries[bucket_of == number].tobytes())
        self._held, self._num_held = [], 0


def _sorted_groups(entries: Entries) -> tuple[Entries, Integers]:
    """Entries by key, equal keys in the order in which they were added, and where each key begins."""
    entries = entries[np.argsort(entries["key"], kind="stable")]
    if (_differs(entries, "more") & ~_differs(entries, "key")).any():  # by both halves takes four times as long
        entries = entries[np.lexsort((entries["more"], entries["key"]))]
    differs = _differs(entries, "key") | _differs(entries, "more")
    starts = np.flatnonzero(np.concatenate([[len(entries) > 0], differs]))
    return entries, starts


def _differs(entries: Entries, name: str) -> npt.NDArray[np.bool_]:
    return np.asarray(entries[name][1:] != entries[name][:-1])


def _read(part: IO[bytes], num_entries: int) -> Entries:
    """The next entries of a part; none at its end."""
    return np.frombuffer(part.read(max(1, num_entries) * _ENTRY.itemsize), _ENTRY)


def _is_among(numbers: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which numbers are among others that are in order."""
    if not len(others):
        return np.zeros(len(numbers), dtype=bool)
    return np.asarray(others[np.minimum(np.searchsorted(others, numbers), len(others) - 1)] == numbers)


def _pairs(entries: Entries, first: Entries) -> Iterator[Repeat]:
    for start in range(0, len(entries), _PAIRS_AT_A_TIME):  # Python objects for a few at a time
        part, their_first = entries[start : start + _PAIRS_AT_A_TIME], first[start : start + _PAIRS_AT_A_TIME]
        columns = [part[name].tolist() for name in ("number", "file", "line")]
        yield from map(Repeat, *columns, their_first["file"].tolist(), their_first["line"].tolist())
