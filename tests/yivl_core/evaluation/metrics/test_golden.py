"""Every metric against figures of single rows that were worked out by hand: `golden.json`, each as two numbers to divide."""

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import anls as published_anls
import jiwer
import pytest

from yivl_core.evaluation.metrics import fields, hygiene, numbers, ocrbench, vqa
from yivl_core.evaluation.metrics.edits import EDIT_METRICS
from yivl_core.evaluation.metrics.metric import Metric, RowBatch
from yivl_core.evaluation.texts.normalisation import MAIN, normalise


def as_formulas(batch: RowBatch) -> RowBatch:
    """The same rows, of OCRBench's part of handwritten formulas."""
    return RowBatch(batch.answers, batch.references, batch.finish_reasons, ['{"dataset_name": "HME100k"}'] * len(batch))


METRICS = {
    metric.name: metric
    for metric in (
        *(make(MAIN) for make in EDIT_METRICS),
        numbers.relaxed_accuracy(),
        numbers.decimal_exact(),
        fields.field_accuracy(),
        fields.field_f1(),
        fields.unparsable(),
        vqa.vqa_accuracy(),
        ocrbench.ocrbench(),
        *(make() for make in hygiene.HYGIENE_METRICS),
    )
}
METRICS["ocrbench of a formula"] = replace(
    METRICS["ocrbench"], measure=lambda batch: METRICS["ocrbench"].measure(as_formulas(batch))
)
TABLES = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
GOLDEN = [
    pytest.param(name, answer, references, figure, id=f"{name}: {about}")
    for table in TABLES.values()
    for about, answer, references, figures in table["rows"]
    for name, figure in zip(table["metrics"], figures, strict=True)
]
READ = [(answer, references) for _, answer, references, _ in TABLES["of edits"]["rows"] if answer is not None]


def batch_of(answer: str | None, references: Sequence[str]) -> RowBatch:
    return RowBatch([answer], [tuple(references)], ["error" if answer is None else "stop"])


def figure_of(metric: Metric, answer: str | None, references: Sequence[str]) -> float:
    return float(metric.figure(metric.measure(batch_of(answer, references)).sum(axis=0)))


@pytest.mark.parametrize(("name", "answer", "references", "figure"), GOLDEN)
def test_golden_figures(name: str, answer: str | None, references: list[str], figure: list[int]) -> None:
    expected = float(Fraction(*figure)) if figure[1] else float("nan")
    assert figure_of(METRICS[name], answer, references) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", ["cer", "cer_as_written", "cer_without_spaces", "cer_capped", "wer"])
def test_rates_are_made_of_the_golden_counts(name: str) -> None:
    metric, table = METRICS[name], TABLES["of edits"]
    for about, answer, references, figures in table["rows"]:
        rows, length, *edits = metric.measure(batch_of(answer, references))[0].tolist()
        assert (rows, [sum(edits), length]) == (1, figures[table["metrics"].index(name)]), about


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_a_row_of_its_columns_and_says_what_it_is(name: str) -> None:
    metric = METRICS[name]
    counts = metric.measure(RowBatch(["x", None], [("x",), ("y",)], ["stop", "error"]))
    assert counts.shape == (2, len(metric.columns))
    assert metric.measure(RowBatch([], [], [])).shape == (0, len(metric.columns))
    assert metric.columns[0] == "rows"
    assert set(counts[:, 0].tolist()) <= {0, 1}
    assert not counts[counts[:, 0] == 0].any(), "a row that the metric is not defined for adds nothing"
    assert len(metric.definition) > 20
    assert not metric.definition.endswith(".")


@pytest.mark.parametrize(("answer", "references"), READ)
def test_anls_equals_that_of_the_package(answer: str, references: list[str]) -> None:
    texts = [normalise(reference) for reference in references]
    theirs = published_anls.anls_score(prediction=normalise(answer), gold_labels=texts, threshold=0.5)
    assert figure_of(METRICS["anls"], answer, references) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("answer", "references"), [(answer, references) for answer, references in READ if len(references) == 1])
def test_error_rates_equal_those_of_jiwer(answer: str, references: list[str]) -> None:
    reference = normalise(references[0])
    if not reference:
        return  # jiwer refuses it
    assert figure_of(METRICS["cer"], answer, references) == pytest.approx(jiwer.cer(reference, normalise(answer)))
    assert figure_of(METRICS["wer"], answer, references) == pytest.approx(jiwer.wer(reference, normalise(answer)))
