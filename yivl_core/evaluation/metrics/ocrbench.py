"""OCRBench's own rule, to set a figure beside published ones and for nothing else."""

import json

from yivl_core.evaluation.metrics.metric import Counts, Metric, RowBatch, counts_of, share_of_rows

_FORMULAS = {
    "dataset_name": "HME100k",
    "category": "Handwritten Mathematical Expression Recognition",
    "type": "Handwritten Mathematical Expression Recognition",
}
"""Fields of a record by which its part of handwritten formulas is known: OCRBench's own, and VLMEvalKit's table of it."""


def ocrbench() -> Metric:
    """OCRBench's rule: that of its part of handwritten formulas for rows that say so in `meta`, the other one for all others."""
    return Metric(
        name="ocrbench",
        title="OCRBench",
        version=1,
        definition="share of rows whose answer holds a reference somewhere, both in lower case and with spaces for line breaks; "
        "of handwritten formulas (HME100k, by the record's category) both as cased and without white space (Y. Liu et al., "
        "OCRBench, 2023, and its evaluation code OCRBench/example.py; times 1000 is its score); a reader that prints everything "
        "wins, so this is no error rate",
        best="high",
        kind="share",
        columns=("rows", "hits"),
        measure=_measure,
        figure=share_of_rows,
    )


def _measure(batch: RowBatch) -> Counts:
    """An empty reference is held by every answer, as in the published code; a failed row holds nothing."""
    rows = []
    for answer, references, meta in zip(batch.answers, batch.references, batch.metas, strict=True):
        make_alike = _as_formula if _is_formula(meta) else _as_text
        text = None if answer is None else make_alike(answer)
        rows.append((1, int(text is not None and any(make_alike(reference) in text for reference in references))))
    return counts_of(rows, 2)


def _is_formula(meta: str) -> bool:
    if not any(name in meta for name in _FORMULAS.values()):  # nearly all rows, without parsing
        return False
    fields = json.loads(meta)
    return any(fields.get(field) == name for field, name in _FORMULAS.items())


def _as_text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _as_formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
