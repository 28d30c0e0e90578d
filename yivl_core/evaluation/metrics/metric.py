"""What a metric is: each row gives a few whole numbers, these are added up over rows, and the figure is a function of the sums.

Sums of whole numbers depend neither on the order of rows nor on threads or machine, so reports are equal byte for byte, the
figure of a union follows from the sums of its parts, and a bootstrap resample is a product of weights and sums. What is no whole
number by itself, as a similarity, is kept in billionths.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from yivl_core.evaluation.texts.normalisation import find_normaliser

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Sums = npt.NDArray[np.int64] | npt.NDArray[np.float64]

BILLION = 10**9

Value = TypeVar("Value")
Kind = Literal["share", "mean", "rate", "score"]


class RowBatch:
    """Some rows with a reference, as metrics see them.

    Args:
        answers: what the model answered, by the extractor; None for a failed row.
        references: the right answers of each row, at least one.
        finish_reasons: `stop`, `length` or `error`, by row.
        metas: the records' other fields, as JSON objects, by row; None: they have none.
    """

    def __init__(
        self,
        answers: Sequence[str | None],
        references: Sequence[tuple[str, ...]],
        finish_reasons: Sequence[str],
        metas: Sequence[str] | None = None,
    ) -> None:
        self.answers, self.references, self.finish_reasons = answers, references, finish_reasons
        self.metas = ["{}"] * len(answers) if metas is None else metas
        self._normalised: dict[str, list[tuple[str | None, tuple[str, ...]]]] = {}
        self._remembered: dict[tuple[str, str], Any] = {}

    def __len__(self) -> int:
        return len(self.answers)

    def normalised(self, name: str) -> list[tuple[str | None, tuple[str, ...]]]:
        """Answer and references of each row after the normaliser of this name; worked out once."""
        if name not in self._normalised:
            normalise = find_normaliser(name)
            self._normalised[name] = [
                (None if answer is None else normalise(answer), tuple(map(normalise, references)))
                for answer, references in zip(self.answers, self.references, strict=True)
            ]
        return self._normalised[name]

    def remembered(self, what: str, normaliser: str, work_out: Callable[["RowBatch", str], Value]) -> Value:
        """What several metrics need of the batch, from `work_out(batch, normaliser)`; worked out once."""
        key = what, normaliser
        if key not in self._remembered:
            self._remembered[key] = work_out(self, normaliser)
        found: Value = self._remembered[key]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure.

    Attributes:
        name: as users ask for it, in snake case.
        title: as a report heads it.
        version: raised when the same rows give another figure.
        definition: one sentence: what is divided by what, and whose rule it is.
        best: whether low or high figures are good.
        kind: `share`: of rows, each 0 or 1; `mean`: of values of rows from 0 to 1; `rate`: a ratio of sums; `score`: anything
            else, on the scale that the literature uses.
        columns: what is added up over rows. The first is `rows`: 1 for a row that the metric is defined for; else it and all
            others are 0.
        measure: int64 [num_rows, num_columns], of a batch.
        figure: float64 [...], of sums [..., num_columns] in float64 or int64; nan where there is nothing to divide by.
        normaliser: by which it compares texts; None: by a rule of its own, which `definition` names.
    """

    name: str
    title: str
    version: int
    definition: str
    best: Literal["low", "high"]
    kind: Kind
    columns: tuple[str, ...]
    measure: Callable[[RowBatch], Counts]
    figure: Callable[[Sums], Floats]
    normaliser: str | None = None


def ratio_of(numerators: Sequence[int], denominators: Sequence[int], sums: Sums) -> Floats:
    """Sum of some columns over the sum of others; nan where that is 0."""
    above = sums[..., list(numerators)].sum(axis=-1, dtype=np.float64)
    below = sums[..., list(denominators)].sum(axis=-1, dtype=np.float64)
    ratio: Floats = np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)
    return ratio


def share_of_rows(sums: Sums) -> Floats:
    """The second column over the first: the figure of a `share`."""
    return ratio_of([1], [0], sums)


def mean_of_billionths(sums: Sums) -> Floats:
    """The second column over the first, in billionths: the figure of a `mean`."""
    return share_of_rows(sums) / BILLION


def counts_of(rows: Sequence[tuple[int, ...]], num_columns: int) -> Counts:
    """int64 [num_rows, num_columns] of one tuple a row, also of no rows."""
    return np.array(rows, dtype=np.int64).reshape(len(rows), num_columns)
