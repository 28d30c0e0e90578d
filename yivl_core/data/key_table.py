"""Which of many contents are equal, by 16 bytes of their digests, in memory that does not grow with their number.

Keys are collected in an array, which is sorted at the end. Where there are more than fit, they are spread over files by their
first bits, so that equal ones meet in one file, and each file is sorted alone.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16  # of a sha256: enough to tell a billion records apart

_ENTRY = np.dtype([("key", "<u8"), ("more", "<u8"), ("number", "<u8"), ("file", "<u4"), ("line", "<u8")])
_REPEAT = np.dtype([("number", "<u8"), ("file", "<u4"), ("line", "<u8"), ("first_file", "<u4"), ("first_line", "<u8")])
_MAX_ENTRIES_IN_MEMORY = 500_000  # 18 MB, and twice as much again while they are sorted
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
        """The entries whose key has come before, in order."""
        found = []
        for part in self._parts(spread=bool(self._buckets)):
            entries, starts = _sorted_groups(part)
            is_first = np.zeros(len(entries), dtype=bool)
            is_first[starts] = True
            first = entries[starts[np.cumsum(is_first) - 1]]
            found.append(_pair(entries[~is_first], first[~is_first]))
        return _in_order(found)

    def matches(self, others: "KeyTable") -> Iterator[Repeat]:
        """The entries whose key is one of another table's, in order, each with the first there."""
        found = []
        for own, theirs in zip(self._parts(spread=True), others._parts(spread=True), strict=True):
            known, starts = _sorted_groups(theirs)
            if not len(own) or not len(known):
                continue
            first = known[starts]
            place = np.minimum(np.searchsorted(first["key"], own["key"]), len(first) - 1)
            # Of two keys that share a half the second is missed: once in 2^64.
            is_known = (first["key"][place] == own["key"]) & (first["more"][place] == own["more"])
            found.append(_pair(own[is_known], first[place[is_known]]))
        return _in_order(found)

    def most_frequent(self, number: int, left_out: npt.NDArray[np.uint64]) -> tuple[int, list[Frequent]]:
        """How many different keys there are, and the most frequent ones.

        Args:
            number: how many of these.
            left_out: numbers of entries that do not count, in order.
        """
        num_keys = 0
        best: list[Frequent] = []
        for part in self._parts(spread=bool(self._buckets)):
            entries, starts = _sorted_groups(part[~np.isin(part["number"], left_out)] if len(left_out) else part)
            num_keys += len(starts)
            counts = np.diff(starts, append=len(entries))
            order = np.lexsort((entries["number"][starts], -counts))[:number]
            for count, first in zip(counts[order].tolist(), entries[starts[order]], strict=True):
                best.append(Frequent(count, int(first["number"]), first["key"].tobytes() + first["more"].tobytes()))
        return num_keys, sorted(best, key=lambda key: (-key.num_entries, key.number))[:number]

    def _parts(self, *, spread: bool) -> Iterator[Entries]:
        """All entries, in parts between which no key is shared: one part, or one for each bucket."""
        if self._buckets:
            self._spill()
        held = np.concatenate([np.empty(0, _ENTRY), *self._held])
        self._held = [held]
        if not spread:
            yield held
            return
        bucket_of = held["key"] >> _BUCKET_SHIFT
        for bucket in range(_NUM_BUCKETS):
            if self._buckets:
                self._buckets[bucket].seek(0)
                yield np.frombuffer(self._buckets[bucket].read(), _ENTRY)
            else:
                yield held[bucket_of == bucket]

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


def _pair(entries: Entries, first: Entries) -> Entries:
    pairs = np.empty(len(entries), _REPEAT)
    for name in ("number", "file", "line"):
        pairs[name] = entries[name]
    pairs["first_file"], pairs["first_line"] = first["file"], first["line"]
    return pairs


def _in_order(found: list[Entries]) -> Iterator[Repeat]:
    pairs: Any = np.concatenate([np.empty(0, _REPEAT), *found])
    pairs = pairs[np.argsort(pairs["number"])]
    for start in range(0, len(pairs), 10_000):  # Python objects for a few at a time
        yield from map(Repeat._make, pairs[start : start + 10_000].tolist())
