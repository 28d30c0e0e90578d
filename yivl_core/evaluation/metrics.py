"""Strings -> scores: edits against the best reference, and exact match.

Text is compared code point by code point, once as it is and once after `normalise`, whose name stands in every report.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

NORMALISER = "nfc+casefold+ws1"
"""Unicode NFC; case folded; each run of white space one space, none at the ends. Another rule gets another name."""


def normalise(text: str) -> str:
    """The text as the main figures compare it: see `NORMALISER`."""
    folded = unicodedata.normalize("NFD", text).casefold()  # decomposed first: Unicode 15, section 3.13, D145
    return " ".join(unicodedata.normalize("NFC", folded).split())


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
    operations = Counter(operation.tag for operation in Levenshtein.editops(reference, text))
    return Score(
        num_rows=1,
        num_exact=int(answer is not None and text == reference),
        insertions=operations["insert"],
        deletions=operations["delete"],
        substitutions=operations["replace"],
        reference_characters=len(reference),
    )


def closest_reference(answer: str, references: Sequence[str]) -> str:
    """The reference with the fewest edits for its length; of several that are as close the first in order of code points.

    Their own order decides nothing: equally many edits may be insertions, deletions and substitutions in different shares.
    """
    return min(references, key=lambda reference: (_distance_for_length(answer, reference), reference))


def _distance_for_length(text: str, reference: str) -> tuple[float, int]:
    edits = Levenshtein.distance(reference, text)
    if not edits:
        return 0.0, 0
    return (edits / len(reference) if reference else float("inf")), edits
