import math
import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from yivl_core.evaluation.metrics.metric import Kind
from yivl_core.evaluation.statistics.bootstrap import Bootstrap
from yivl_core.evaluation.statistics.intervals import (
    MIN_CLUSTERS,
    T_975,
    Z_975,
    Interval,
    bootstrap_interval,
    figure_interval,
    standard_error,
    wilson,
)

KINDS: list[Kind] = ["share", "mean", "rate", "score"]


def resample(numerators: list[int], denominators: list[int], num_resamples: int = 500) -> npt.NDArray[np.float64]:
    sums = Bootstrap(len(numerators), num_resamples).sums(np.array([numerators, denominators], np.int64).T)
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


def bounds(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def test_quantiles_are_those_of_student_and_the_normal_distribution() -> None:
    assert list(T_975) == pytest.approx(stats.t.ppf(0.975, range(1, 30)), abs=5e-7)
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-15) == Z_975
    assert len(T_975) == MIN_CLUSTERS - 1


@given(num_rows=st.integers(1, 10**6), data=st.data())
def test_wilson_is_that_of_scipy(num_rows: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, num_rows))
    theirs = stats.binomtest(hits, num_rows).proportion_ci(method="wilson")
    interval = wilson(hits, num_rows)
    assert bounds(interval) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)
    assert 0 <= bounds(interval)[0] <= hits / num_rows <= bounds(interval)[1] <= 1
    assert interval.method == "wilson"


def test_wilson_of_all_and_of_none_ends_at_the_end() -> None:
    assert bounds(wilson(0, 10))[0] == 0
    assert bounds(wilson(10, 10))[1] == 1


def test_wilson_of_no_rows_is_none() -> None:
    assert wilson(0, 0) == Interval(low=None, high=None, method="none, no rows")


def test_a_share_of_independent_rows_has_wilsons_interval() -> None:
    assert figure_interval(0.25, np.zeros(9), kind="share", num_clusters=8, num_rows=8) == wilson(2, 8)


@pytest.mark.parametrize(("num_rows", "method"), [(80, "cluster bootstrap"), (40, "row bootstrap")])
def test_many_clusters_have_the_percentiles(num_rows: int, method: str) -> None:
    resampled = np.arange(401) / 400
    interval = figure_interval(0.5, resampled[::-1], kind="rate", num_clusters=40, num_rows=num_rows)
    assert bounds(interval) == pytest.approx((0.025, 0.975))
    assert interval.method == method


@pytest.mark.parametrize(("num_rows", "method"), [(9, "t, few clusters"), (5, "t, few rows")])
def test_few_clusters_have_students_interval(num_rows: int, method: str) -> None:
    """Deviation of the resamples 0.02, K = 5, by hand: 2.776445 (Student, 4 degrees) x 0.02 x sqrt(5/4) = 0.06208."""
    interval = figure_interval(0.5, np.array([0.48, 0.5, 0.52]), kind="rate", num_clusters=5, num_rows=num_rows)
    assert bounds(interval) == pytest.approx((0.43792, 0.56208), abs=1e-5)
    assert interval.method == method


@pytest.mark.parametrize(
    ("num_clusters", "method"),
    [(2, "t, few clusters"), (29, "t, few clusters"), (30, "cluster bootstrap"), (10_001, "cluster bootstrap")],
)
def test_thirty_clusters_are_many(num_clusters: int, method: str) -> None:
    interval = figure_interval(0.5, np.linspace(0.4, 0.6, 99), kind="mean", num_clusters=num_clusters, num_rows=20_000)
    assert interval.method == method


def test_students_interval_of_means_of_equal_clusters_is_that_of_the_textbook() -> None:
    """Clusters of one row each: the bootstrap's error of a mean is the standard error, but for the chance of 20,000 resamples."""
    values = [13, 17, 19, 23, 31, 37, 41, 47]
    interval = figure_interval(sum(values) / 8, resample(values, [1] * 8, 20_000), kind="score", num_clusters=8, num_rows=16)
    expected = stats.t.interval(0.95, 7, loc=np.mean(values), scale=stats.sem(values))
    assert bounds(interval) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_rows", "method"), [(7, "none, one cluster"), (0, "none, no rows")])
def test_one_cluster_has_no_interval(kind: Kind, num_rows: int, method: str) -> None:
    point, num_clusters = (0.5, 1) if num_rows else (math.nan, 0)
    interval = figure_interval(point, np.full(9, point), kind=kind, num_clusters=num_clusters, num_rows=num_rows)
    assert interval == Interval(low=None, high=None, method=method)


def test_one_row_that_is_no_share_has_no_interval() -> None:
    assert figure_interval(0.5, np.full(9, 0.5), kind="rate", num_clusters=1, num_rows=1).method == "none, one row"


@pytest.mark.parametrize("point", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("kind", ["share", "mean"])
@pytest.mark.parametrize("num_clusters", [2, 40])
def test_a_share_without_spread_counts_clusters_as_rows(point: float, kind: Kind, num_clusters: int) -> None:
    interval = figure_interval(point, np.full(9, point), kind=kind, num_clusters=num_clusters, num_rows=1_000)
    theirs = stats.binomtest(round(point * num_clusters), num_clusters).proportion_ci(method="wilson")
    assert bounds(interval) == pytest.approx((theirs.low, theirs.high))
    assert interval.method == "wilson over clusters"


@pytest.mark.parametrize("kind", ["rate", "score"])
def test_a_rate_without_spread_has_no_interval(kind: Kind) -> None:
    interval = figure_interval(0.0, np.zeros(9), kind=kind, num_clusters=50, num_rows=100)
    assert interval == Interval(low=None, high=None, method="none, no spread")


def test_resamples_without_rows_are_left_out() -> None:
    """Three clusters of many are in none of the drawn ones in 5 % of resamples."""
    resampled = np.concatenate([np.full(10, np.nan), np.linspace(0.4, 0.6, 190)])
    with_gaps = figure_interval(0.5, resampled, kind="rate", num_clusters=3, num_rows=9)
    assert with_gaps == figure_interval(0.5, resampled[10:], kind="rate", num_clusters=3, num_rows=9)
    assert with_gaps.method == "t, few clusters"


@pytest.mark.parametrize(("num_clusters", "num_missing"), [(2, 36), (3, 18), (40, 8), (40, 200)])
def test_more_resamples_without_rows_than_the_clusters_explain_give_no_interval(num_clusters: int, num_missing: int) -> None:
    resampled = np.linspace(0.4, 0.6, 200)
    resampled[:num_missing] = np.nan
    interval = figure_interval(0.5, resampled, kind="rate", num_clusters=num_clusters, num_rows=90)
    assert interval == Interval(low=None, high=None, method="none, empty resamples")


@pytest.mark.parametrize("num_clusters", [2, 3, 5])
def test_a_slice_of_few_clusters_among_many_has_an_interval(num_clusters: int) -> None:
    numerators = [3 * group + 1 if group < num_clusters else 0 for group in range(1_000)]
    denominators = [40 if group < num_clusters else 0 for group in range(1_000)]
    resampled = resample(numerators, denominators, 2_000)
    assert np.isnan(resampled).any()
    point = sum(numerators) / sum(denominators)
    assert figure_interval(point, resampled, kind="rate", num_clusters=num_clusters, num_rows=90).method == "t, few clusters"


def test_an_interval_is_widened_to_the_point() -> None:
    interval = figure_interval(0.9, np.linspace(0.1, 0.2, 99), kind="rate", num_clusters=40, num_rows=80)
    assert bounds(interval) == pytest.approx((0.1025, 0.9))
    assert bounds(bootstrap_interval(-0.9, np.linspace(0.1, 0.2, 99), num_clusters=40, num_rows=80))[0] == -0.9


@given(
    clusters=st.lists(
        st.integers(0, 9).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))), min_size=1, max_size=45
    ),
    kind=st.sampled_from(KINDS),
)
def test_intervals_hold_the_point_and_stay_where_figures_are(clusters: list[tuple[int, int]], kind: Kind) -> None:
    hits, rows = map(list, zip(*clusters, strict=True))
    point = sum(hits) / sum(rows) if sum(rows) else math.nan
    num_clusters = sum(map(bool, rows))
    interval = figure_interval(point, resample(hits, rows), kind=kind, num_clusters=num_clusters, num_rows=sum(rows))
    if interval.low is None:
        assert interval.high is None
        assert interval.method.startswith("none, ")
        return
    low, high = bounds(interval)
    assert 0 <= low <= point <= high
    assert high <= 1 or kind not in ("share", "mean")


@given(
    clusters=st.lists(st.tuples(st.integers(0, 5), st.integers(5, 9)), min_size=2, max_size=35),
    order=st.randoms(use_true_random=False),
)
def test_order_of_resamples_decides_nothing(clusters: list[tuple[int, int]], order: random.Random) -> None:
    hits, rows = map(list, zip(*clusters, strict=True))
    resampled = resample(hits, rows).tolist()
    point, shape = sum(hits) / sum(rows), {"num_clusters": len(rows), "num_rows": sum(rows)}
    first = figure_interval(point, np.array(resampled), kind="share", **shape)
    order.shuffle(resampled)
    assert figure_interval(point, np.array(resampled), kind="share", **shape) == first


def test_standard_error_is_that_of_theory() -> None:
    """Of a mean over 50 single rows: the sample's deviation over the root of 50 (scipy.stats.sem)."""
    values = [value * value for value in range(50)]
    assert standard_error(resample(values, [1] * 50, 20_000), 50) == pytest.approx(stats.sem(values), rel=0.02)


def test_standard_error_of_one_cluster_or_of_one_resample_is_unknown() -> None:
    assert math.isnan(standard_error(np.array([0.1, 0.2]), 1))
    assert math.isnan(standard_error(np.array([0.1, np.nan]), 5))


@pytest.mark.parametrize(("num_clusters", "method"), [(8, "t, few clusters"), (20, "t, few clusters"), (60, "cluster bootstrap")])
def test_intervals_hold_the_truth_as_often_as_they_say(num_clusters: int, method: str) -> None:
    """1,000 data sets; shares vary from cluster to cluster: Beta(4, 2), so intraclass correlation 1/7, of 5 to 20 rows."""
    draw = np.random.RandomState(1)  # its stream is frozen
    rows = draw.randint(5, 21, (1_000, num_clusters))
    hits = draw.binomial(rows, draw.beta(4, 2, rows.shape))
    sums = Bootstrap(num_clusters).sums(np.vstack([hits, rows]).T.astype(np.int64))
    num_held = 0
    for index, (total_hits, total_rows) in enumerate(zip(hits.sum(axis=1), rows.sum(axis=1), strict=True)):
        resampled = sums[:, index] / sums[:, 1_000 + index]
        interval = figure_interval(
            total_hits / total_rows, resampled, kind="share", num_clusters=num_clusters, num_rows=int(total_rows)
        )
        assert interval.method == method
        low, high = bounds(interval)
        num_held += low <= 2 / 3 <= high
    assert 0.92 <= num_held / 1_000 <= 0.97
