"""What a training run refuses, what it says then, and that nothing is left behind."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from yivl_core.data.images import ImageError
from yivl_core.errors import CheckpointError, ConfigurationError, DatasetError, OutputError, StorageError
from yivl_core.training.configuration import TrainingSettings, TrainingSummary
from yivl_core.training.loss import RowLoss, row_loss

Train = Callable[..., TrainingSummary]
MakeDataset = Callable[..., Path]


def test_targets_that_match_nothing_are_refused_before_anything_is_written(train: Train, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"target_modules 'q_proj' matches no linear layer; it has to match a whole name"
    ):
        train(target_modules="q_proj")
    assert not (tmp_path / "run").exists()
    train()


def test_a_broken_base_is_refused_before_anything_is_written(train: Train, tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged weight file"):
        train(model=str(broken))
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"device 'cuda:77': this machine has \d+ GPU"):
        train(device="cuda:77")
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_validated_dataset(train: Train, dataset: Path, tmp_path: Path) -> None:
    rows = str(dataset.parent / "rows.jsonl")
    with pytest.raises(DatasetError, match=rf"{re.escape(rows)}: this is not a validated dataset; make one with `yivl validate"):
        train(dataset=rows)
    assert not (tmp_path / "run").exists()


def test_no_record_left_is_an_error(train: Train, tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"no record to train on \(12 in it, 12 of them longer than 20 tokens\); raise max_length"
    ):
        train(max_length=20)
    assert not (tmp_path / "run").exists()


def test_no_record_left_to_evaluate_on_is_an_error(train: Train, make_dataset: MakeDataset, tmp_path: Path) -> None:
    other = make_dataset(1, responses={0: "long " * 60})
    with pytest.raises(DatasetError, match=r"no record to evaluate on \(1 in it are longer than 250 tokens\); raise max_length"):
        train(val_dataset=str(other), max_length=250)
    assert not (tmp_path / "run").exists()


def test_nothing_to_hold_out_is_an_error_unless_none_is_wanted(train: Train, make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = str(make_dataset(1))
    message = r"no record can be held out, since all 1 that fit are one, or share an image; give a `val_dataset`, or .*0"
    with pytest.raises(DatasetError, match=message):
        train(dataset=dataset)
    assert not (tmp_path / "run").exists()
    assert train(dataset=dataset, val_fraction=0).num_val_samples == 0


def test_a_record_without_a_response_is_named(train: Train, make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset(4, responses={2: None}, purpose="inference")
    with pytest.raises(DatasetError, match=r'rows.jsonl:3: .*no "response" to learn from; add one'):
        train(dataset=str(dataset))
    assert not (tmp_path / "run").exists()


def test_an_image_that_was_changed_since_validation_is_named(train: Train, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(4)
    Image.new("RGB", (9, 9), "red").save(dataset.parent / "1-0.png")
    rows = dataset.parent / "rows.jsonl"
    message = rf"^{re.escape(str(rows))}:2: .*1-0\.png is not the image that was validated: .* or validate the dataset again$"
    with pytest.raises(ImageError, match=message) as caught:
        train(dataset=str(dataset))
    assert caught.value.kind == "image_changed"
    assert caught.value.remedy == "bring the image back, or validate the dataset again"


def test_an_image_that_is_gone_is_named_and_brought_back_the_run_goes_on(train: Train, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(8)
    expected = train(output="undisturbed", dataset=str(dataset), num_epochs=2, save_steps=1)
    image = dataset.parent / "4-0.png"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(ImageError, match=r'rows\.jsonl:5: image "4-0\.png" is not there \(.*\); correct the address') as caught:
        train(dataset=str(dataset), num_epochs=2, save_steps=1)
    assert caught.value.kind == "image_missing"
    image.write_bytes(content)
    assert train(dataset=str(dataset), num_epochs=2, save_steps=1, resume=True).result_digest == expected.result_digest


def test_a_dataset_that_was_edited_after_validation_is_refused(train: Train, make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset(4)
    records = dataset / "records.jsonl"
    records.write_text(records.read_text().replace("It is number 2", "It is number 3"))
    with pytest.raises(DatasetError, match=r"changed after validation; run `yivl validate` again"):
        train(dataset=str(dataset))
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_not_empty_is_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("...")
    with pytest.raises(OutputError, match=r"run: is not empty and holds no training run; choose another folder"):
        train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_second_run_does_not_overwrite_the_first(train: Train, tmp_path: Path) -> None:
    train()
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match=r"holds a training run; go on with it with --resume, or choose another folder"):
        train(seed=3)
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_a_remote_output_is_refused(train: Train) -> None:
    with pytest.raises(ConfigurationError, match=r"memory://run: a training run has to be a folder on this machine"):
        train(output="memory://run")


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("log_steps", [1, 100])
def test_a_loss_that_is_no_number_stops_the_run_and_spoils_no_checkpoint(
    what: str, log_steps: int, train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the fifth of nine steps; the fourth was saved, and the sixth would be."""
    num_rows = 0

    class NoNumber(torch.autograd.Function):
        """A loss that looks well and has a gradient that is not."""

        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("nan")

    def spoilt(model: Any, row: Any, preprocessor: Any, *rest: Any) -> RowLoss:
        nonlocal num_rows
        loss = row_loss(model, row, preprocessor, *rest)
        num_rows += 1
        if num_rows != 5:
            return loss
        total = loss.total * float("nan") if what == "loss" else NoNumber.apply(loss.total)  # type: ignore[no-untyped-call]
        return RowLoss(total, loss.num_correct, loss.num_learned)

    monkeypatch.setattr("yivl_core.training.sft.row_loss", spoilt)
    message = r"step 5: the loss or its gradient is no longer a finite number; lower the learning rate \(now 0.001\), "
    with pytest.raises(ConfigurationError, match=message) as raised:
        train(num_epochs=3, save_steps=2, eval_steps=100, val_fraction=0, log_steps=log_steps)
    told = str(raised.value)
    assert told.endswith(f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-000004'}")
    assert len(re.findall(r"rows\.jsonl:\d+", told)) == 4, "the samples of the step"
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-000004"]
    tensors = load_file(checkpoints[0] / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert all(value == value for value in json.loads(line).values())
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_held_out_loss_that_is_no_number_is_told_as_such(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(model: Any, *rest: Any) -> RowLoss:
        loss = row_loss(model, *rest)
        return loss if model.training else RowLoss(loss.total * float("nan"), loss.num_correct, loss.num_learned)

    monkeypatch.setattr("yivl_core.training.sft.row_loss", spoilt)
    message = r"step 2: the loss of 1 of 1 held-out rows is no number; lower .* or look at the held-out samples \(.*/val.jsonl\)"
    with pytest.raises(ConfigurationError, match=message):
        train(eval_steps=2, save_steps=1, val_fraction=0.3)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]


def test_layers_that_are_not_compiled_are_not_said_to_be(train: Train, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"compile has nothing to compile: .* no augmentation is asked for; leave it out"
    ):
        train(compile=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("allocate", ["gpu", "cpu"])
def test_rows_that_do_not_fit_into_memory_say_what_to_lower(allocate: str, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any) -> RowLoss:
        if allocate == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        torch.empty(1 << 60, dtype=torch.uint8)
        raise AssertionError("an exbibyte was there")

    monkeypatch.setattr("yivl_core.training.sft.row_loss", run_out)
    with pytest.raises(
        ConfigurationError, match=r"rows of 700 tokens do not fit into the memory of cpu; lower row_tokens or max_length"
    ):
        train(row_tokens=700)


def test_a_full_disk_at_the_start_is_named(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yivl_core.training.run_folder.SummaryWriter", fail)
    with pytest.raises(StorageError, match=r"run: the disk is full; free some space"):
        train()


def test_a_rate_that_is_far_too_high_says_so(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"step \d: the loss .*; lower the learning rate \(now 1\), use"):
        train(learning_rate=1, lora_alpha=10**30)
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_loss_that_rises_for_good_stops_the_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the seventeenth step on each is a nat worse."""
    num_rows = 0

    def rising(*arguments: Any) -> RowLoss:
        nonlocal num_rows
        num_rows += 1
        loss = row_loss(*arguments)
        return RowLoss(loss.total + loss.num_learned * max(0, num_rows - 16), loss.num_correct, loss.num_learned)

    monkeypatch.setattr("yivl_core.training.sft.row_loss", rising)
    message = r"step 2\d: the loss has risen for good: .* in the mean of the last 16 logged steps, .* at best, .*; lower the"
    with pytest.raises(ConfigurationError, match=message):
        train(num_epochs=20, val_fraction=0, batch_size=4)


def test_a_loss_that_is_no_number_names_the_rate_though_none_was_given(
    train: Train, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*arguments: Any) -> RowLoss:
        loss = row_loss(*arguments)
        return RowLoss(loss.total * float("nan"), loss.num_correct, loss.num_learned)

    monkeypatch.setattr("yivl_core.training.sft.row_loss", spoilt)
    with pytest.raises(ConfigurationError, match=r"lower the learning rate \(now 0.0001\)"):
        train(learning_rate=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", float("inf")), ("learning_rate", 1e38), ("max_grad_norm", float("inf")), ("num_epochs", float("nan"))],
)
def test_settings_that_are_no_numbers_to_work_with_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]
