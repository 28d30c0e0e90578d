"""Two models on the same rows: how far they differ, and whether chance could have made it.

Differences are resampled, not figures: what is hard for both models falls out, and two intervals that overlap say nothing. The
intervals are those of `intervals.py`, and p values go with them: of percentiles, or Student's with few clusters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from yivl_core.evaluation.metrics.metric import Floats, Kind
from yivl_core.evaluation.statistics.intervals import (
    MIN_CLUSTERS,
    NEGLIGIBLE,
    NO_SPREAD,
    T_975,
    Z_975,
    Interval,
    bootstrap_interval,
    standard_error,
)

LEVEL = 0.05
NO_DIFFERENCE = "no difference"

_Z_80 = 0.8416212335729143  # quantile 0.8 of the normal distribution
_LIMITS: Mapping[Kind, tuple[float, float]] = {
    "share": (-1.0, 1.0),
    "mean": (-1.0, 1.0),
    "rate": (-math.inf, math.inf),
    "score": (-math.inf, math.inf),
}


class Verdict(StrEnum):
    """What can be said of a model beside the one that it is compared with."""

    BETTER = "better"
    WORSE = "worse"
    NOT_DISTINGUISHABLE = "not distinguishable"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """A model's figure minus the baseline's, over the same rows.

    Attributes:
        difference: of the figures; nan without rows.
        interval: of the difference.
        p_value: two-sided; None where nothing can be tested.
        smallest_detectable: true difference that would be found in 80 % of such comparisons; None without a standard error.
        verdict: a model is told apart where `p_value` is below `LEVEL` and the interval, if there is one, leaves out 0; without a
            difference nothing compares.
    """

    difference: float
    interval: Interval
    p_value: float | None
    smallest_detectable: float | None
    verdict: Verdict


def compare_pairs(
    difference: float,
    resampled: Floats,
    *,
    kind: Kind,
    best: Literal["low", "high"],
    num_clusters: int,
    num_rows: int,
) -> PairedDifference:
    """What a difference of two figures says.

    Args:
        difference: the model's figure minus the baseline's; nan without rows.
        resampled: float64 [num_resamples], the same of each resample, both figures with the same weights.
        kind: of the metric.
        best: which of its figures are good.
        num_clusters: clusters with a row that the figures are made of.
        num_rows: rows that the figures are made of.
    """
    if _are_equal(difference, resampled):
        return _no_difference(difference)
    interval = bootstrap_interval(difference, resampled, num_clusters=num_clusters, num_rows=num_rows, limits=_LIMITS[kind])
    if interval.low is None:
        # Each cluster differs in the same way, so its sign is all there is to test.
        p_value, smallest = mcnemar(0, num_clusters) if interval.method == NO_SPREAD else None, None
    else:
        p_value, smallest = _test(difference, resampled, num_clusters)
    return PairedDifference(
        difference=difference,
        interval=interval,
        p_value=p_value,
        smallest_detectable=smallest,
        verdict=_judge(difference, interval, p_value, best),
    )


def mcnemar(num_worse: int, num_better: int) -> float:
    """Two-sided p of as many changes for the worse and for the better, were both as likely: McNemar's test, exact binomial.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947). Rows count
    as independent, so of clusters it is a second opinion.

    Args:
        num_worse: rows that only the baseline has right.
        num_better: rows that only the model has right.
    """
    fewer, total = min(num_worse, num_better), num_worse + num_better
    if 2 * fewer == total:
        return 1.0
    largest = math.lgamma(total + 1) - math.lgamma(fewer + 1) - math.lgamma(total - fewer + 1) - total * math.log(2)
    term, terms = 1.0, 1.0  # of the binomial sum, from its largest term down, in units of that
    for count in range(fewer, 0, -1):
        term *= count / (total - count + 1)
        terms += term
        if term < 1e-17 * terms:
            break
    return min(1.0, 2 * terms * math.exp(largest))


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p: twice the share of resamples on the other side of 0, the sample itself counted among them.

    A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application, section 4.2.3, for (1 + count) / (1 + resamples).

    Args:
        differences: float64 [num_resamples], at least one that is not nan; nan is left out.
    """
    known = differences[~np.isnan(differences)]
    assert len(known), "there are no differences to test"
    other_side = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0))
    return min(1.0, 2 * (1 + int(other_side)) / (1 + len(known)))


def student_p(t: float, degrees: int) -> float:
    """Two-sided p of Student's t.

    M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: a finite sum for whole degrees of freedom.

    Args:
        t: the difference over its standard error.
        degrees: of freedom, from 1.
    """
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine, 0.0) if degrees % 2 else (1.0, 0.0)
    for power in range(degrees % 2, degrees - 1, 2):  # of the cosine
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    inside = 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total
    return max(0.0, 1 - inside)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, adjusted so that one in twenty such families has a false finding at 5 %.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, (len(p_values) - step) * p_values[index])
        adjusted[index] = min(1.0, least)
    return adjusted


def smallest_difference(error: float, critical: float = Z_975) -> float:
    """The true difference that a two-sided test at 5 % finds in 80 % of cases.

    E. Miller, Adding Error Bars to Evals, arXiv 2411.00640, section 5; J. Cohen, Statistical Power Analysis, chapter 2.

    Args:
        error: the difference's standard error.
        critical: quantile 0.975 of the test: Student's with few clusters.
    """
    return (critical + _Z_80) * error


def _are_equal(difference: float, resampled: Floats) -> bool:
    known = resampled[~np.isnan(resampled)]
    return abs(difference) <= NEGLIGIBLE and len(known) > 0 and bool(np.all(np.abs(known) <= NEGLIGIBLE))


def _no_difference(difference: float) -> PairedDifference:
    return PairedDifference(
        difference=difference,
        interval=Interval(low=min(0.0, difference), high=max(0.0, difference), method=NO_DIFFERENCE),
        p_value=1.0,
        smallest_detectable=None,
        verdict=Verdict.NOT_DISTINGUISHABLE,
    )


def _test(difference: float, resampled: Floats, num_clusters: int) -> tuple[float, float]:
    """The p value and the smallest detectable difference, by the method that the interval has."""
    error = standard_error(resampled, num_clusters)
    if num_clusters >= MIN_CLUSTERS:
        return bootstrap_p(resampled), smallest_difference(error)
    return student_p(difference / error, num_clusters - 1), smallest_difference(error, T_975[num_clusters - 2])


def _judge(difference: float, interval: Interval, p_value: float | None, best: Literal["low", "high"]) -> Verdict:
    if math.isnan(difference):
        return Verdict.NOT_COMPARABLE
    holds_zero = interval.low is not None and interval.high is not None and interval.low <= 0 <= interval.high
    if p_value is None or p_value >= LEVEL or holds_zero:
        return Verdict.NOT_DISTINGUISHABLE
    return Verdict.BETTER if (difference > 0) == (best == "high") else Verdict.WORSE
