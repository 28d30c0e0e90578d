"""OCRBench's own rule, to set a figure beside published ones and for nothing else."""

from collections.abc import Callable
from functools import partial

from yivl_core.evaluation.metrics.metric import Counts, Metric, RowBatch, counts_of, share_of_rows

_SOURCE = (
    "(Y. Liu et al., OCRBench, 2023, and its evaluation code; times 1000 is its score); a reader that prints everything wins, "
)
_WARNING = "so this is no error rate"


def ocrbench() -> Metric:
    """OCRBench's rule for all its parts but HME100k."""
    return _substring(
        "ocrbench",
        "OCRBench",
        "share of rows whose answer holds a reference somewhere, both in lower case and with spaces for line breaks",
        _as_text,
    )


def ocrbench_hme() -> Metric:
    """OCRBench's rule for HME100k, its part of handwritten formulas."""
    return _substring(
        "ocrbench_hme",
        "OCRBench, HME100k",
        "share of rows whose answer holds a reference somewhere, both without spaces and line breaks and as cased",
        _as_formula,
    )


def _substring(name: str, title: str, rule: str, make_alike: Callable[[str], str]) -> Metric:
    return Metric(
        name=name,
        title=title,
        version=1,
        definition=f"{rule} {_SOURCE}{_WARNING}",
        best="high",
        kind="share",
        columns=("rows", "hits"),
        measure=partial(_measure, make_alike=make_alike),
        figure=share_of_rows,
    )


def _as_text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _as_formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _measure(batch: RowBatch, *, make_alike: Callable[[str], str]) -> Counts:
    """An empty reference is held by every answer, as in the published code; a failed row holds nothing."""
    rows = []
    for answer, references in zip(batch.answers, batch.references, strict=True):
        text = None if answer is None else make_alike(answer)
        rows.append((1, int(text is not None and any(make_alike(reference) in text for reference in references))))
    return counts_of(rows, 2)
