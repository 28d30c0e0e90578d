"""What is measured follows from the settings, and the report says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yivl_core.errors import DatasetError
from yivl_core.evaluation.configuration import EvaluationConfig
from yivl_core.evaluation.measures import prepare_measures, primary_of

Write, Evaluate = Callable[..., str], Callable[..., Any]

CAPTIONS: list[tuple[Any, ...]] = [
    ("a dog runs", "a brown dog runs in a park", {"references": ("a dog is running",)}),
    ("two people sit on a bench", "two people sit on a wooden bench", {"references": ("people on a bench",)}),
    ("a bus", "a red bus stands at a corner", {"references": ("a bus in a street", "the red bus")}),
    ("nobody asked", None),
]


def prepare(predictions: str, **changes: Any) -> Any:
    return prepare_measures(EvaluationConfig(predictions=predictions, output="unused", **changes))


@pytest.mark.parametrize(
    ("metrics", "primary"),
    [(("ocr",), "cer"), (("vqa",), "exact_match"), (("fields",), "field_accuracy"), (("caption",), "bleu4"), (("wer",), "wer")],
)
def test_the_first_metric_decides(metrics: tuple[str, ...], primary: str) -> None:
    assert primary_of(EvaluationConfig(predictions="", output="", metrics=metrics)) == primary


def test_nothing_is_read_that_no_metric_needs(tmp_path: Path) -> None:
    measures = prepare(str(tmp_path / "not there"))
    assert (measures.frequencies, measures.measuring.training_texts, measures.measuring.verbatim) == (None, None, ())
    assert measures.described["document_frequencies"] is None


def test_document_frequencies_are_of_the_rows_with_a_reference(write_rows: Write) -> None:
    """By hand: three documents; `dog` is in one, `bench` in one, `a` in all."""
    frequencies = prepare(write_rows(CAPTIONS), metrics=("caption",)).frequencies
    assert frequencies.num_documents == 3
    assert [frequencies.counts.get(word) for word in ("dog", "bench", "a", "red bus", "nobody")] == [1, 1, 3, 1, None]


def test_rows_without_a_reference_have_no_document_frequencies(write_rows: Write) -> None:
    with pytest.raises(DatasetError, match="none of the 2 rows has a reference to compare its answer with"):
        prepare(write_rows([("a", None), ("b", None)]), metrics=("cider_d",))


def test_frequencies_of_an_earlier_report_give_a_part_the_same_figures(write_rows: Write, evaluate: Evaluate) -> None:
    whole = evaluate(write_rows(CAPTIONS), metrics=("caption",))
    kept = str(Path(whole.summary.output) / "document_frequencies.parquet")
    part = write_rows(CAPTIONS[:2], name="part")
    same = evaluate(part, metrics=("caption",), document_frequencies=kept, output=f"{part}-report")
    own = evaluate(part, metrics=("caption",), output=f"{part}-other")
    by_row = [[sample["values"]["cider_d"] for sample in found.report["samples"]] for found in (whole, same, own)]
    assert by_row[0][:2] == by_row[1]
    assert by_row[0][:2] != by_row[2]
    assert same.report["figures"]["cider_d"]["value"] == pytest.approx(sum(by_row[0][:2]) / 2)
    said = [found.report["scoring"]["document_frequencies"] for found in (whole, same, own)]
    assert said[0] == said[1] != said[2]
    assert not (Path(same.summary.output) / "document_frequencies.parquet").exists(), "they stand where they were given"


def test_the_main_metric_is_measured_on_answers_as_written_too() -> None:
    measuring = prepare("", extractor="choice", primary="anls").measuring
    assert [(metric.name, metric.title) for metric in measuring.verbatim] == [("anls_verbatim", "ANLS, answers as written")]


def test_settings_stand_in_the_report(write_rows: Write, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"query": "q", "response": "A"}) + "\n")
    described = prepare(
        write_rows(CAPTIONS),
        metrics=("caption", "wer"),
        normaliser="nfkc+casefold",
        extractor="first-line",
        slice_by=("shop",),
        bleu_tokenizer="zh",
        num_resamples=500,
        seed=7,
        allow_difference=("rows", "data", "rows"),
        training_texts=(str(tmp_path / "train.jsonl"),),
    ).described
    assert described["metrics"][:5] == ["bleu4", "chrf", "rouge_l", "cider_d", "wer"]
    assert described["metrics"][-1] == "bleu4_verbatim"
    assert described["training_texts"]["num_texts"] == 1
    assert [described[key] for key in ("primary", "slice_by", "bleu_tokenizer", "num_resamples", "seed", "allow_difference")] == [
        "bleu4",
        ["shop"],
        "zh",
        500,
        7,
        ["data", "rows"],
    ]
    assert (described["normaliser"]["name"], described["extractor"]["name"]) == ("nfkc+casefold", "first-line")
    assert json.loads(json.dumps(described)) == described
