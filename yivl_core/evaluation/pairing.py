"""Two models' predictions -> pairs of answers to the same records, in groups, with the figures of both and fair samples.

Rows belong together by `sample_id`. The baseline's answers are held in memory; of the other model's rows only the samples are.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from yivl_core.errors import DatasetError, OutputError
from yivl_core.evaluation.metrics.edits import Score, score_answer
from yivl_core.evaluation.rows import references_of
from yivl_core.evaluation.texts.normalisation import normalise
from yivl_core.outputs.predictions import Prediction

NUM_NAMED = 5  # rows of only one side whose names are told
_LEAST_OF_GROUP = 3


class Group(StrEnum):
    """What became of an answer; of a record without a reference only whether it became another one."""

    MENDED = "mended"
    LOST = "lost"
    STAYED_WRONG = "stayed wrong"
    STAYED_RIGHT = "stayed right"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one model made of a record.

    Attributes:
        text: the answer as it was written; None for a failed row.
        references: the right answers.
        is_cut: it ends at the most new tokens.
        error_kind: of a failed row.
    """

    text: str | None
    references: tuple[str, ...]
    is_cut: bool
    error_kind: str | None

    @classmethod
    def of(cls, prediction: Prediction) -> "Answer":
        """The answer of a row."""
        return cls(
            text=prediction.response,
            references=references_of(prediction),
            is_cut=prediction.finish_reason == "length",
            error_kind=prediction.error_kind,
        )

    @property
    def is_empty(self) -> bool:
        """There is an answer, with nothing in it."""
        return self.text is not None and not normalise(self.text)

    @property
    def is_right(self) -> bool:
        """It equals a reference after `normalise`."""
        return self.text is not None and normalise(self.text) in map(normalise, self.references)

    def equals(self, other: "Answer") -> bool:
        """Both say the same after `normalise`, or both failed."""
        if self.text is None or other.text is None:
            return self.text is other.text
        return normalise(self.text) == normalise(other.text)

    def score(self) -> Score:
        """Against the references, of which there has to be one."""
        return score_answer(None if self.text is None else normalise(self.text), [normalise(text) for text in self.references])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One record and what both models made of it. The record's columns are those of `prediction`."""

    group: Group
    prediction: Prediction
    before: Answer
    after: Answer


@dataclass(slots=True)
class Figures:
    """One model's figures over the matched records that have a reference; its answers to all matched records are counted."""

    score: Score = field(default_factory=Score)
    num_failed: int = 0
    num_empty: int = 0
    num_cut: int = 0

    def add(self, answer: Answer) -> None:
        """Take in one more answer."""
        self.num_failed += answer.text is None
        self.num_empty += answer.is_empty
        self.num_cut += answer.is_cut
        if answer.references:
            self.score += answer.score()


@dataclass(slots=True)
class Pairing:
    """What two folders of predictions say beside each other.

    Attributes:
        before, after: figures of the baseline and of the model in question.
        counts: matched records in each group.
        only_before, only_after: records in only one of the two.
        named_before, named_after: the sample ids of the first of those.
        samples: the pairs to show, in record order.
    """

    before: Figures = field(default_factory=Figures)
    after: Figures = field(default_factory=Figures)
    counts: Counter[Group] = field(default_factory=Counter)
    only_before: int = 0
    only_after: int = 0
    named_before: list[str] = field(default_factory=list)
    named_after: list[str] = field(default_factory=list)
    samples: list[Pair] = field(default_factory=list)

    @property
    def num_matched(self) -> int:
        """Records that both have answered."""
        return self.counts.total()

    def note_only_after(self, sample_id: str) -> None:
        """Count a record that the baseline lacks."""
        self.only_after += 1
        if len(self.named_after) < NUM_NAMED:
            self.named_after.append(sample_id)


def pair_predictions(before: Iterable[Prediction], after: Iterable[Prediction], num_samples: int) -> Pairing:
    """Match the rows of two models and choose samples.

    Args:
        before: rows of the baseline.
        after: rows of the model in question.
        num_samples: most pairs to show.

    Raises:
        DatasetError: no record is in both, or one has other references in the one than in the other.
        OutputError: two rows of one side have the same sample id.
    """
    answers = _answers_by_id(before)
    num_before = len(answers)
    pairing, candidates, seen = Pairing(), _Candidates(num_samples), set[str]()
    for prediction in after:
        _refuse_repeated(prediction.sample_id, seen)
        seen.add(prediction.sample_id)
        earlier = answers.pop(prediction.sample_id, None)
        if earlier is None:
            pairing.note_only_after(prediction.sample_id)
            continue
        pair = _to_pair(earlier, prediction)
        pairing.counts[pair.group] += 1
        pairing.before.add(pair.before)
        pairing.after.add(pair.after)
        candidates.add(pair)
    if not pairing.num_matched:
        raise DatasetError(
            f"none of the {len(seen)} rows of the predictions has the sample_id of one of the {num_before} rows of the baseline, "
            "so there is nothing to compare; run `yivl infer` with both models over the same dataset"
        )
    pairing.only_before, pairing.named_before = len(answers), list(answers)[:NUM_NAMED]
    pairing.samples = candidates.choose(pairing.counts)
    return pairing


def share_out(num_samples: int, counts: Mapping[Group, int]) -> dict[Group, int]:
    """How many samples each group gives: in proportion to its size, but at least three where it has as many.

    Where `num_samples` is too small for three of each, fewer are sure of each group, and the largest come first.
    """
    sizes = {group: counts[group] for group in Group if counts.get(group)}
    total, num_shown = sum(sizes.values()), min(num_samples, sum(sizes.values()))
    least = min(_LEAST_OF_GROUP, num_shown // len(sizes))
    shares = {group: min(least, size) for group, size in sizes.items()}
    while sum(shares.values()) < num_shown:
        open_groups = [group for group in sizes if shares[group] < sizes[group]]
        furthest = max(open_groups, key=lambda group: num_shown * sizes[group] - total * shares[group])
        shares[furthest] += 1
    return shares


class _Candidates:
    """The pairs of each group that are the first in the order of the SHA-256 of their sample id."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._heaps: dict[Group, list[tuple[int, Pair]]] = {group: [] for group in Group}

    def add(self, pair: Pair) -> None:
        heap = self._heaps[pair.group]
        push = heapq.heappush if len(heap) < self._num_samples else heapq.heappushpop
        digest = hashlib.sha256(pair.prediction.sample_id.encode()).digest()
        push(heap, (-int.from_bytes(digest), pair))  # ids differ, and so do their digests: pairs are never compared

    def choose(self, counts: Mapping[Group, int]) -> list[Pair]:
        pairs: list[Pair] = []
        for group, number in share_out(self._num_samples, counts).items():
            pairs += [pair for _, pair in heapq.nlargest(number, self._heaps[group], key=lambda entry: entry[0])]
        return sorted(pairs, key=lambda pair: pair.prediction.record_index)


def _answers_by_id(predictions: Iterable[Prediction]) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    for prediction in predictions:
        _refuse_repeated(prediction.sample_id, answers)
        answers[prediction.sample_id] = Answer.of(prediction)
    return answers


def _refuse_repeated(sample_id: str, seen: Iterable[str]) -> None:
    if sample_id in seen:
        raise OutputError(
            f"two rows of the same predictions have the sample_id {sample_id!r}, so nobody can tell which is to be compared; "
            "keep the parts of one run in a folder, or run `yivl infer` again with an empty output folder"
        )


def _to_pair(before: Answer, prediction: Prediction) -> Pair:
    after = Answer.of(prediction)
    if before.references != after.references:
        raise DatasetError(
            f"the record with the sample_id {prediction.sample_id!r} has the references {list(before.references)!r} in the "
            f"baseline and {list(after.references)!r} in the predictions; run `yivl infer` with both models over the same dataset"
        )
    return Pair(group=_group(before, after), prediction=prediction, before=before, after=after)


def _group(before: Answer, after: Answer) -> Group:
    if not after.references:
        return Group.UNCHANGED if after.equals(before) else Group.CHANGED
    if after.is_right:
        return Group.STAYED_RIGHT if before.is_right else Group.MENDED
    return Group.LOST if before.is_right else Group.STAYED_WRONG
