"""95 % intervals of figures, each with the name of the method, which goes into reports.

| method | when | what |
|---|---|---|
| `wilson` | a share of independent rows | E. B. Wilson, 1927 |
| `cluster bootstrap` | 30 clusters or more | percentiles of resamples |
| `t, few clusters` | 2 to 29 clusters | Student's quantile for one cluster less, times the bootstrap's standard error |
| `wilson over clusters` | a share or mean that is the same in all resamples | Wilson's, each cluster as one row |
| `none, ...` | nothing can be said, and why | no bounds |

Where each cluster is one row, methods say `row` for `cluster`. Every interval is widened to hold the figure itself, which
percentiles of skewed resamples may leave out, and cut where figures of its kind end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from yivl_core.evaluation.metrics.metric import Floats, Kind

MIN_CLUSTERS = 30
"""From which on percentiles serve; with fewer they are too narrow."""

Z_975 = 1.959963984540054
"""Quantile 0.975 of the normal distribution."""

T_975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230,
)  # fmt: skip
"""Quantile 0.975 of Student's t with 1 to 29 degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods,
1.3.6.7.2, where it has three digits; a test compares these with SciPy's)."""

NO_SPREAD = "none, no spread"

NEGLIGIBLE = 1e-12  # for the size of the figure: what rounding may make of resamples that are the same
_MAX_UNEXPLAINED = 0.03
_LIMITS: Mapping[Kind, tuple[float, float]] = {
    "share": (0.0, 1.0),
    "mean": (0.0, 1.0),
    "rate": (0.0, math.inf),
    "score": (0.0, math.inf),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where a figure may well be.

    Attributes:
        low: its lower end; None without an interval.
        high: its upper end; None without an interval.
        method: how it was found, or why there is none.
    """

    low: float | None
    high: float | None
    method: str


def wilson(hits: int, num_rows: int) -> Interval:
    """Wilson's score interval of a share of independent rows, without correction for continuity.

    E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927).
    """
    if not num_rows:
        return _none("no rows")
    return _wilson(hits / num_rows, num_rows, "wilson")


def figure_interval(point: float, resampled: Floats, *, kind: Kind, num_clusters: int, num_rows: int) -> Interval:
    """The interval of a figure, by the method that fits its kind and the number of clusters.

    Args:
        point: the figure; nan without rows. No kind of figure is negative.
        resampled: float64 [num_resamples], the figure of each resample; nan where none of its rows was drawn.
        kind: of the metric.
        num_clusters: clusters with a row that the figure is made of (not groups of them).
        num_rows: rows that the figure is made of.
    """
    if math.isnan(point):
        return _none("not defined" if num_rows else "no rows")
    lowest, highest = _LIMITS[kind]
    assert lowest <= point <= highest, f"a {kind} of {point} is not between {lowest} and {highest}"
    if kind == "share" and num_rows == num_clusters:
        return wilson(round(point * num_rows), num_rows)
    limits = (lowest, highest)
    interval = bootstrap_interval(point, resampled, num_clusters=num_clusters, num_rows=num_rows, limits=limits)
    if interval.method == NO_SPREAD and highest == 1:  # of all distributions with this mean, 0 and 1 vary most
        return _wilson(point, num_clusters, f"wilson over {_unit(num_clusters, num_rows)}s")
    return interval


def bootstrap_interval(
    point: float,
    resampled: Floats,
    *,
    num_clusters: int,
    num_rows: int,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """The interval of anything that was resampled, as a difference.

    Args:
        point: the value itself.
        resampled: float64 [num_resamples]; nan where it cannot be told.
        num_clusters: clusters with a row that the value is made of.
        num_rows: rows that the value is made of.
        limits: the least and the most that the value can be.
    """
    unit, values = _unit(num_clusters, num_rows), resampled[~np.isnan(resampled)]
    if math.isnan(point) or not num_clusters:
        return _none("not defined" if num_rows else "no rows")
    if num_clusters == 1:
        return _none(f"one {unit}")
    if _is_missing_too_often(resampled, num_clusters):
        return _none("empty resamples")
    if np.ptp(values) <= NEGLIGIBLE * max(1.0, abs(point)):
        return Interval(low=None, high=None, method=NO_SPREAD)
    if num_clusters >= MIN_CLUSTERS:
        low, high = map(float, np.quantile(values, (0.025, 0.975)))
        return _hold(point, low, high, limits, f"{unit} bootstrap")
    margin = T_975[num_clusters - 2] * standard_error(values, num_clusters)
    return _hold(point, point - margin, point + margin, limits, f"t, few {unit}s")


def standard_error(resampled: Floats, num_clusters: int) -> float:
    """The bootstrap's standard error; nan with fewer than two resamples or clusters.

    Resamples of K clusters vary as the clusters do around their own mean, so by K - 1 / K too little (B. Efron and R. Tibshirani,
    An Introduction to the Bootstrap, chapter 5); this is set right.

    Args:
        resampled: float64 [num_resamples]; nan is left out.
        num_clusters: clusters with a row that the figure is made of.
    """
    values = resampled[~np.isnan(resampled)]
    if len(values) < 2 or num_clusters < 2:
        return math.nan
    mean = math.fsum(values) / len(values)  # fsum: the order of resamples decides nothing, nor does the processor
    variance = math.fsum((values - mean) ** 2) / (len(values) - 1)
    return math.sqrt(variance * num_clusters / (num_clusters - 1))


def _is_missing_too_often(resampled: Floats, num_clusters: int) -> bool:
    """Of many groups, a resample has none of K given ones with probability exp(-K); more has a cause that K does not tell."""
    missing = float(np.isnan(resampled).mean()) if len(resampled) else 1.0
    return missing > math.exp(-num_clusters) + _MAX_UNEXPLAINED


def _wilson(share: float, num_rows: int, method: str) -> Interval:
    weight = Z_975**2 / num_rows
    middle = (share + weight / 2) / (1 + weight)
    margin = Z_975 * math.sqrt(share * (1 - share) / num_rows + weight / (4 * num_rows)) / (1 + weight)
    low = 0.0 if share == 0 else middle - margin
    return _hold(share, low, 1.0 if share == 1 else middle + margin, (0.0, 1.0), method)


def _hold(point: float, low: float, high: float, limits: tuple[float, float], method: str) -> Interval:
    lowest, highest = limits
    return Interval(low=max(lowest, min(low, point)), high=min(highest, max(high, point)), method=method)


def _none(reason: str) -> Interval:
    return Interval(low=None, high=None, method=f"none, {reason}")


def _unit(num_clusters: int, num_rows: int) -> str:
    return "row" if num_rows == num_clusters else "cluster"
