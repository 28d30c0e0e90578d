"""Which rows a report shows, and what it says of each: all of a few, else the worst, failed and changed ones, and some at random.

Chance is the order of the SHA-256 of sample ids: the same choice everywhere, and one that looks at no answer.
"""

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from yivl_core.evaluation.comparison import Group, MatchedRows, groups_of
from yivl_core.evaluation.figures import number, row_values
from yivl_core.evaluation.metrics.metric import BILLION, Counts, Floats, Metric
from yivl_core.evaluation.metrics.names import HYGIENE
from yivl_core.evaluation.rows import references_of
from yivl_core.evaluation.scoring import ScoredRows
from yivl_core.evaluation.texts.extraction import Extract, find_extractor
from yivl_core.outputs.predictions import Prediction, read_rows

WORST, RANDOM, FAILED = "worst", "random", "failed"
_NUM_MARKED = 50  # of each reason, where all rows are shown
_CHANGED = (Group.LOST, Group.MENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The rows to show.

    Attributes:
        places: among the scored rows, in record order.
        reasons: of each place, why it is shown.
        ranks: of places with an answer that is not right, from 1 for the worst of all rows.
        is_all: every row is shown.
    """

    places: list[int]
    reasons: dict[int, list[str]]
    ranks: dict[int, int]
    is_all: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The baseline beside the rows.

    Attributes:
        predictions: its folder.
        rows: as they were scored.
        matched: which belong together.
        is_comparable: whether they were asked the same in the same way.
    """

    predictions: str
    rows: ScoredRows
    matched: MatchedRows
    is_comparable: bool

    def groups_of(self, rows: ScoredRows) -> dict[int, Group]:
        """What became of each matched row, by its place; of none where the two do not compare."""
        if not self.is_comparable:
            return {}
        return dict(zip(self.matched.here.tolist(), groups_of(rows, self.rows, self.matched), strict=True))


def choose_rows(rows: ScoredRows, primary: Metric, groups: Mapping[int, Group], max_samples: int) -> Choice:
    """Choose the rows to show.

    Args:
        rows: all of them.
        primary: the metric by which rows are the worst.
        groups: what became of matched rows, by place; empty without a baseline.
        max_samples: most rows to show.
    """
    kept: dict[str, Iterable[int]] = {
        RANDOM: range(len(rows)),
        FAILED: np.flatnonzero(rows.has_failed).tolist(),
        **{group.value: [place for place in groups if groups[place] is group] for group in _CHANGED},
    }
    lists = {WORST: _worst(rows, primary)[:max_samples]}
    lists |= {reason: heapq.nsmallest(max_samples, places, key=partial(_chance, rows)) for reason, places in kept.items()}
    is_all = len(rows) <= max_samples
    reasons = {place: list[str]() for place in range(len(rows))} if is_all else _take_turns(lists, max_samples)
    for reason, places in lists.items() if is_all else ():
        for place in places[:_NUM_MARKED]:
            reasons[place].append(reason)
    ranks = {place: rank for rank, place in enumerate(lists[WORST], start=1) if place in reasons}
    return Choice(places=sorted(reasons), reasons=reasons, ranks=ranks, is_all=is_all)


def _take_turns(lists: Mapping[str, Sequence[int]], max_samples: int) -> dict[int, list[str]]:
    """The first of each list, then the second of each, and so on, until as many rows are chosen; with the reasons of each."""
    reasons: dict[int, list[str]] = {}
    for turn in zip_longest(*lists.values()):
        for reason, place in zip(lists, turn, strict=True):
            if len(reasons) == max_samples:
                return reasons
            if place is not None:
                reasons.setdefault(place, []).append(reason)
    return reasons


def samples_json(
    predictions: str, rows: ScoredRows, choice: Choice, *, extractor: str, baseline: Baseline | None
) -> list[dict[str, Any]]:
    """What the report says of each chosen row, in record order.

    Raises:
        OutputError, StorageError: as `read_predictions`.
    """
    extract = find_extractor(extractor)
    groups = {} if baseline is None else baseline.groups_of(rows)
    there = {} if baseline is None else dict(zip(baseline.matched.here.tolist(), baseline.matched.there.tolist(), strict=True))
    before = (
        {} if baseline is None else _load(baseline.predictions, baseline.rows, [there[p] for p in choice.places if p in there])
    )
    values = {metric.name: row_values(metric, counts) for metric, counts in zip(rows.metrics, rows.counts, strict=True)}
    found = []
    for place, prediction in zip(choice.places, _load(predictions, rows, choice.places).values(), strict=True):
        sample = _describe(prediction, extract(prediction.response) if prediction.response is not None else None)
        sample["values"] = {name: number(float(of_rows[place])) for name, of_rows in values.items() if name not in HYGIENE}
        sample["states"] = _states(rows, place)
        sample["slices"] = {part.name: part.values[int(part.codes[place])] for part in rows.slices}
        sample["reasons"] = choice.reasons[place]
        sample["worst_rank"] = choice.ranks.get(place)
        sample["group"] = groups[place].value if place in groups else None
        earlier = before.get(there[place]) if place in there else None
        sample["baseline"] = None if earlier is None else _describe_answer(earlier, extract)
        found.append(sample)
    return found


def _chance(rows: ScoredRows, place: int) -> bytes:
    return hashlib.sha256(rows.sample_ids[place].encode()).digest()


def _worst(rows: ScoredRows, primary: Metric) -> list[int]:
    """Answered rows that are not right, the worst first: those that cost the figure most."""
    counts = rows.counts_of(primary.name)
    harm = np.where(rows.has_failed, 0.0, _harm(primary, counts))
    if primary.kind == "score":  # of few words it can be 0 although every word is right
        harm = np.where(rows.counts_of("exact_match")[:, 1] > 0, 0.0, harm)
    order = np.lexsort((rows.record_indices, -harm))
    return [int(place) for place in order if harm[place] > 1 / BILLION]


def _harm(primary: Metric, counts: Counts) -> Floats:
    """How much worse each row makes the figure, float64 [num_rows]; 0 for rows that the metric is not defined for."""
    if primary.kind == "rate" and primary.best == "low":
        errors: Floats = counts[:, 2:].sum(axis=1).astype(np.float64)
        return errors
    values = row_values(primary, counts)
    best = np.nan_to_num(values).max(initial=1.0)
    return np.nan_to_num(values if primary.best == "low" else best - values)


def _load(predictions: str, rows: ScoredRows, places: Sequence[int]) -> dict[int, Prediction]:
    indices = {int(rows.record_indices[place]): place for place in places}
    return {indices[prediction.record_index]: prediction for prediction in read_rows(predictions, indices.keys())}


def _states(rows: ScoredRows, place: int) -> list[str]:
    """What is the matter with an answer, or that it is right."""
    names = [name for name in HYGIENE if rows.counts_of(name)[place, 1]]
    is_right = bool(rows.counts_of("exact_match")[place, 1])
    return [*names, *(["right"] if is_right else ["wrong"])]


def _describe(prediction: Prediction, answer: str | None) -> dict[str, Any]:
    return {
        "record_index": prediction.record_index,
        "sample_id": prediction.sample_id,
        "cluster_id": prediction.cluster_id,
        "source": prediction.source,
        "query": prediction.query,
        "num_earlier_rounds": len(prediction.history),
        "references": list(references_of(prediction)),
        "response": prediction.response,
        "answer": answer,
        "finish_reason": prediction.finish_reason,
        "error_kind": prediction.error_kind,
        "error": prediction.error,
        "images": [{"uri": image.uri, "sha256": image.sha256} for image in prediction.images],
    }


def _describe_answer(prediction: Prediction, extract: Extract) -> dict[str, Any]:
    response = prediction.response
    return {
        "response": response,
        "answer": None if response is None else extract(response),
        "finish_reason": prediction.finish_reason,
        "error_kind": prediction.error_kind,
    }
