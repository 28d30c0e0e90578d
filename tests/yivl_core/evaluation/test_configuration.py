"""Every setting is read: each is changed, and the report is another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.configuration import EvaluationConfig, ScoringSettings

Write = Callable[..., str]
Evaluate = Callable[..., Any]

ROWS: list[tuple[Any, ...]] = [
    ("The text is: a-b", "a b", {"meta": '{"shop": "x"}'}),
    ("一只狗在公园里跑", "一只棕色的狗在公园里跑", {"meta": '{"shop": "y"}'}),
    (None, "a cat sleeps on the sofa"),
    *(
        (("a red bus at the corner", "a red bus stands at the corner") if number % 3 else ("b", "c d e f"))
        for number in range(40)
    ),
]
OTHERS = [(row[1], *row[1:]) for row in ROWS]

# Each setting: what it is changed to, and a place of the report that shows it, as keys.
CHANGES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "metrics": (("ocr",), ("figures",)),
    "primary": ("wer", ("histogram",)),
    "normaliser": ("nfc+nopunct+nows", ("figures", "cer", "value")),
    "extractor": ("unwrapped", ("figures", "cer", "value")),
    "slice_by": (("shop",), ("slices",)),
    "bleu_tokenizer": ("zh", ("figures", "bleu4", "value")),
    "num_resamples": (200, ("figures", "cer", "interval")),
    "seed": (1, ("figures", "cer", "interval")),
    "document_frequencies": ("{tmp}/earlier/document_frequencies.parquet", ("figures", "cider_d", "value")),
    "training_texts": (("{tmp}/train.jsonl",), ("slices",)),
    "predictions": ("{tmp}/others", ("figures", "cer", "value")),
    "baseline": ("{tmp}/others", ("comparison",)),
    "max_samples": (3, ("samples",)),
}
ELSEWHERE = {"allow_difference", "gate", "dataset", "output"}  # tests of their own, below


def at(report: dict[str, Any], place: tuple[Any, ...]) -> Any:
    found: Any = report
    for key in place:
        found = found[key]
    return found


def test_no_setting_is_left_out_here() -> None:
    assert CHANGES.keys() | ELSEWHERE == EvaluationConfig.model_fields.keys()
    assert all(field.description for field in EvaluationConfig.model_fields.values())


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_setting_changes_the_report(name: str, write_rows: Write, evaluate: Evaluate, tmp_path: Path) -> None:
    value, place = json.loads(json.dumps(CHANGES[name]).replace("{tmp}", str(tmp_path)))
    predictions = write_rows(ROWS)
    write_rows(OTHERS, name="others")
    (tmp_path / "train.jsonl").write_text(json.dumps({"query": "q", "response": "A B"}) + "\n")
    asked: dict[str, Any] = {"predictions": predictions, "metrics": ("cer", "wer", "bleu4", "cider_d")}
    if name == "document_frequencies":
        evaluate(write_rows(ROWS[:5], name="part"), metrics=("caption",), output=tmp_path / "earlier")
    before, after = evaluate(**asked), evaluate(**asked | {name: value})
    assert at(before.report, place) != at(after.report, place)
    assert before.markdown != after.markdown


def test_what_may_differ_changes_the_report(write_rows: Write, evaluate: Evaluate) -> None:
    here, there = write_rows([("a", "a")]), write_rows([("a", "a", {"query": "?"})], name="there")
    verdicts = [evaluate(here, baseline=there, allow_difference=allowed).summary.verdict for allowed in ((), ("data",))]
    assert verdicts == ["not comparable", "not distinguishable"]


def test_the_report_is_where_it_was_asked_for(write_rows: Write, evaluate: Evaluate, tmp_path: Path) -> None:
    predictions = write_rows(ROWS)
    for name in ("one", "other"):
        assert evaluate(predictions, output=tmp_path / name).summary.output == str(tmp_path / name)
        assert (tmp_path / name / "report.json").exists()


def test_the_gate_is_read_first_and_told(write_rows: Write, evaluate: Evaluate, tmp_path: Path) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules:\n  - metric: exact_match\n    min: 0.99\n")
    summary, report, page = evaluate(write_rows(ROWS), gate=str(gate))
    assert report["gate"]["result"] == summary.gate == "regression"
    assert tuple(report["gate"]["reasons"]) == summary.gate_reasons
    (reason,) = summary.gate_reasons
    assert "exact_match" in reason
    assert page.startswith("# Evaluation report\n\n**Gate: regression**\n\n- ")
    gate.write_text("rules:\n  - metric: rouge_l\n    min: 0.5\n")
    with pytest.raises(ConfigurationError, match=r"(?s)gate\.yaml.*rouge_l"):
        evaluate(str(tmp_path / "not looked at"), gate=str(gate))


def test_images_are_looked_for_in_the_dataset(write_rows: Write, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(dataset: str, samples: list[dict[str, Any]]) -> str:
        asked.append((dataset, len(samples)))
        return "the pictures"

    monkeypatch.setattr("yivl_core.evaluation.report.load_pictures", load)
    monkeypatch.setattr("yivl_core.evaluation.report.render_page", lambda report, pictures: str(pictures))
    for dataset, page in (("records.jsonl", "the pictures"), (None, "None")):
        summary = evaluate(write_rows(ROWS), dataset=dataset, max_samples=7).summary
        assert (Path(summary.output) / "report.html").read_text() == page
    assert asked == [("records.jsonl", 7)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("accuracy",)}, "there is no metric 'accuracy'; give groups"),
        ({"metrics": ()}, "at least 1 item"),
        (
            {"primary": "anls", "metrics": ("wer",)},
            "`primary` 'anls' is none of the metrics of this report: wer, cer, exact_match",
        ),
        ({"normaliser": "casefold"}, "there is no normaliser 'casefold'; give raw"),
        ({"extractor": "magic"}, "there is no extractor 'magic'; give one of verbatim"),
        ({"bleu_tokenizer": "ja-mecab"}, "Input should be '13a'"),
        ({"num_resamples": 99}, "greater than or equal to 100"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"allow_difference": ("model",)}, "Input should be 'data', 'prompt', 'decoding' or 'rows'"),
        ({"max_samples": -1}, "greater than or equal to 0"),
        ({"normalizer": "raw"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig(predictions="p", output="o", **changes)


def test_how_answers_are_scored_can_be_taken_over_as_a_whole() -> None:
    scoring = ScoringSettings(metrics=("vqa",), primary="anls", seed=3)
    config = EvaluationConfig(predictions="p", output="o", **scoring.model_dump())
    assert ScoringSettings(**{name: getattr(config, name) for name in ScoringSettings.model_fields}) == scoring
