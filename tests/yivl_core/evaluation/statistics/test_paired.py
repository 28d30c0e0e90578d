import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from yivl_core.evaluation.metrics.metric import Kind
from yivl_core.evaluation.statistics.bootstrap import Bootstrap
from yivl_core.evaluation.statistics.intervals import T_975, Interval, standard_error
from yivl_core.evaluation.statistics.paired import (
    PairedDifference,
    Verdict,
    bootstrap_p,
    compare_pairs,
    holm,
    mcnemar,
    smallest_difference,
    student_p,
)

Best = Literal["low", "high"]
BEST: list[Best] = ["low", "high"]
KINDS: list[Kind] = ["share", "mean", "rate", "score"]


@given(num_worse=st.integers(0, 3_000), num_better=st.integers(0, 3_000))
def test_mcnemar_is_the_exact_binomial_test(num_worse: int, num_better: int) -> None:
    total = num_worse + num_better
    expected = stats.binomtest(num_worse, total).pvalue if total else 1.0
    assert mcnemar(num_worse, num_better) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("num_worse", "num_better", "p_value"),
    [(0, 0, 1.0), (0, 1, 1.0), (0, 5, 0.0625), (1, 5, 0.21875), (2, 2, 1.0), (8, 0, 2**-7)],
)
def test_mcnemar_by_hand(num_worse: int, num_better: int, p_value: float) -> None:
    assert mcnemar(num_worse, num_better) == pytest.approx(p_value, rel=1e-12)


@pytest.mark.parametrize(("num_worse", "num_better"), [(500_000, 501_500), (10**6, 10**6), (4_000_000, 4_004_000), (2, 10**6)])
def test_mcnemar_of_large_counts(num_worse: int, num_better: int) -> None:
    expected = min(1.0, 2 * stats.binom.cdf(min(num_worse, num_better), num_worse + num_better, 0.5))
    assert mcnemar(num_worse, num_better) == mcnemar(num_better, num_worse) == pytest.approx(expected, rel=1e-6)


def test_bootstrap_p_counts_the_sample_itself() -> None:
    """By hand: 19 resamples, of which 2 are not above 0: 2 x (2 + 1) / 20; none at all: 2 / 20."""
    assert bootstrap_p(np.array([-1.0, 0.0] + [1.0] * 17)) == pytest.approx(0.3)
    assert bootstrap_p(np.ones(19)) == bootstrap_p(-np.ones(19)) == pytest.approx(0.1)
    assert bootstrap_p(np.array([np.nan] + [1.0] * 19)) == pytest.approx(0.1)


def test_bootstrap_p_of_no_difference_is_one() -> None:
    assert bootstrap_p(np.zeros(200)) == 1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_bootstrap_p_is_a_probability_and_has_no_direction(differences: list[float]) -> None:
    p_value = bootstrap_p(np.array(differences))
    assert 0 < p_value <= 1
    assert p_value == bootstrap_p(-np.array(differences))


@given(t=st.floats(0, 50), degrees=st.integers(1, 29))
def test_student_p_is_that_of_scipy(t: float, degrees: int) -> None:
    assert student_p(t, degrees) == student_p(-t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("degrees", [1, 2, 14, 28, 29])
def test_student_p_and_quantiles_agree(degrees: int) -> None:
    assert student_p(T_975[degrees - 1], degrees) == pytest.approx(0.05, abs=1e-7)


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06 (not below 0.06 before it), 0.04 x 1 (not below 0.06)."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8), level=st.floats(0.001, 0.999))
def test_holm_rejects_what_its_steps_reject(p_values: list[float], level: float) -> None:
    """S. Holm, 1979: from the smallest on, compare with level / (tests that are left), and stop at the first that is above."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = set[int]()
    for step, index in enumerate(order):
        if (len(p_values) - step) * p_values[index] > level:
            break
        rejected.add(index)
    assert {index for index, adjusted in enumerate(holm(p_values)) if adjusted <= level} == rejected


def test_smallest_difference_is_found_in_four_of_five_cases() -> None:
    smallest = smallest_difference(0.01)
    assert smallest == pytest.approx(0.02801585)
    found = stats.norm.sf(stats.norm.ppf(0.975) - smallest / 0.01) + stats.norm.cdf(stats.norm.ppf(0.025) - smallest / 0.01)
    assert found == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("best", BEST)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_clusters", [1, 2, 29, 30, 10_001])
def test_a_model_against_itself_differs_in_nothing(best: Best, kind: Kind, num_clusters: int) -> None:
    pair = compare_pairs(0.0, np.zeros(200), kind=kind, best=best, num_clusters=num_clusters, num_rows=20_000)
    assert pair == PairedDifference(
        difference=0.0,
        interval=Interval(low=0.0, high=0.0, method="no difference"),
        p_value=1.0,
        smallest_detectable=None,
        verdict=Verdict.NOT_DISTINGUISHABLE,
    )


@pytest.mark.parametrize(
    ("difference", "best", "verdict"),
    [(0.1, "high", "better"), (0.1, "low", "worse"), (-0.1, "high", "worse"), (-0.1, "low", "better")],
)
@pytest.mark.parametrize("num_clusters", [5, 50])
def test_verdict_goes_by_what_is_good(difference: float, best: Best, verdict: str, num_clusters: int) -> None:
    resampled = difference + np.linspace(-0.01, 0.01, 199)
    pair = compare_pairs(difference, resampled, kind="rate", best=best, num_clusters=num_clusters, num_rows=500)
    assert pair.verdict == verdict
    assert pair.p_value is not None
    assert pair.p_value < 0.05


def test_differences_of_many_clusters_by_hand() -> None:
    """Of 199 resamples 3 are not above 0: p = 2 x 4 / 200, and the 2.5 % percentile lies just above the fifth."""
    resampled = np.array([-0.02, -0.01, 0.0] + [0.01] * 3 + [0.02] * 193)
    pair = compare_pairs(0.02, resampled, kind="share", best="high", num_clusters=40, num_rows=90)
    assert (pair.p_value, pair.verdict) == (pytest.approx(0.04), Verdict.BETTER)
    assert pair.interval == Interval(low=0.01, high=0.02, method="cluster bootstrap")
    assert pair.smallest_detectable == pytest.approx(2.801585 * standard_error(resampled, 40))


def test_differences_of_few_clusters_are_students() -> None:
    """Clusters of one row: scipy's one-sample t test of the rows' differences, but for the chance of the resamples."""
    values = [5, -1, 3, 4, 0, 2]
    resampled = Bootstrap(6, 20_000).sums(np.array(values, np.int64)[:, None])[:, 0] / 6
    pair = compare_pairs(sum(values) / 6, resampled, kind="score", best="high", num_clusters=6, num_rows=6)
    assert pair.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.05)
    assert pair.interval.method == "t, few rows"
    assert pair.verdict == "not distinguishable"
    assert pair.smallest_detectable == pytest.approx((2.570582 + 0.841621) * stats.sem(values), rel=0.02)


@pytest.mark.parametrize(
    ("num_clusters", "p_value", "verdict"), [(5, 2**-4, "not distinguishable"), (6, 2**-5, "better"), (40, 2**-39, "better")]
)
def test_the_same_difference_in_all_clusters_is_a_matter_of_its_sign(num_clusters: int, p_value: float, verdict: str) -> None:
    pair = compare_pairs(1.0, np.ones(200), kind="share", best="high", num_clusters=num_clusters, num_rows=500)
    assert (pair.p_value, pair.verdict) == (pytest.approx(p_value), verdict)
    assert pair.interval == Interval(low=None, high=None, method="none, no spread")
    assert pair.smallest_detectable is None


@pytest.mark.parametrize(
    ("difference", "num_clusters", "reason"),
    [(0.5, 1, "one cluster"), (math.nan, 9, "not defined"), (0.5, 40, "empty resamples")],
)
def test_without_an_interval_nothing_is_distinguished(difference: float, num_clusters: int, reason: str) -> None:
    resampled = np.array([np.nan] * 100 + [0.4, 0.6] * 50)
    pair = compare_pairs(difference, resampled, kind="rate", best="low", num_clusters=num_clusters, num_rows=90)
    verdict = "not comparable" if math.isnan(difference) else "not distinguishable"
    assert (pair.p_value, pair.smallest_detectable, pair.verdict) == (None, None, verdict)
    assert pair.interval == Interval(low=None, high=None, method=f"none, {reason}")


def test_a_difference_of_0_that_no_resample_knows_is_not_tested() -> None:
    pair = compare_pairs(0.0, np.full(200, np.nan), kind="rate", best="low", num_clusters=3, num_rows=9)
    assert (pair.p_value, pair.interval.method) == (None, "none, empty resamples")


def test_what_rounding_leaves_is_no_difference() -> None:
    pair = compare_pairs(1e-16, np.full(200, 1e-16), kind="rate", best="low", num_clusters=40, num_rows=90)
    assert (pair.p_value, pair.verdict) == (1.0, "not distinguishable")
    assert pair.interval == Interval(low=0.0, high=1e-16, method="no difference")


@given(
    clusters=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40),
    kind=st.sampled_from(KINDS),
    best=st.sampled_from(BEST),
)
def test_exchanged_models_exchange_the_verdict(clusters: list[tuple[int, int]], kind: Kind, best: Best) -> None:
    difference, resampled = _differences(clusters)
    shape = {"num_clusters": len(clusters), "num_rows": 4 * len(clusters)}
    pair = compare_pairs(difference, resampled, kind=kind, best=best, **shape)
    back = compare_pairs(-difference, -resampled, kind=kind, best=best, **shape)
    exchanged = {"better": "worse", "worse": "better"}
    assert back.verdict == exchanged.get(pair.verdict, pair.verdict)
    assert back.p_value == pytest.approx(pair.p_value)
    if pair.interval.low is not None and pair.interval.high is not None:
        assert (back.interval.high, back.interval.low) == pytest.approx((-pair.interval.low, -pair.interval.high))
        assert pair.interval.low <= difference <= pair.interval.high
        assert kind not in ("share", "mean") or -1 <= pair.interval.low <= pair.interval.high <= 1


@pytest.mark.parametrize(("num_clusters", "most"), [(10, 0.065), (60, 0.07)])
def test_equal_models_are_seldom_told_apart(num_clusters: int, most: float) -> None:
    """1,000 pairs of models that are right in the same share of rows, by receipts that are as hard for both; 5 % is the level."""
    draw = np.random.RandomState(2)  # its stream is frozen
    difficulty = draw.beta(4, 2, (1_000, num_clusters))
    worse_and_better = draw.binomial(12, np.stack([difficulty, difficulty]))
    gains = (worse_and_better[1] - worse_and_better[0]).astype(np.int64)
    resampled = Bootstrap(num_clusters).sums(gains.T) / (12 * num_clusters)
    verdicts = [
        compare_pairs(
            gain.sum() / (12 * num_clusters), resampled[:, index], kind="share", best="high",
            num_clusters=num_clusters, num_rows=12 * num_clusters,
        ).verdict
        for index, gain in enumerate(gains)
    ]  # fmt: skip
    told_apart = 1 - verdicts.count(Verdict.NOT_DISTINGUISHABLE) / 1_000
    assert 0.035 <= told_apart <= most


def _differences(clusters: list[tuple[int, int]]) -> tuple[float, npt.NDArray[np.float64]]:
    """Hits of two models, of 4 rows each."""
    gains = np.array([[second - first] for first, second in clusters], np.int64)
    return float(gains.sum()) / (4 * len(gains)), Bootstrap(len(gains), 300).sums(gains)[:, 0] / (4 * len(gains))
