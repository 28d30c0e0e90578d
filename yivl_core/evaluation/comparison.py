"""Two models on the same rows -> what a report says of them: whether they compare, and by how much they differ.

Rows belong together by `sample_id`. Where something else was asked, or in another way, nothing is compared unless it was allowed.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from yivl_core.evaluation.comparability import Difference, RowDifferences
from yivl_core.evaluation.figures import Resampling, interval_json, number, row_values
from yivl_core.evaluation.metrics.metric import Counts, Floats, Metric
from yivl_core.evaluation.scoring import ScoredRows
from yivl_core.evaluation.statistics.bootstrap import Bootstrap
from yivl_core.evaluation.statistics.clusters import group_clusters
from yivl_core.evaluation.statistics.paired import LEVEL, NO_DIFFERENCE, Verdict, compare_pairs, holm, mcnemar

Indices = npt.NDArray[np.int64]


class Group(StrEnum):
    """What became of an answer, by exact match: right or wrong in the baseline and here."""

    MENDED = "mended"
    LOST = "lost"
    STAYED_WRONG = "stayed wrong"
    STAYED_RIGHT = "stayed right"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchedRows:
    """The rows that both have.

    Attributes:
        here: int64 [num_matched], their places among the rows of the model.
        there: int64 [num_matched], the same of the baseline.
    """

    here: Indices
    there: Indices

    def __len__(self) -> int:
        return len(self.here)


def match_rows(rows: ScoredRows, baseline: ScoredRows) -> MatchedRows:
    """Find the rows of both with the same sample id, in the order of the model's."""
    places = {sample_id: place for place, sample_id in enumerate(baseline.sample_ids)}
    found = [(place, places[sample_id]) for place, sample_id in enumerate(rows.sample_ids) if sample_id in places]
    pairs = np.array(found, dtype=np.int64).reshape(len(found), 2)
    return MatchedRows(here=pairs[:, 0], there=pairs[:, 1])


def groups_of(rows: ScoredRows, baseline: ScoredRows, matched: MatchedRows) -> list[Group]:
    """What became of each matched row."""
    after = rows.counts_of("exact_match")[matched.here, 1] > 0
    before = baseline.counts_of("exact_match")[matched.there, 1] > 0
    names = {(False, True): Group.MENDED, (True, False): Group.LOST, (False, False): Group.STAYED_WRONG}
    return [names.get((bool(was), bool(now)), Group.STAYED_RIGHT) for was, now in zip(before, after, strict=True)]


def differences_json(manifests: Sequence[Difference], rows: RowDifferences, allowed: Collection[str]) -> list[dict[str, Any]]:
    """All that two runs do not share. What blocks and was not allowed makes them not comparable."""
    found = [
        _difference(one.kind, one.name, one.ours, one.theirs, blocks=one.is_blocking, warns=one.is_warning, allowed=allowed)
        for one in manifests
    ]
    for part, named in rows.differing.items():
        if named.num:
            found.append(_difference("data", f"{part} of {named}", "", "another", blocks=True, warns=False, allowed=allowed))
    for name, named, sides in (
        ("rows that only one side has", rows.only_here, ("{}", "missing")),
        ("rows that only one side has", rows.only_there, ("missing", "{}")),
    ):
        if named.num:
            ours, theirs = (side.format(named) for side in sides)
            found.append(_difference("rows", name, ours, theirs, blocks=True, warns=False, allowed=allowed))
    if rows.unknown_images.num:
        name = f"images of {rows.unknown_images}"
        found.append(_difference("data", name, "not known", "not known", blocks=False, warns=True, allowed=allowed))
    return found


def _difference(
    kind: str, name: str, ours: str, theirs: str, *, blocks: bool, warns: bool, allowed: Collection[str]
) -> dict[str, Any]:
    is_allowed = blocks and kind in allowed
    return {
        "kind": kind,
        "name": name,
        "ours": ours,
        "theirs": theirs,
        "is_blocking": blocks and not is_allowed,
        "is_allowed": is_allowed,
        "is_warning": warns,
    }


def comparison_json(
    rows: ScoredRows,
    baseline: ScoredRows,
    matched: MatchedRows,
    differences: Sequence[dict[str, Any]],
    *,
    primary: str,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What a report says of a model beside its baseline.

    Args:
        rows: of the model.
        baseline: its rows, by the same metrics.
        matched: which of them belong together.
        differences: from `differences_json`.
        primary: the metric that decides.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `verdict` is the primary metric's; where that is `not comparable`, `reason` says why. `figures` are empty unless
        `is_comparable`.
    """
    found: dict[str, Any] = {
        "differences": list(differences),
        "is_comparable": len(matched) > 0 and not any(one["is_blocking"] for one in differences),
        "num_matched": len(matched),
        "num_only_here": len(rows) - len(matched),
        "num_only_there": len(baseline) - len(matched),
        "verdict": Verdict.NOT_COMPARABLE.value,
        "reason": None,
        "figures": {},
        "groups": {},
    }
    if not found["is_comparable"]:
        blocking = "; ".join(one["name"] for one in differences if one["is_blocking"])
        found["reason"] = f"these differ: {blocking}" if len(matched) else "they have no row with a reference in common"
        return found
    groups = groups_of(rows, baseline, matched)
    found["groups"] = {group.value: groups.count(group) for group in Group}
    found["figures"] = _figures(rows, baseline, matched, primary=primary, num_resamples=num_resamples, seed=seed)
    found["verdict"] = found["figures"][primary]["verdict"]
    if found["verdict"] == Verdict.NOT_COMPARABLE:
        title = next(metric.title for metric in rows.metrics if metric.name == primary)
        found["reason"] = f"{title} is not defined for the rows that both have"
    return found


def _figures(
    rows: ScoredRows, baseline: ScoredRows, matched: MatchedRows, *, primary: str, num_resamples: int, seed: int
) -> dict[str, Any]:
    clusters = group_clusters(
        [rows.cluster_ids[place] for place in matched.here], [rows.sample_ids[place] for place in matched.here]
    )
    resampling = Resampling(clusters=clusters, bootstrap=Bootstrap(clusters.num_groups, num_resamples, seed))
    figures = {}
    for metric, ours, theirs in zip(rows.metrics, rows.counts, baseline.counts, strict=True):
        figures[metric.name] = _paired(metric, ours[matched.here], theirs[matched.there], resampling)
    others = [name for name, figure in figures.items() if name != primary and figure["p_value"] is not None]
    # Counts that are 0 on both sides test nothing, so they cost the others nothing.
    family = [name for name in others if figures[name]["interval"]["method"] != NO_DIFFERENCE]
    found = dict(zip(family, holm([figures[name]["p_value"] for name in family]), strict=True))
    adjusted = [found.get(name, figures[name]["p_value"]) for name in others]
    for name, p_value in zip(others, adjusted, strict=True):
        figures[name]["p_adjusted"] = p_value
        if p_value >= LEVEL:
            figures[name]["verdict"] = Verdict.NOT_DISTINGUISHABLE.value
    return figures


def _paired(metric: Metric, ours: Counts, theirs: Counts, resampling: Resampling) -> dict[str, Any]:
    both = (ours[:, 0] > 0) & (theirs[:, 0] > 0)
    ours, theirs = ours * both[:, None], theirs * both[:, None]
    value, before = (float(metric.figure(counts.sum(axis=0))) for counts in (ours, theirs))
    resampled = _resampled_figure(metric, ours, resampling) - _resampled_figure(metric, theirs, resampling)
    pairs = compare_pairs(
        value - before,
        resampled,
        kind=metric.kind,
        best=metric.best,
        num_clusters=resampling.clusters.count_among(both),
        num_rows=int(np.count_nonzero(both)),
    )
    num_better, num_worse = _count_changes(metric, ours, theirs)
    return {
        "value": number(value),
        "baseline": number(before),
        "n": int(np.count_nonzero(both)),
        "difference": number(pairs.difference),
        "interval": interval_json(pairs.interval),
        "p_value": pairs.p_value,
        "p_adjusted": None,
        "mcnemar_p": mcnemar(num_worse, num_better) if metric.kind == "share" else None,
        "smallest_detectable": pairs.smallest_detectable,
        "verdict": pairs.verdict.value,
        "num_improved": num_better,
        "num_worsened": num_worse,
        "num_equal": int(np.count_nonzero(both)) - num_better - num_worse,
    }


def _resampled_figure(metric: Metric, counts: Counts, resampling: Resampling) -> Floats:
    return metric.figure(resampling.bootstrap.sums(resampling.clusters.sum_by_group(counts)))


def _count_changes(metric: Metric, ours: Counts, theirs: Counts) -> tuple[int, int]:
    """How many rows are better and worse than in the baseline, each by its own figure."""
    gain = row_values(metric, ours) - row_values(metric, theirs)
    if metric.best == "low":
        gain = -gain
    return int(np.count_nonzero(gain > 0)), int(np.count_nonzero(gain < 0))
