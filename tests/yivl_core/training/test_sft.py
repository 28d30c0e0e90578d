"""Whole training runs: what they learn, what they refuse, and what they leave in their folder."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import ValidatedRecord, digest_records, read_records
from yivl_core.data.images import ImageStore
from yivl_core.data.reading import InputRow, read_rows
from yivl_core.data.validation import validate_dataset
from yivl_core.model.files import adapter_digest, checkpoint_digest, read_about
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.processing.prompt import describe_prompt
from yivl_core.progress import Progress
from yivl_core.training.checkpoint import TrainingState, save_training
from yivl_core.training.configuration import WITHOUT_EFFECT, TrainingConfig, TrainingSettings, TrainingSummary
from yivl_core.training.loss import RowLoss, row_loss
from yivl_core.training.optimization import Optimizers
from yivl_core.training.packing import PackedBatch
from yivl_core.training.run_folder import Metrics
from yivl_core.training.samples import SampleReader
from yivl_core.training.sft import train_adapter
from yivl_core.training.throughput import MEASURED
from yivl_core.training.tuning import Tuning

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of plain PEFT 0.21
Train = Callable[..., TrainingSummary]
MakeDataset = Callable[..., Path]


def metrics(summary: TrainingSummary) -> list[dict[str, float]]:
    lines = (Path(summary.output) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in MEASURED} for line in lines]


def figures(summary: TrainingSummary, name: str) -> list[float]:
    return [line[name] for line in metrics(summary) if name in line]


def manifest(summary: TrainingSummary) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(summary.output) / "manifest.json").read_text())
    return content


def held_out(summary: TrainingSummary) -> list[InputRow]:
    return list(read_rows(summary.val_dataset, purpose="training"))


def evaluate_with_the_model_of_record(checkpoint: Path, adapter: str, rows: list[InputRow]) -> tuple[float, float]:
    """Loss and token accuracy over all learned tokens, one record at a time, through plain PEFT and the model's own loss."""
    model = PeftModel.from_pretrained(load_model(checkpoint), adapter).eval()
    processor, store = Processor.from_checkpoint(checkpoint), ImageStore()
    loss, num_right, num_learned = 0.0, 0, 0
    for row in rows:
        assert row.record is not None
        images = [store.load(image).image for image in row.images]
        inputs = processor.process(row.record, images, with_response=True)
        assert inputs.labels is not None
        labels = torch.from_numpy(inputs.labels).unsqueeze(0)
        pixel_values = processor.preprocessor.normalise(inputs.pixels.squares()) if inputs.pixels.num_images else None
        with torch.no_grad():
            outputs = model(input_ids=torch.from_numpy(inputs.input_ids).unsqueeze(0), pixel_values=pixel_values, labels=labels)
        is_learned = labels[0, 1:] != -100
        loss += outputs.loss.item() * int(is_learned.sum())
        num_right += int((outputs.logits[0, :-1].argmax(-1) == labels[0, 1:])[is_learned].sum())
        num_learned += int(is_learned.sum())
    return loss / num_learned, num_right / num_learned


@pytest.mark.slow
def test_the_loss_falls_until_the_answers_are_known_by_heart(train: Train, make_dataset: MakeDataset) -> None:
    events: list[Progress] = []
    dataset = str(make_dataset(4))
    summary = train(
        dataset=dataset, val_dataset=dataset, target_modules=".*", learning_rate=1e-2, num_epochs=20, batch_size=2,
        lora_dropout=0.0, on_progress=events.append,
    )  # fmt: skip
    losses = figures(summary, "loss")
    assert len(losses) == summary.num_steps == 40
    assert summary.train_loss == pytest.approx(sum(losses[-4:]) / 4)
    assert summary.train_loss < losses[0] / 4
    assert summary.val_token_accuracy is not None
    assert summary.val_token_accuracy > 0.7
    assert [event.done for event in events if "loss" in event.figures] == list(range(1, 41))
    assert {event.total for event in events if event.stage == "train"} == {40}


def test_the_evaluation_is_that_of_the_model_of_record(train: Train, tiny_checkpoint: Path) -> None:
    summary = train(target_modules="all", learning_rate=5e-3, num_epochs=2, val_fraction=0.4)
    rows = held_out(summary)
    assert len(rows) == summary.num_val_samples == 5
    loss, accuracy = evaluate_with_the_model_of_record(tiny_checkpoint, summary.adapter, rows)
    assert summary.val_loss == pytest.approx(loss, abs=1e-5)
    assert summary.val_token_accuracy == pytest.approx(accuracy)


def test_best_or_last_is_kept_with_its_own_figures(train: Train, tiny_checkpoint: Path) -> None:
    """At such a rate the loss rises again."""
    settings = {"learning_rate": 0.5, "lr_schedule": "constant", "num_epochs": 2, "eval_steps": 1, "val_fraction": 0.3}
    best, last = (train(keep=keep, output=keep, **settings) for keep in ("best", "last"))
    losses = figures(best, "val_loss")
    assert losses == figures(last, "val_loss")
    assert min(losses) < losses[-1]
    assert (best.best_step, best.val_loss) == (losses.index(min(losses)) + 1, min(losses))
    assert (last.best_step, last.val_loss) == (last.num_steps, losses[-1])
    for summary in (best, last):
        loss, accuracy = evaluate_with_the_model_of_record(tiny_checkpoint, summary.adapter, held_out(summary))
        assert summary.val_loss == pytest.approx(loss, rel=1e-5)
        assert summary.val_token_accuracy == pytest.approx(accuracy)
    folders = sorted(path.name for path in (Path(best.output) / "checkpoints").iterdir())
    assert folders == [f"step-{best.best_step:06}", f"step-{best.num_steps:06}"], "best and last stay, and no others"


@pytest.mark.parametrize(
    ("tuning", "failing"),
    [({"target_modules": "all", "lora_dropout": 0.3}, (2, 3, 5)), ({"tuner": "full"}, (2, 5))],
)
def test_where_memory_runs_out_the_step_is_made_again_with_less(
    tuning: dict[str, Any], failing: tuple[int, ...], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step's second row, where there is more to do without then in its first, and in a later step."""
    expected = train(output="expected", **tuning, row_tokens=600, val_fraction=0)
    num_rows, said = 0, []

    def run_out(*arguments: Any) -> RowLoss:
        nonlocal num_rows
        num_rows += 1
        if num_rows in failing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return row_loss(*arguments)

    monkeypatch.setattr("yivl_core.training.sft.row_loss", run_out)
    monkeypatch.setattr("yivl_core.training.planning.CONTEXT_BYTES", 0)
    monkeypatch.setattr("yivl_core.training.planning._LIBRARY_BYTES", 0)
    summary = train(**tuning, row_tokens=600, val_fraction=0, on_progress=lambda progress: said.append(progress.message))
    assert summary.result_digest == expected.result_digest
    found = [message for message in said if message.startswith("memory ran out; the step is made again, now a step is ")]
    assert len(found) == len({*found}) == len(failing), "less each time"


def test_a_run_that_gets_no_better_is_stopped_early(train: Train) -> None:
    """At such a rate the loss rises again; stopped after the decision and gone on with, it ends as well."""
    settings: dict[str, Any] = {
        "learning_rate": 0.5, "lr_schedule": "constant", "num_epochs": 12, "eval_steps": 1, "save_steps": 100,
        "val_fraction": 0.3, "early_stopping_patience": 2,
    }  # fmt: skip
    summary = train(output="stopped", **settings)
    losses = figures(summary, "val_loss")
    best = losses.index(min(losses))
    assert summary.stopped_early
    assert len(losses) == summary.num_steps == best + 3 < 20
    assert (summary.best_step, summary.val_loss) == (best + 1, losses[best])

    def interrupt(progress: Progress) -> None:
        if "val_loss" in progress.figures and progress.done == summary.num_steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(output="again", on_progress=interrupt, **settings)
    again = train(output="again", resume=True, **settings)
    assert again.result_digest == summary.result_digest
    assert metrics(again) == metrics(summary)


def list_records(path: Path) -> list[ValidatedRecord]:
    return list(read_records(path))


def test_no_image_is_trained_on_and_held_out(
    train: Train, dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[int] = []
    load = SampleReader.load

    def watch(self: SampleReader, index: int) -> ModelInputs:
        loaded.append(index)
        return load(self, index)

    monkeypatch.setattr(SampleReader, "load", watch)
    summary = train(val_fraction=0.4, num_epochs=3, eval_steps=100)
    evaluated, trained = loaded[-5:], loaded[:-5]
    assert sorted(trained) == sorted(3 * [*set(range(12)) - set(evaluated)])
    rows = list_records(dataset / "records.jsonl")
    assert list_records(Path(summary.output) / "val.jsonl") == [rows[index] for index in sorted(evaluated)]


@pytest.mark.parametrize("row_tokens", [None, 1])
def test_a_step_has_batch_size_samples_however_they_are_packed(
    row_tokens: int | None, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[PackedBatch] = []

    def watch(model: Any, row: PackedBatch, preprocessor: Any, *rest: Any) -> RowLoss:
        rows.append(row)
        return row_loss(model, row, preprocessor, *rest)

    monkeypatch.setattr("yivl_core.training.sft.row_loss", watch)
    ends: list[int] = []
    train(
        batch_size=5,
        val_fraction=0,
        row_tokens=row_tokens,
        on_progress=lambda event: ends.append(len(rows)) if event.figures else None,
    )
    starts = [0, *ends[:-1]]
    samples = [sum(row.num_samples for row in rows[start:end]) for start, end in zip(starts, ends, strict=True)]
    assert samples == [5, 5, 2]
    assert len(rows) == (3 if row_tokens is None else 12)


def test_dropout_is_on_in_steps_and_off_in_evaluations(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []

    def watch(model: Any, row: PackedBatch, preprocessor: Any, *rest: Any) -> RowLoss:
        modes.append(model.training)
        return row_loss(model, row, preprocessor, *rest)

    monkeypatch.setattr("yivl_core.training.sft.row_loss", watch)
    train(eval_steps=1)
    assert modes == [True, False] * 3


def test_the_loss_of_a_step_is_averaged_over_its_tokens_not_its_rows(train: Train) -> None:
    whole, single = (
        train(output=name, row_tokens=row_tokens, lora_dropout=0, target_modules="all", max_grad_norm=1e9)
        for name, row_tokens in (("whole", None), ("single", 1))
    )
    for name in ("loss", "grad_norm", "val_loss"):
        assert figures(whole, name) == pytest.approx(figures(single, name), rel=1e-4)
    one, other = (load_file(Path(summary.adapter) / "adapter_model.safetensors") for summary in (whole, single))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=2e-4)


def test_of_whole_receipts_the_answer_of_every_round_is_learned(
    train: Train, tiny_checkpoint: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shared_data / "data" / "sroie_receipts" / "train.jsonl"
    data = validate_dataset(ValidationConfig(dataset=(str(lines),), output=str(tmp_path / "data")))
    rows: list[PackedBatch] = []

    def keep(model: Any, row: PackedBatch, preprocessor: Any, *rest: Any) -> RowLoss:
        rows.append(row)
        return row_loss(model, row, preprocessor, *rest)

    monkeypatch.setattr("yivl_core.training.sft.row_loss", keep)
    summary = train(dataset=data.output, val_fraction=0, batch_size=14)
    assert (summary.num_train_samples, summary.num_dropped, summary.num_steps) == (28, 0, 2)
    learned = torch.cat([row.targets for row in rows]).tolist()
    answers = Processor.from_checkpoint(tiny_checkpoint).tokenizer.decode(learned).split("###")
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    expected = [answer for record in records for answer in [*(pair[1] for pair in record["history"]), record["response"]]]
    assert len(expected) == 84
    assert sorted(answer.strip() for answer in answers) == sorted([*expected, ""])


def test_a_record_that_is_too_long_is_dropped_and_reported(train: Train, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(5, responses={1: "and more " * 60})
    summary = train(dataset=str(dataset), max_length=300)
    assert (summary.num_dropped, summary.num_train_samples + summary.num_val_samples) == (1, 4)
    [dropped] = [json.loads(line) for line in (Path(summary.output) / "dropped.jsonl").read_text().splitlines()]
    assert dropped["source"].endswith("rows.jsonl:2")
    assert dropped["num_tokens"] > 300


def test_a_record_that_is_too_long_is_cut_if_asked_for(
    train: Train, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(5, responses={1: "and more " * 60})
    lengths: list[int] = []
    load = SampleReader.load

    def watch(self: SampleReader, index: int) -> ModelInputs:
        inputs = load(self, index)
        lengths.append(len(inputs.input_ids))
        return inputs

    monkeypatch.setattr(SampleReader, "load", watch)
    summary = train(dataset=str(dataset), max_length=300, too_long="truncate", val_fraction=0)
    assert (summary.num_dropped, summary.num_train_samples) == (0, 5)
    assert len(lengths) == 5
    assert 290 < max(lengths) <= 300
    assert (Path(summary.output) / "dropped.jsonl").read_text() == ""


def test_a_record_without_room_for_its_images_is_dropped_even_so(train: Train, make_dataset: MakeDataset) -> None:
    summary = train(dataset=str(make_dataset(4)), max_length=210, too_long="truncate", val_fraction=0)
    [dropped] = [json.loads(line) for line in (Path(summary.output) / "dropped.jsonl").read_text().splitlines()]
    assert dropped["source"].endswith("rows.jsonl:3"), "the one with two images"
    assert dropped["num_tokens"] is None
    assert summary.num_train_samples == 3


def test_another_dataset_can_be_evaluated_on(train: Train, make_dataset: MakeDataset, tiny_checkpoint: Path) -> None:
    other = make_dataset(3, responses={0: "Something else."})
    summary = train(val_dataset=str(other))
    assert (summary.num_train_samples, summary.num_val_samples) == (12, 3)
    assert list_records(Path(summary.output) / "val.jsonl") == list_records(other / "records.jsonl")
    loss, _ = evaluate_with_the_model_of_record(tiny_checkpoint, summary.adapter, held_out(summary))
    assert summary.val_loss == pytest.approx(loss, abs=1e-5)


def test_without_held_out_records_the_last_is_kept(train: Train) -> None:
    summary = train(val_fraction=0)
    assert (summary.num_train_samples, summary.num_val_samples) == (12, 0)
    assert (summary.val_loss, summary.val_token_accuracy, summary.best_step) == (None, None, 3)
    assert figures(summary, "val_loss") == []
    assert Path(summary.val_dataset).read_bytes() == b""


@pytest.mark.usefixtures("plots")
def test_the_run_folder_says_what_decided_it(train: Train, dataset: Path, tiny_checkpoint: Path) -> None:
    summary = train(learning_rate=2e-3)
    content = manifest(summary)
    assert content["settings"] == {
        **TrainingSettings(batch_size=4, learning_rate=2e-3, row_tokens=4096).model_dump(
            exclude={"device", "dtype"} | WITHOUT_EFFECT
        )
    }
    assert content["data"] == {
        "digest": json.loads((dataset / "report.json").read_text())["digest"],
        "held_out_digest": digest_records(read_records(Path(summary.val_dataset))),
        "num_train": 11,
        "num_val": 1,
    }
    assert content["model"]["digest"] == checkpoint_digest(tiny_checkpoint)
    weights = hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert content["model"]["files"]["model.safetensors"] == weights
    assert content["prompt"] == describe_prompt()
    assert content["numerics"] == {"dtype": "float32", "device": "cpu"}
    assert content["result"]["result_digest"] == summary.result_digest == adapter_digest(summary.adapter)
    about = read_about(Path(summary.adapter))
    assert about["base_digest"] == summary.base_digest == checkpoint_digest(tiny_checkpoint)
    assert about["dataset_digest"] == content["data"]["digest"]
    assert (Path(summary.adapter) / "val.jsonl").read_bytes() == Path(summary.val_dataset).read_bytes() != b""
    assert sorted(path.name for path in Path(summary.output).iterdir()) == [
        "adapter", "checkpoints", "dropped.jsonl", "manifest.json", "metrics.jsonl", "plots", "tensorboard", "val.jsonl",
    ]  # fmt: skip


def test_the_callers_random_numbers_are_left_alone(train: Train) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train()
    assert torch.equal(torch.rand(3), expected)


BASE = {
    "num_epochs": 1, "batch_size": 3, "max_length": 260, "row_tokens": 2000, "val_fraction": 0.3, "learning_rate": 0.01,
    "eval_steps": 2,
}  # fmt: skip
FULL = {"tuner": "full"}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # what is common, what changes, and what that has to change
    "target_modules": ({}, {"target_modules": "all"}, "weights"),
    "lora_rank": ({}, {"lora_rank": 4}, "weights"),
    "lora_alpha": ({}, {"lora_alpha": 16}, "weights"),
    "lora_dropout": ({}, {"lora_dropout": 0.5}, "weights"),
    "use_rslora": ({}, {"use_rslora": True}, "weights"),
    "use_dora": ({}, {"use_dora": True}, "weights"),
    "loraplus_lr_ratio": ({}, {"loraplus_lr_ratio": 4}, "weights"),
    "freeze_llm": (FULL, {"freeze_llm": True}, "weights"),
    "freeze_projector": (FULL, {"freeze_projector": True}, "weights"),
    "freeze_vision_tower": (FULL, {"freeze_vision_tower": True}, "weights"),
    "learning_rate": ({}, {"learning_rate": 0.02}, "weights"),
    "projector_learning_rate": (FULL, {"projector_learning_rate": 0.02}, "weights"),
    "vision_learning_rate": ({"target_modules": "all"}, {"vision_learning_rate": 0.02}, "weights"),
    "optimizer": (FULL, {"optimizer": "muon"}, "weights"),
    "lr_schedule": ({}, {"lr_schedule": "constant"}, "weights"),
    "warmup_ratio": ({}, {"warmup_ratio": 0.5}, "weights"),
    "weight_decay": ({}, {"weight_decay": 0.9}, "weights"),
    "adam_beta1": ({}, {"adam_beta1": 0.5}, "weights"),
    "adam_beta2": ({}, {"adam_beta2": 0.9}, "weights"),
    "max_grad_norm": ({}, {"max_grad_norm": 0.01}, "weights"),
    "batch_size": ({}, {"batch_size": 2}, "weights"),
    "num_epochs": ({}, {"num_epochs": 2}, "weights"),
    "max_length": ({}, {"max_length": 500}, "dropped"),
    "too_long": ({}, {"too_long": "truncate"}, "dropped"),
    "row_tokens": ({}, {"row_tokens": 1}, "weights"),
    "val_fraction": ({}, {"val_fraction": 0.5}, "val"),
    "eval_steps": ({}, {"eval_steps": 1}, "metrics"),
    "eval_answers": ({}, {"eval_answers": 2}, "metrics"),
    "save_steps": ({}, {"save_steps": 1}, "saved"),
    "log_steps": ({}, {"log_steps": 2}, "metrics"),
    "seed": ({}, {"seed": 1}, "weights"),
    "cache_samples": ({"num_epochs": 3}, {"cache_samples": True}, "weights"),
    "augmentation": ({}, {"augmentation": 0.5}, "weights"),
    "dtype": ({}, {"dtype": "bfloat16"}, "weights"),
}
TESTED_BY_THEMSELVES = {
    "tuner", "keep", "device", "recompute", "gpu_memory", "quantization", "compile", "num_workers", "max_shard_bytes",
    "best_metric", "early_stopping_patience", "feature_cache",
}  # fmt: skip


class Runs:
    """Runs of three steps, each setting once."""

    def __init__(self, checkpoint: Path, dataset: Path, folder: Path) -> None:
        self._values = {"model": str(checkpoint), "dataset": str(dataset)}
        self._folder = folder
        self._num_runs = 0

    @cache  # noqa: B019  (as long-lived as the module's tests)
    def results(self, **settings: Any) -> dict[str, Any]:
        saved: list[int] = []

        def save(folder: Path, tuning: Tuning, optimizers: Optimizers, state: TrainingState) -> None:
            saved.append(state.step)
            save_training(folder, tuning, optimizers, state)

        self._num_runs += 1
        output = self._folder / str(self._num_runs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("yivl_core.training.sft.save_training", save)
            patch.setattr(Metrics, "plot", lambda self: None)
            summary = train_adapter(TrainingConfig(**BASE | self._values | settings | {"output": str(output)}))
        names = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors")
        paths = [Path(summary.adapter or summary.model) / name for name in names]
        return {
            "weights": [path.read_bytes() for path in paths if path.exists()],
            "metrics": metrics(summary),
            "val": Path(summary.val_dataset).read_bytes(),
            "dropped": (output / "dropped.jsonl").read_bytes(),
            "saved": saved,
        }


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, make_dataset: MakeDataset, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On fourteen records, of which two are longer than 260 tokens."""
    dataset = make_dataset(14, responses={1: "and more " * 12, 4: "and more " * 12})
    return Runs(tiny_checkpoint, dataset, tmp_path_factory.mktemp("runs"))


def test_equal_settings_give_equal_runs(runs: Runs) -> None:
    assert runs.results() == runs.results(device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_run(name: str, runs: Runs) -> None:
    common, change, what = CHANGES[name]
    assert runs.results(**common | change)[what] != runs.results(**common)[what]


def test_no_setting_is_forgotten_there() -> None:
    assert set(CHANGES) | TESTED_BY_THEMSELVES == set(TrainingSettings.model_fields)
