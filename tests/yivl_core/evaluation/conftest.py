import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.evaluation.metrics.document_frequencies import DocumentFrequencies
from yivl_core.evaluation.metrics.metric import RowBatch
from yivl_core.evaluation.metrics.names import ALWAYS, make_metrics, resolve_names
from yivl_core.evaluation.report import evaluate_predictions
from yivl_core.evaluation.scoring import Measuring, ScoredRows, score_rows
from yivl_core.evaluation.texts.normalisation import MAIN
from yivl_core.outputs.predictions import Prediction, write_part
from yivl_core.progress import OnProgress, ignore_progress


class Evaluated(NamedTuple):
    """What an evaluation gave: its summary, report.json and report.md."""

    summary: EvaluationSummary
    report: dict[str, Any]
    markdown: str


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


@pytest.fixture
def write_rows(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> Callable[..., str]:
    """Writes a predictions folder of (answer, reference) or (answer, reference, changes) in parts, and gives its path."""

    def write(rows: Sequence[tuple[Any, ...]], name: str = "predictions of a run", *, num_parts: int = 1, **changes: Any) -> str:
        output = tmp_path / name
        made = [make_prediction(index, *row[:2], **changes, **(row[2] if len(row) > 2 else {})) for index, row in enumerate(rows)]
        size = -(-len(made) // num_parts)
        for part in range(num_parts):
            write_part(str(output), f"part-{part:05d}.parquet", made[part * size : (part + 1) * size])
        return str(output)

    return write


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Evaluated]:
    """Evaluates a predictions folder with these settings, into the folder `report` unless another is given."""

    def evaluate(predictions: str, on_progress: OnProgress = ignore_progress, **settings: Any) -> Evaluated:
        output = Path(settings.pop("output", tmp_path / "report"))
        config = EvaluationConfig(predictions=predictions, output=str(output), **settings)
        summary = evaluate_predictions(config, on_progress)
        report = json.loads((output / "report.json").read_text("utf-8"))
        return Evaluated(summary, report, (output / "report.md").read_text("utf-8"))

    return evaluate


@pytest.fixture
def score(write_rows: Callable[..., str]) -> Callable[..., ScoredRows]:
    """Measures rows as `write_rows` takes them; without names of metrics those of every report."""

    def score(rows: Sequence[tuple[Any, ...]], *names: str, **measuring: Any) -> ScoredRows:
        metrics = make_metrics(
            resolve_names(names or ALWAYS), normaliser=MAIN, bleu_tokenizer="13a", document_frequencies=DocumentFrequencies(2)
        )
        predictions = write_rows(rows, name=uuid.uuid4().hex)
        return score_rows(predictions, Measuring(metrics=metrics, verbatim=(), normaliser=MAIN, **measuring), lambda: None)

    return score


@pytest.fixture(scope="session")
def measure() -> Callable[..., ScoredRows]:
    """Measures rows of (answer, references, cluster) without a folder; they are called id-0, id-1 ... unless ids are given."""

    def measure(
        rows: Sequence[tuple[str | None, tuple[str, ...], str | None]], *names: str, sample_ids: Sequence[str] | None = None
    ) -> ScoredRows:
        answers = [answer for answer, _, _ in rows]
        reasons = ["error" if answer is None else "stop" for answer in answers]
        references = [right for _, right, _ in rows]
        frequencies = DocumentFrequencies()
        frequencies.add(references)
        metrics = make_metrics(
            resolve_names(names or ALWAYS), normaliser=MAIN, bleu_tokenizer="13a", document_frequencies=frequencies
        )
        return ScoredRows(
            metrics=metrics,
            counts=tuple(metric.measure(RowBatch(answers, references, reasons)) for metric in metrics),
            sample_ids=list(sample_ids or (f"id-{number}" for number in range(len(rows)))),
            cluster_ids=[cluster for _, _, cluster in rows],
            record_indices=np.arange(len(rows)),
            has_failed=np.array([answer is None for answer in answers], dtype=np.bool_),
            slices=(),
            num_without_reference=0,
        )

    return measure
