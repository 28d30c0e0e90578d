import json
from collections.abc import Callable
from typing import Any

import pytest

from yivl_core.evaluation.configuration import EvaluationConfig
from yivl_core.evaluation.report import evaluate_predictions
from yivl_core.outputs.manifest import write_manifest
from yivl_core.outputs.predictions import Prediction, PredictionImage, write_part


@pytest.fixture(scope="session")
def make_prediction() -> Callable[..., Prediction]:
    """A row of (answer, reference); an answer of None is a failed row."""

    def make(record_index: int, response: str | None, reference: str | None, **changes: Any) -> Prediction:
        values: dict[str, Any] = {
            "sample_id": f"id-{record_index}",
            "cluster_id": None,
            "record_index": record_index,
            "source": f"rows.jsonl:{record_index + 1}",
            "query": "What is written here?",
            "history": (),
            "system": None,
            "images": (),
            "reference": reference,
            "references": (),
            "meta": "{}",
            "response": response,
            "finish_reason": "stop",
            "prompt_tokens": 1104,
            "completion_tokens": 4,
        }
        if response is None:
            values |= {
                "prompt_tokens": None,
                "completion_tokens": None,
                "finish_reason": "error",
                "error_kind": "truncated",
                "error": "a.png is cut off",
            }
        return Prediction(**(values | changes))

    return make


@pytest.fixture(scope="session")
def _page_report(tmp_path_factory: pytest.TempPathFactory, make_prediction: Callable[..., Prediction]) -> str:
    """A report as its file has it: eight rows of four shops beside a baseline, some of them bad in each way that there is."""
    folder = tmp_path_factory.mktemp("page")
    long = {"finish_reason": "length"}
    rows = [
        ("TOTAL 12.30", "total 12.30", "total 12.30", {}),
        ("tota1", "Total", "Total", {}),
        ("", "abc", "abd", {}),
        (None, "fourteen chars", "fourteen chars", {}),
        ("AB " * 40, "AB", None, long),
        ("I'm sorry, I can't read that.", "7-Eleven", "I'm sorry", {}),
        ("GST 6%", "GST 6%", "GST 0%", {}),
        ("QTY", "QTY", "QTY", {}),
    ]
    for name, column in (("predictions", 0), ("baseline", 2)):
        predictions = [
            make_prediction(
                index, row[column], row[1], cluster_id=f"receipt-{index // 2}", meta=f'{{"shop":"shop {index % 4}"}}',
                images=(PredictionImage(uri=f"{index}.png", sha256="ab" * 32),), **(row[3] if row[column] is not None else {}),
            )
            for index, row in enumerate(rows)
        ]  # fmt: skip
        write_part(str(folder / name), "part-00000.parquet", predictions)
        write_manifest(str(folder / name / "manifest.json"), {"model": {"digest": name}, "decoding": {"beams": 1}}, {"began": ""})
    places = {name: str(folder / name) for name in ("predictions", "baseline", "output")}
    config = EvaluationConfig(**places, slice_by=("shop",), num_resamples=100)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("yivl_core.evaluation.report.render_markdown", lambda _: "")
        evaluate_predictions(config)
    return (folder / "output" / "report.json").read_text("utf-8")


@pytest.fixture
def page_report(_page_report: str) -> dict[str, Any]:
    """The same, to be changed."""
    report: dict[str, Any] = json.loads(_page_report)
    return report
