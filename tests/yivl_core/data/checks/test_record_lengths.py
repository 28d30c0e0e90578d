import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.checks import record_lengths
from yivl_core.data.checks.record_lengths import Distribution, RecordLengths

BLOCKS = st.lists(st.lists(st.integers(-1, 300), max_size=5), max_size=5)


def distribution(blocks: list[list[int]], left_out: set[int]) -> Distribution | None:
    with RecordLengths() as lengths:
        for block in blocks:
            lengths.add(np.array(block, np.int32))
        return lengths.distribution(np.array(sorted(left_out), np.uint64))


@given(BLOCKS, st.sets(st.integers(0, 24)), st.integers(1, 7))
def test_a_distribution_is_that_of_the_sorted_list(blocks: list[list[int]], left_out: set[int], at_a_time: int) -> None:
    every = [length for block in blocks for length in block]
    left_out = {number for number in left_out if number < len(every)}
    kept = [(length, number) for number, length in enumerate(every) if length >= 0 and number not in left_out]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(record_lengths, "_READ_AT_A_TIME", at_a_time)
        found = distribution(blocks, left_out)
    if not kept:
        assert found is None
        return
    assert found is not None
    values = sorted(length for length, _ in kept)
    assert (found.num, found.total, found.shortest, found.longest) == (len(values), sum(values), values[0], values[-1])
    assert found.longest_number == min(number for length, number in kept if length == values[-1])
    assert found.median == values[(len(values) + 1) // 2 - 1]
    assert sum(value <= found.long for value in values) >= 0.95 * len(values)
    assert sum(value < found.long for value in values) < 0.95 * len(values)
    assert [sum(start <= value <= end for value in values) for start, end, _ in found.bins] == [size for *_, size in found.bins]
    assert sum(size for *_, size in found.bins) == len(values)
    assert len(found.bins) <= 20


@pytest.mark.parametrize(
    ("shortest", "longest", "width"), [(0, 18, 1), (0, 19, 2), (0, 80, 5), (10, 4095, 500), (3, 100_000, 10_000), (1030, 1048, 1)]
)
def test_bins_have_round_widths_and_begin_at_the_shortest(shortest: int, longest: int, width: int) -> None:
    found = distribution([[longest, shortest]], set())
    assert found is not None
    assert {end - start + 1 for start, end, _ in found.bins} == {width}
    assert found.bins[0][0] == shortest // width * width


def test_memory_does_not_grow_with_the_length_of_a_record() -> None:
    tracemalloc.start()
    found = distribution([[7, 1_000_000_000]], set())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert (found.total, found.median, found.longest) == (1_000_000_007, 7, 1_000_000_000)
    assert peak_bytes < 10_000_000
