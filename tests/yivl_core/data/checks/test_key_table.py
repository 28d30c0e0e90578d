"""Against dictionaries: the same repeats, matches and counts, in memory and on disk."""

import tracemalloc
from collections import Counter
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.checks.key_table import KeyTable, Repeat

# Halves that differ alone, and keys of one bucket and of several.
KEYS = st.sampled_from(
    [bytes([first]) + bytes(7) + bytes([last]) + bytes(7) for first in (0, 1, 2) for last in (0, 9)]
) | st.binary(min_size=16, max_size=16)
BLOCKS = st.lists(st.lists(KEYS, max_size=5), max_size=6)
NOTHING = np.empty(0, np.uint64)


def filled(blocks: list[list[bytes]], max_entries_in_memory: int) -> KeyTable:
    table, numbers = KeyTable(max_entries_in_memory), count()
    for file, keys in enumerate(blocks):
        taken = np.array([next(numbers) for _ in keys], np.int64)
        table.add(b"".join(keys), taken, file, taken * 10)
    return table


@given(BLOCKS, st.integers(0, 20))
def test_repeats_are_those_that_a_dictionary_finds(blocks: list[list[bytes]], max_entries: int) -> None:
    first: dict[bytes, tuple[int, int]] = {}
    expected, number = [], 0
    for file, keys in enumerate(blocks):
        for key in keys:
            place = (file, number * 10)
            if first.setdefault(key, place) is not place:
                expected.append(Repeat(number, *place, *first[key]))
            number += 1
    with filled(blocks, max_entries) as table:
        assert sorted(table.repeats()) == expected
        assert sorted(table.repeats()) == expected  # and again


@given(BLOCKS, BLOCKS, st.integers(0, 20), st.integers(0, 20))
def test_matches_are_the_keys_that_another_table_has(
    blocks: list[list[bytes]], others: list[list[bytes]], max_entries: int, max_others: int
) -> None:
    known: dict[bytes, tuple[int, int]] = {}
    for number, (file, key) in enumerate((file, key) for file, keys in enumerate(others) for key in keys):
        known.setdefault(key, (file, number * 10))
    own = enumerate((file, key) for file, keys in enumerate(blocks) for key in keys)
    expected = [Repeat(number, file, number * 10, *known[key]) for number, (file, key) in own if key in known]
    with filled(blocks, max_entries) as table, filled(others, max_others) as other:
        found = sorted(table.matches(other))
    halves = Counter(key[:8] for key in known)
    if max(halves.values(), default=0) < 2:
        assert found == expected
    else:  # of keys that share their first half one alone is looked for
        assert set(found) <= set(expected)


@given(BLOCKS, st.integers(0, 20), st.sets(st.integers(0, 30)))
def test_the_most_frequent_keys_are_those_of_a_counter(blocks: list[list[bytes]], max_entries: int, left_out: set[int]) -> None:
    keys = [key for keys in blocks for key in keys]
    counts = Counter(key for number, key in enumerate(keys) if number not in left_out)
    first = {key: number for number, key in reversed(list(enumerate(keys))) if number not in left_out}
    expected = sorted(((counts[key], first[key], key) for key in counts), key=lambda entry: (-entry[0], entry[1]))
    with filled(blocks, max_entries) as table:
        num_keys, frequent = table.most_frequent(3, np.array(sorted(left_out), np.uint64))
    assert (num_keys, [tuple(key) for key in frequent]) == (len(counts), expected[:3])


def test_an_empty_table_has_neither() -> None:
    with KeyTable() as table, KeyTable() as other:
        assert list(table.repeats()) == list(table.matches(other)) == []
        assert table.most_frequent(3, NOTHING) == (0, [])


@pytest.mark.parametrize("max_entries", [10, 1_000_000])
def test_memory_holds_only_so_many_entries(max_entries: int) -> None:
    keys = np.random.default_rng(0).bytes(16 * 1000)
    with KeyTable(max_entries) as table:
        for start in range(0, 1000, 10):
            numbers = np.arange(start, start + 10)
            table.add(keys[16 * start : 16 * (start + 10)], numbers, 0, numbers)
        held = sum(len(entries) for entries in table._held)
        assert held == (1000 if max_entries > 1000 else 0)
        assert table.most_frequent(1, NOTHING)[0] == 1000


def test_memory_does_not_grow_with_how_often_a_key_comes() -> None:
    num, numbers = 100_000, np.arange(1000)
    with KeyTable(1000) as table, KeyTable(1000) as other:
        for start in range(0, num, 1000):
            table.add(bytes(16 * 1000), start + numbers, 0, start + numbers)
        other.add(bytes(16), numbers[:1], 0, numbers[:1])
        tracemalloc.start()
        assert sum(1 for _ in table.repeats()) == num - 1
        assert sum(1 for _ in table.matches(other)) == num
        assert table.most_frequent(1, np.arange(7, dtype=np.uint64)) == (1, [(num - 7, 7, bytes(16))])
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 1_500_000  # where the entries have 3.6 MB
