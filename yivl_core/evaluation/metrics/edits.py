"""Edits between answers and references, code point by code point: one answer's score, and the metrics that are made of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rapidfuzz.distance import Levenshtein

from yivl_core.evaluation.metrics.metric import (
    BILLION,
    Counts,
    Metric,
    RowBatch,
    counts_of,
    mean_of_billionths,
    ratio_of,
    share_of_rows,
)
from yivl_core.evaluation.texts.normalisation import MAIN, RAW

_EDITS = ("insertions", "deletions", "substitutions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How far an answer, or many answers together, are from their references. Scores add up.

    Attributes:
        num_rows: answers in it.
        num_exact: answers among them that equal a reference.
        insertions, deletions, substitutions: fewest edits that turn the references into the answers, in characters.
        reference_characters: length of the references that were compared with.
    """

    num_rows: int = 0
    num_exact: int = 0
    insertions: int = 0
    deletions: int = 0
    substitutions: int = 0
    reference_characters: int = 0

    @property
    def edits(self) -> int:
        """Insertions, deletions and substitutions together."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def cer(self) -> float | None:
        """Corpus character error rate: all edits over all reference characters, so it can exceed 1; None without characters."""
        return self.edits / self.reference_characters if self.reference_characters else None

    @property
    def exact_match(self) -> float | None:
        """Share of the answers that equal a reference; None without answers."""
        return self.num_exact / self.num_rows if self.num_rows else None

    def __add__(self, other: "Score") -> "Score":
        return Score(
            num_rows=self.num_rows + other.num_rows,
            num_exact=self.num_exact + other.num_exact,
            insertions=self.insertions + other.insertions,
            deletions=self.deletions + other.deletions,
            substitutions=self.substitutions + other.substitutions,
            reference_characters=self.reference_characters + other.reference_characters,
        )


def score_answer(answer: str | None, references: Sequence[str]) -> Score:
    """The score of one answer against the reference it comes closest to: fewest edits for the reference's length.

    Args:
        answer: the text as it is to be compared; None for a failed row, which counts as empty and never as exact.
        references: at least one right answer.
    """
    text = answer or ""
    reference = closest_reference(text, references)
    insertions, deletions, substitutions = _count_edits(reference, text)
    return Score(
        num_rows=1,
        num_exact=int(answer is not None and text == reference),
        insertions=insertions,
        deletions=deletions,
        substitutions=substitutions,
        reference_characters=len(reference),
    )


def closest_reference(answer: str, references: Sequence[str]) -> str:
    """The reference with the fewest edits for its length; of several that are as close the first in order of code points.

    Their own order decides nothing: equally many edits may be insertions, deletions and substitutions in different shares.
    """
    if len(references) == 1:
        return references[0]
    return min(references, key=lambda reference: (_distance_for_length(answer, reference), reference))


def _count_edits(reference: Sequence[str], text: Sequence[str]) -> tuple[int, int, int]:
    """Insertions, deletions and substitutions."""
    tags = [operation.tag for operation in Levenshtein.editops(reference, text)]
    return tags.count("insert"), tags.count("delete"), tags.count("replace")


def _distance_for_length(text: Sequence[str], reference: Sequence[str]) -> tuple[float, int]:
    edits = Levenshtein.distance(reference, text)
    if not edits:
        return 0.0, 0
    return (edits / len(reference) if reference else float("inf")), edits


def character_error_rate(name: str, title: str, normaliser: str, *, is_capped: bool = False) -> Metric:
    """Corpus CER.

    Args:
        name: of the metric.
        title: of the metric.
        normaliser: by which texts are compared.
        is_capped: no row counts for more edits than its reference has characters, so that one endless answer cannot outweigh all
            others; there are no insertions, deletions and substitutions then.
    """
    capped = ", of each row at most as many as its reference has characters" if is_capped else ""
    return Metric(
        name=name,
        title=title,
        version=1,
        definition=f"edits (Levenshtein, code points){capped} over reference characters, of all rows together; of several "
        "references the one with the fewest edits for its length counts",
        best="low",
        kind="rate",
        columns=("rows", "characters", "edits") if is_capped else ("rows", "characters", *_EDITS),
        measure=partial(_measure_capped if is_capped else _measure_edits, normaliser=normaliser),
        figure=partial(ratio_of, [2] if is_capped else [2, 3, 4], [1]),
        normaliser=normaliser,
    )


def word_error_rate(normaliser: str = MAIN) -> Metric:
    """Corpus WER."""
    return Metric(
        name="wer",
        title="WER",
        version=1,
        definition="edits over words between white space, of all rows together; for texts whose words are not parted by white "
        "space, as Chinese, it says little",
        best="low",
        kind="rate",
        columns=("rows", "words", *_EDITS),
        measure=partial(_measure_words, normaliser=normaliser),
        figure=partial(ratio_of, [2, 3, 4], [1]),
        normaliser=normaliser,
    )


def exact_match(name: str, title: str, normaliser: str) -> Metric:
    """Share of rows whose answer equals a reference."""
    return Metric(
        name=name,
        title=title,
        version=1,
        definition="share of rows whose answer equals a reference",
        best="high",
        kind="share",
        columns=("rows", "hits"),
        measure=partial(_measure_hits, normaliser=normaliser),
        figure=share_of_rows,
        normaliser=normaliser,
    )


def one_minus_ned(normaliser: str = MAIN) -> Metric:
    """ICDAR's 1-N.E.D."""
    return Metric(
        name="one_minus_ned",
        title="1-NED",
        version=1,
        definition="mean over rows of 1 - edits / length of the longer text (ICDAR's 1-N.E.D.), of the reference for which it is "
        "largest; two empty texts give 1",
        best="high",
        kind="mean",
        columns=("rows", "billionths"),
        measure=partial(_measure_similarity, normaliser=normaliser, least=None),
        figure=mean_of_billionths,
        normaliser=normaliser,
    )


def anls(normaliser: str = MAIN) -> Metric:
    """ANLS as its paper defines it."""
    return Metric(
        name="anls",
        title="ANLS",
        version=1,
        definition="average normalised Levenshtein similarity (A. F. Biten et al., Scene Text Visual Question Answering, ICCV "
        "2019, section 4): mean over rows of 1 - NL for the best reference, and 0 where NL is 0.5 or more",
        best="high",
        kind="mean",
        columns=("rows", "billionths"),
        measure=partial(_measure_similarity, normaliser=normaliser, least=BILLION // 2),
        figure=mean_of_billionths,
        normaliser=normaliser,
    )


EDIT_METRICS: tuple[Callable[[str], Metric], ...] = (
    lambda normaliser: character_error_rate("cer", "CER", normaliser),
    lambda normaliser: exact_match("exact_match", "exact match", normaliser),
    word_error_rate,
    one_minus_ned,
    anls,
    lambda _: character_error_rate("cer_as_written", "CER as written", RAW),
    lambda _: exact_match("exact_match_as_written", "exact match as written", RAW),
    lambda normaliser: character_error_rate("cer_without_spaces", "CER without spaces", without_spaces(normaliser)),
    lambda normaliser: character_error_rate("cer_capped", "CER, capped", normaliser, is_capped=True),
)
"""Makers of the metrics of reading, by the main normaliser."""


def without_spaces(normaliser: str) -> str:
    """The same rule, and no white space."""
    if normaliser == RAW:
        return "nfc+nows"
    steps = normaliser.split("+")
    return "+".join([*(step for step in steps if step not in ("ws1", "nows")), "nows"])


def _measure_edits(batch: RowBatch, *, normaliser: str) -> Counts:
    rows = []
    for answer, references in batch.normalised(normaliser):
        if answer is not None and answer in references:
            rows.append((1, len(answer), 0, 0, 0))  # most rows of a good model, in a tenth of the time
            continue
        text = answer or ""
        reference = closest_reference(text, references)
        rows.append((1, len(reference), *_count_edits(reference, text)))
    return counts_of(rows, 5)


def _measure_capped(batch: RowBatch, *, normaliser: str) -> Counts:
    rows = []
    for answer, references in batch.normalised(normaliser):
        reference = closest_reference(answer or "", references)
        edits = 0 if answer == reference else Levenshtein.distance(reference, answer or "")
        rows.append((1, len(reference), min(len(reference), edits)))
    return counts_of(rows, 3)


def _measure_words(batch: RowBatch, *, normaliser: str) -> Counts:
    rows = []
    for answer, references in batch.normalised(normaliser):
        words = (answer or "").split()
        right = [text.split() for text in references]
        reference = right[0] if len(right) == 1 else min(right, key=lambda one: (_distance_for_length(words, one), one))
        rows.append((1, len(reference), *((0, 0, 0) if words == reference else _count_edits(reference, words))))
    return counts_of(rows, 5)


def _measure_hits(batch: RowBatch, *, normaliser: str) -> Counts:
    rows = [(1, int(answer is not None and answer in references)) for answer, references in batch.normalised(normaliser)]
    return counts_of(rows, 2)


def _measure_similarity(batch: RowBatch, *, normaliser: str, least: int | None) -> Counts:
    """Columns rows and billionths.

    A similarity that is not above `least` billionths counts as 0; without `least` all count.
    """
    similarities = batch.remembered("similarity", normaliser, _similarities)
    return counts_of([(1, 0 if least is not None and value <= least else value) for value in similarities], 2)


def _similarities(batch: RowBatch, normaliser: str) -> list[int]:
    """Of the answer and the reference that it is most like, by row; of a failed row 0."""
    return [
        0 if answer is None else max(_similarity(answer, reference) for reference in references)
        for answer, references in batch.normalised(normaliser)
    ]


def _similarity(answer: str, reference: str) -> int:
    """1 - NED in billionths, rounded down: exactly half a billion where half of the longer text is wrong."""
    longer = max(len(answer), len(reference))
    return BILLION if answer == reference else BILLION * (longer - Levenshtein.distance(answer, reference)) // longer
