"""Held-out records answered while training, against inference afterwards and jiwer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch

from yivl_core.data.dataset import read_records
from yivl_core.evaluation.metrics.edits import Score
from yivl_core.evaluation.texts.normalisation import normalise
from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.inference.generation import generate
from yivl_core.outputs.predictions import read_predictions
from yivl_core.processing.processor import Processor
from yivl_core.training.configuration import TrainingConfig, TrainingSettings, TrainingSummary

pytestmark = pytest.mark.slow
Train = Callable[..., TrainingSummary]


def figures(summary: TrainingSummary, name: str) -> list[float]:
    lines = map(json.loads, (Path(summary.output) / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("tuning", [{"target_modules": "all"}, {"tuner": "full"}])
def test_the_error_rate_is_that_of_inference_afterwards(
    tuning: dict[str, Any], train: Train, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    summary = train(**tuning, eval_answers=5, val_fraction=0.4, num_epochs=4, learning_rate=5e-3, eval_steps=100)
    tokenizer = Processor.from_checkpoint(tiny_checkpoint).tokenizer
    responses = [row.record.response or "" for row in read_records(Path(summary.val_dataset)) if row.record]
    assert len(responses) == 5
    limit = 2 * max(len(tokenizer.encode(response)) for response in responses) + 16
    places = {"model": summary.model} if summary.model else {"model": str(tiny_checkpoint), "adapter": summary.adapter}
    infer_shards(
        InferenceConfig(**places, load_dataset_config=True, output=str(tmp_path / "answers"), max_new_tokens=limit)
    )  # fmt: skip
    answers = [prediction.response or "" for prediction in read_predictions(str(tmp_path / "answers"))]
    expected = jiwer.process_characters([normalise(text) for text in responses], [normalise(text) for text in answers]).cer
    assert summary.val_cer == pytest.approx(expected)
    assert figures(summary, "val_cer") == [summary.val_cer]


def test_the_error_rate_decides_where_it_is_asked_to(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([5, 2, 3, 4])
    monkeypatch.setattr(
        "yivl_core.training.sft.score_answers", lambda *_: Score(num_rows=1, substitutions=next(rates), reference_characters=10)
    )
    summary = train(eval_answers=1, best_metric="val_cer", eval_steps=1, num_epochs=1.34)
    assert figures(summary, "val_cer") == [0.5, 0.2, 0.3, 0.4]
    assert (summary.best_step, summary.val_cer) == (2, 0.2)


def test_the_answered_records_are_spread_over_those_held_out(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[list[int]] = []

    def watch(_: Any, __: Any, indices: list[int]) -> Any:
        answered.append(indices)
        return Score()

    monkeypatch.setattr("yivl_core.training.sft.score_answers", watch)
    summary = train(eval_answers=2, val_fraction=0.4, eval_steps=100, best_metric="val_cer")
    held_out = [json.loads(line)["validated"]["line"] for line in Path(summary.val_dataset).read_text().splitlines()]
    assert [[index + 1 for index in indices] for indices in answered] == [[held_out[0], held_out[2]]]
    assert summary.val_cer is None, "without a character there is no rate"


def test_where_memory_is_short_fewer_are_answered_together(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(output="expected", eval_answers=5, val_fraction=0.4, eval_steps=100)
    sizes: list[int] = []

    def run_out(model: Any, processor: Any, requests: list[Any]) -> Any:
        sizes.append(len(requests))
        if len(requests) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return generate(model, processor, requests)

    monkeypatch.setattr("yivl_core.training.answers.generate", run_out)
    assert train(eval_answers=5, val_fraction=0.4, eval_steps=100).val_cer == expected.val_cer
    assert sizes == [5, 4, 2, 2, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best_metric": "val_cer"}, "`best_metric` val_cer needs answers; give `eval_answers`"),
        ({"eval_answers": 1, "quantization": "fp8"}, "`eval_answers` cannot be had with `quantization` fp8"),
    ],
)
def test_what_cannot_be_answered_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**settings)


@pytest.mark.parametrize("settings", [{"eval_answers": 1}, {"early_stopping_patience": 1}])
def test_evaluations_need_records_that_are_held_out(settings: dict[str, Any]) -> None:
    places = {"model": "m", "dataset": "d", "output": "o"}
    with pytest.raises(ValueError, match=rf"`{next(iter(settings))}` needs records that are held out; give a `val_dataset`, or"):
        TrainingConfig(**places, **settings, val_fraction=0)
    assert TrainingConfig(**places, **settings, val_fraction=0, val_dataset="v")
