"""Counts of rows -> figures with n and a 95 % interval, as the JSON of a report: of all rows, of answered ones, and of slices.

All intervals of a report come from the same resamples of clusters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from yivl_core.evaluation.metrics.metric import Counts, Metric
from yivl_core.evaluation.scoring import ScoredRows
from yivl_core.evaluation.slices import Slice
from yivl_core.evaluation.statistics.bootstrap import Bootstrap
from yivl_core.evaluation.statistics.clusters import Clusters
from yivl_core.evaluation.statistics.intervals import NEGLIGIBLE, Interval, figure_interval, standard_error
from yivl_core.evaluation.statistics.paired import smallest_difference
from yivl_core.evaluation.texts.normalisation import describe_normaliser

Mask = npt.NDArray[np.bool_]

_MAX_RATE = 1.0
_NUM_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a figure is made of.

    Attributes:
        metric: what the counts are of.
        counts: int64 [num_rows, num_columns].
        rows: bool [num_rows], those that count; None: all.
    """

    metric: Metric
    counts: Counts
    rows: Mask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """The clusters of the rows, and the draws from them.

    Attributes:
        clusters: which rows belong together.
        bootstrap: of their groups.
    """

    clusters: Clusters
    bootstrap: Bootstrap

    def figures(self, measured: Sequence[Measured]) -> list[dict[str, Any]]:
        """Value, n, interval, standard error, sums and number of clusters of each; all are resampled together, in one product."""
        by_group = [self.clusters.sum_by_group(one.counts, one.rows) for one in measured]
        resampled = self.bootstrap.sums(np.concatenate(by_group, axis=1))
        starts = np.cumsum([0, *(sums.shape[1] for sums in by_group)])
        return [
            self._figure(one, sums.sum(axis=0), resampled[:, start : start + sums.shape[1]])
            for one, sums, start in zip(measured, by_group, starts[:-1], strict=True)
        ]

    def _figure(self, measured: Measured, sums: Counts, resampled: npt.NDArray[np.float64]) -> dict[str, Any]:
        metric, is_in = measured.metric, measured.counts[:, 0] > 0
        num_clusters = self.clusters.count_among(is_in if measured.rows is None else is_in & measured.rows)
        value, figures = float(metric.figure(sums)), metric.figure(resampled)
        interval = figure_interval(value, figures, kind=metric.kind, num_clusters=num_clusters, num_rows=int(sums[0]))
        return {
            "value": number(value),
            "n": int(sums[0]),
            "num_clusters": num_clusters,
            "interval": interval_json(interval),
            "standard_error": number(standard_error(figures, num_clusters)),
            "sums": {name: int(total) for name, total in zip(metric.columns, sums, strict=True)},
        }


def figures_json(rows: ScoredRows, resampling: Resampling) -> dict[str, Any]:
    """All metrics by name: what they are, their figures over all rows, and over answered ones."""
    pairs = list(zip(rows.metrics, rows.counts, strict=True))
    of_all = resampling.figures([Measured(metric=metric, counts=counts) for metric, counts in pairs])
    of_answered = resampling.figures([Measured(metric=metric, counts=counts, rows=~rows.has_failed) for metric, counts in pairs])
    return {
        metric.name: describe_metric(metric)
        | figure
        | {"smallest_difference": _smallest_difference(figure), "answered_rows": _brief(answered)}
        for (metric, _), figure, answered in zip(pairs, of_all, of_answered, strict=True)
    }


def _smallest_difference(figure: dict[str, Any]) -> float | None:
    """Of two independent measurements like this one, whose variances add up; pairs show smaller ones.

    Rows that do not vary, as where all are right, do not tell how others would: None.
    """
    error, value = figure["standard_error"], figure["value"]
    if error is None or value is None or error <= NEGLIGIBLE * max(1.0, value):
        return None
    return smallest_difference(error * math.sqrt(2))


def _brief(figure: dict[str, Any]) -> dict[str, Any]:
    return {name: figure[name] for name in ("value", "n", "interval")}


def describe_metric(metric: Metric) -> dict[str, Any]:
    """What a report says of a metric itself."""
    return {
        "title": metric.title,
        "definition": metric.definition,
        "version": metric.version,
        "best": metric.best,
        "kind": metric.kind,
        "normaliser": None if metric.normaliser is None else describe_normaliser(metric.normaliser),
    }


def slices_json(rows: ScoredRows, resampling: Resampling, names: Sequence[str]) -> list[dict[str, Any]]:
    """Some metrics of each value of each slice."""
    chosen = [(metric, counts) for metric, counts in zip(rows.metrics, rows.counts, strict=True) if metric.name in names]
    return [{"name": part.name, "values": _values_json(part, chosen, resampling)} for part in rows.slices]


def _values_json(part: Slice, chosen: Sequence[tuple[Metric, Counts]], resampling: Resampling) -> list[dict[str, Any]]:
    masks = [part.codes == code for code in range(len(part.values))]
    measured = [Measured(metric=metric, counts=counts, rows=mask) for mask in masks for metric, counts in chosen]
    figures = iter(resampling.figures(measured))
    return [
        {
            "value": value,
            "num_rows": int(np.count_nonzero(mask)),
            "figures": {metric.name: _brief(next(figures)) for metric, _ in chosen},
        }
        for value, mask in zip(part.values, masks, strict=True)
    ]


def histogram_json(metric: Metric, counts: Counts) -> list[dict[str, Any]]:
    """How many rows have which figure of their own: in tenths from 0 to 1, 0 and 1 and more apart.

    Only of metrics whose figures of rows lie there: a score of another scale gives an empty list.
    """
    values = row_values(metric, counts)
    values = values[~np.isnan(values)]
    if metric.kind == "score":
        return []
    bins: list[tuple[float, float | None, int]] = [(0.0, 0.0, int(np.count_nonzero(values == 0)))]
    inside = values[(values > 0) & (values < _MAX_RATE)]
    places = np.minimum((inside * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    numbers = np.bincount(places, minlength=_NUM_BINS)
    bins += [(place / _NUM_BINS, (place + 1) / _NUM_BINS, int(total)) for place, total in enumerate(numbers)]
    bins.append((_MAX_RATE, None, int(np.count_nonzero(values >= _MAX_RATE))))
    return [{"low": low, "high": high, "num_rows": total} for low, high, total in bins]


def row_values(metric: Metric, counts: Counts) -> npt.NDArray[np.float64]:
    """The figure of each row by itself, float64 [num_rows]; nan for rows that the metric is not defined for.

    A row without anything to divide by, as an empty reference, counts as 1 with an error and as 0 without.
    """
    values = metric.figure(counts)
    if metric.kind == "rate":
        has_errors = counts[:, 2:].any(axis=1).astype(np.float64)
        values = np.where(np.isnan(values), has_errors, values)
    return np.where(counts[:, 0] > 0, values, np.nan)


def number(value: float) -> float | None:
    """As JSON has it: null where there is none."""
    return None if math.isnan(value) else value


def interval_json(interval: Interval) -> dict[str, Any]:
    """An interval as a report has it."""
    return {"low": interval.low, "high": interval.high, "method": interval.method}
