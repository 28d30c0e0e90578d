import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from yivl_core.evaluation.statistics.bootstrap import Bootstrap


def slow_draws(seed: int, num_groups: int, num_resamples: int) -> list[list[int]]:
    """The groups of each resample: O'Neill's PCG64 (XSL RR 128/64) in whole numbers, from numpy's first state."""
    state = np.random.PCG64(seed).state["state"]
    number, increment, draws = int(state["state"]), int(state["inc"]), []
    for _ in range(num_groups * num_resamples):
        number = (number * 0x2360ED051FC65DA44385DF649FCCF645 + increment) % 2**128
        folded, turn = (number >> 64) ^ (number % 2**64), number >> 122
        bits = (folded >> turn | folded << (64 - turn)) % 2**64
        draws.append((bits >> 32) * num_groups >> 32)
    return [draws[start : start + num_groups] for start in range(0, len(draws), num_groups)]


def test_the_random_stream_stays_as_it_is() -> None:
    """By `slow_draws` above: other draws would change intervals of reports that were made before."""
    sums = Bootstrap(7, num_resamples=3, seed=0).sums(10 ** np.arange(7, dtype=np.int64)[:, None])
    assert [f"{total:07.0f}" for total in sums[:, 0]] == ["1120012", "2201002", "1101211"]


@pytest.mark.parametrize(("seed", "num_groups"), [(0, 1), (0, 2), (1, 29), (2, 30), (7, 113)])
def test_draws_are_those_of_the_published_generator(seed: int, num_groups: int) -> None:
    weights = Bootstrap(num_groups, num_resamples=5, seed=seed).sums(np.eye(num_groups, dtype=np.int64))
    expected = [[float(draws.count(group)) for group in range(num_groups)] for draws in slow_draws(seed, num_groups, 5)]
    assert weights.tolist() == expected


def test_weights_are_the_same_for_each_call_and_another_seed_gives_others() -> None:
    values = np.arange(20, dtype=np.int64)[:, None]
    bootstrap = Bootstrap(10, num_resamples=50, seed=3)
    first, second = bootstrap.sums(values[:10]), bootstrap.sums(np.hstack([values[10:], values[:10]]))
    assert (
        first[:, 0].tolist() == second[:, 1].tolist() == Bootstrap(10, num_resamples=50, seed=3).sums(values[:10])[:, 0].tolist()
    )
    assert first.tolist() != Bootstrap(10, num_resamples=50, seed=4).sums(values[:10]).tolist()


def test_fewer_resamples_are_the_first_of_more() -> None:
    values = np.arange(10, dtype=np.int64)[:, None]
    assert Bootstrap(10, num_resamples=5).sums(values).tolist() == Bootstrap(10, num_resamples=300).sums(values)[:5].tolist()


@pytest.mark.parametrize("num_groups", [1, 2, 29, 30, 10_000])
def test_each_resample_draws_as_many_groups_as_there_are(num_groups: int) -> None:
    sums = Bootstrap(num_groups, num_resamples=300).sums(np.ones((num_groups, 1), np.int64))
    assert sums.shape == (300, 1)
    assert sums.dtype == np.float64
    assert set(sums[:, 0]) == {num_groups}


def test_nothing_has_no_sums() -> None:
    assert Bootstrap(0, num_resamples=4).sums(np.zeros((0, 2), np.int64)).tolist() == [[0, 0]] * 4


@given(by_group=nps.arrays(np.int64, (6, 2), elements=st.integers(-(2**62), 2**62)))
def test_sums_of_any_size_are_whole_numbers_rounded_once(by_group: np.ndarray) -> None:
    weights = Bootstrap(6, num_resamples=20, seed=5).sums(np.eye(6, dtype=np.int64)).astype(int).tolist()
    expected = [[float(sum(w * int(x) for w, x in zip(row, column, strict=True))) for column in by_group.T] for row in weights]
    assert Bootstrap(6, num_resamples=20, seed=5).sums(by_group).tolist() == expected


def test_spread_of_a_total_is_that_of_theory() -> None:
    """The variance of a sum of K draws is K times the variance of the values; 20,000 resamples tell it to about 1 %."""
    values = np.array([[value * value] for value in range(40)], np.int64)
    sums = Bootstrap(40, num_resamples=20_000, seed=1).sums(values)[:, 0]
    assert float(sums.std()) == pytest.approx(math.sqrt(40 * values.var()), rel=0.03)
    assert float(sums.mean()) == pytest.approx(float(values.sum()), rel=0.005)


def test_memory_stays_small() -> None:
    tracemalloc.start()
    try:
        Bootstrap(10_000, num_resamples=2_000).sums(np.ones((10_000, 100), np.int64))
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
