"""Checkpoints: all there or not there, and read back bit for bit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from yivl_core.errors import StorageError
from yivl_core.model.files import open_checkpoint
from yivl_core.training.checkpoint import TrainingState, load_training, save_training, saved_steps, step_folder
from yivl_core.training.configuration import TrainingConfig
from yivl_core.training.optimization import Optimizers
from yivl_core.training.tuning import Tuning, prepare_tuning

Trained = tuple[Tuning, Optimizers]
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 2, "lora_alpha": 4},
    "dora": {"lora_rank": 2, "lora_alpha": 4, "use_dora": True, "loraplus_lr_ratio": 4},
    "full": {"tuner": "full", "freeze_llm": True, "optimizer": "muon"},
}


def start(checkpoint: Path, tuner: str = "lora", seed: int = 0) -> Trained:
    config = TrainingConfig(
        model=str(checkpoint), dataset="", output="", learning_rate=0.01, weight_decay=0.01, seed=seed, **SETTINGS[tuner]
    )
    tuning = prepare_tuning(open_checkpoint(checkpoint), config, torch.float32, torch.device("cpu"))
    optimizers = Optimizers(tuning.parameters(), config)
    optimizers.set_rate(1.0)
    return tuning, optimizers


def make_steps(trained: Trained, seeds: range) -> None:
    tuning, optimizers = trained
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in tuning.parameters().values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.step(torch.amp.GradScaler(enabled=False))


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained[0].parameters().items()}


@pytest.fixture
def trained(tiny_checkpoint: Path) -> Trained:
    trained = start(tiny_checkpoint)
    make_steps(trained, range(3))
    return trained


@pytest.mark.parametrize("tuner", SETTINGS)
def test_going_on_from_a_checkpoint_equals_never_stopping(tuner: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    trained = start(tiny_checkpoint, tuner)
    make_steps(trained, range(3))
    state = TrainingState(step=3, best_step=3, best_value=1.5)
    save_training(tmp_path, *trained, state)
    other = start(tiny_checkpoint, tuner, seed=1)
    assert load_training(tmp_path, *other, []) == state
    before = weights(trained)
    for one in (trained, other):
        make_steps(one, range(3, 6))
    expected, actual = weights(trained), weights(other)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())
    assert not any(torch.equal(value, before[name]) for name, value in expected.items())


def test_without_a_checkpoint_a_run_starts_at_nought(trained: Trained, tmp_path: Path) -> None:
    before = weights(trained)
    assert load_training(tmp_path / "checkpoints", *trained, []) == TrainingState()
    assert all(torch.equal(value, before[name]) for name, value in weights(trained).items())


def test_the_newest_is_taken_and_the_best_is_kept_beside_it(trained: Trained, tmp_path: Path) -> None:
    for step, best_step in ((999_999, 999_999), (1_000_000, 999_999), (1_000_001, 999_999)):
        save_training(tmp_path, *trained, TrainingState(step=step, best_step=best_step, best_value=1.0))
    assert saved_steps(tmp_path) == [999_999, 1_000_001]
    assert load_training(tmp_path, *trained, []).step == 1_000_001


def test_half_written_checkpoints_are_ignored(trained: Trained, tmp_path: Path) -> None:
    save_training(tmp_path, *trained, TrainingState(step=1))
    half_written = tmp_path / ".step-000002.tmp-0123456789ab"
    half_written.mkdir()
    (half_written / "state.json").write_text('{"step": 2')
    assert saved_steps(tmp_path) == [1]
    assert load_training(tmp_path, *trained, []).step == 1
    save_training(tmp_path, *trained, TrainingState(step=2))
    assert saved_steps(tmp_path) == [2]


def flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], object]] = {
    "lost": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "a flipped bit": flip_last_bit,
    "a folder": put_a_folder_there,
}
FILES = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_checkpoint_does_not_count(harm: str, file: str, trained: Trained, tmp_path: Path) -> None:
    save_training(tmp_path, *trained, TrainingState(step=2, best_step=2, best_value=1.0))
    save_training(tmp_path, *trained, TrainingState(step=4, best_step=2, best_value=1.0))
    HARMS[harm](tmp_path / "step-000004" / file)
    assert load_training(tmp_path, *trained, []).step == 2
    save_training(tmp_path, *trained, TrainingState(step=3, best_step=2, best_value=1.0))
    assert saved_steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", HARMS)
def test_a_checkpoint_whose_best_one_is_harmed_does_not_count(harm: str, file: str, trained: Trained, tmp_path: Path) -> None:
    save_training(tmp_path, *trained, TrainingState(step=2, best_step=2, best_value=1.0))
    save_training(tmp_path, *trained, TrainingState(step=4, best_step=2, best_value=1.0))
    HARMS[harm](tmp_path / "step-000002" / file)
    assert load_training(tmp_path, *trained, []) == TrainingState()


@pytest.mark.parametrize("text", ["{}", "null", "[]", '"step"', '{"digest": null}'])
def test_a_checkpoint_whose_state_is_something_else_does_not_count(text: str, trained: Trained, tmp_path: Path) -> None:
    save_training(tmp_path, *trained, TrainingState(step=2))
    (tmp_path / "step-000002" / "state.json").write_text(text)
    make_steps(trained, range(3, 4))
    before = weights(trained)
    assert load_training(tmp_path, *trained, []) == TrainingState()
    assert all(torch.equal(value, before[name]) for name, value in weights(trained).items())


CHANGES = {"step": "2", "best_step": 1, "best_value": "1.0", "scaler": None, "num_figures": 1}


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("is_removed", [False, True])
def test_a_checkpoint_whose_state_was_changed_does_not_count(
    is_removed: bool, key: str, trained: Trained, tmp_path: Path
) -> None:
    save_training(tmp_path, *trained, TrainingState(step=2, best_step=2, best_value=1.0))
    path = tmp_path / "step-000002" / "state.json"
    record = json.loads(path.read_text())
    record = {name: value for name, value in record.items() if name != key} | ({} if is_removed else {key: CHANGES[key]})
    path.write_text(json.dumps(record))
    assert load_training(tmp_path, *trained, []) == TrainingState()


def test_weights_of_another_model_do_not_count(trained: Trained, tmp_path: Path) -> None:
    save_training(tmp_path, *trained, TrainingState(step=2))
    path = tmp_path / "step-000002" / "adapter_model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(path).items()}, path)
    assert load_training(tmp_path, *trained, []) == TrainingState()


def test_a_checkpoint_under_the_name_of_another_does_not_count(trained: Trained, tmp_path: Path) -> None:
    save_training(tmp_path, *trained, TrainingState(step=2))
    shutil.copytree(tmp_path / "step-000002", tmp_path / "step-000004")
    assert load_training(tmp_path, *trained, []).step == 2


def test_a_file_in_the_place_of_a_checkpoint_does_not_count_and_is_not_replaced(trained: Trained, tmp_path: Path) -> None:
    save_training(tmp_path, *trained, TrainingState(step=2))
    step_folder(tmp_path, 6).write_text("...")
    assert load_training(tmp_path, *trained, []).step == 2
    with pytest.raises(StorageError, match=r"step-000006: a file of this name is there already, where a folder belongs"):
        save_training(tmp_path, *trained, TrainingState(step=6))
    assert step_folder(tmp_path, 6).read_text() == "..."
    assert load_training(tmp_path, *trained, []).step == 2


@pytest.mark.parametrize(("logged_steps", "expected"), [([1, 2, 2, 3, 4], 4), ([1, 2, 2, 3], 2), ([1, 2, 4], 0), ([], 0)])
def test_a_checkpoint_counts_with_all_its_figures_alone(
    logged_steps: list[int], expected: int, trained: Trained, tmp_path: Path
) -> None:
    save_training(tmp_path, *trained, TrainingState(step=2, best_step=2, best_value=1.0, num_figures=3))
    save_training(tmp_path, *trained, TrainingState(step=4, best_step=2, best_value=1.0, num_figures=5))
    assert load_training(tmp_path, *trained, [*logged_steps, 5]).step == expected


def test_the_scale_of_the_loss_is_kept(trained: Trained, tmp_path: Path) -> None:
    state = TrainingState(step=2, scaler={"scale": 1024.0, "_growth_tracker": 7})
    save_training(tmp_path, *trained, state)
    assert load_training(tmp_path, *trained, []) == state


def test_a_checkpoint_that_fails_leaves_the_earlier_one(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_training(tmp_path, *trained, TrainingState(step=1))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yivl_core.training.checkpoint.save_tensors", fail)
    with pytest.raises(StorageError, match=r"step-000002: the disk is full; free some space and run it again"):
        save_training(tmp_path, *trained, TrainingState(step=2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_the_best_is_the_lowest_and_of_equals_the_first() -> None:
    state = TrainingState(step=1).evaluated(2.0)
    assert (state.best_step, state.best_value) == (1, 2.0)
    assert state.at(2).evaluated(2.0) == replace(state, step=2, num_worse=1)
    assert state.at(3).evaluated(3.0).best_step == 1
    assert state.at(4).evaluated(1.0) == TrainingState(step=4, best_step=4, best_value=1.0)


def test_folders_sort_by_their_steps(tmp_path: Path) -> None:
    assert [step_folder(tmp_path, step).name for step in (7, 1_234_567)] == ["step-000007", "step-1234567"]
