"""A run that was stopped, however it was, ends as one that was never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import read_records
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import OutputError, StorageError
from yivl_core.model.random_checkpoint import write_random_checkpoint
from yivl_core.model.tensors import save_tensors
from yivl_core.outputs.manifest import write_manifest
from yivl_core.progress import Progress
from yivl_core.training.checkpoint import save_training
from yivl_core.training.configuration import WITHOUT_EFFECT, TrainingConfig, TrainingSettings, TrainingSummary
from yivl_core.training.sft import train_adapter
from yivl_core.training.throughput import MEASURED

pytestmark = pytest.mark.slow
MakeDataset = Callable[..., Path]
# Eleven samples in steps of three: a run of eight steps, and none of its checkpoints is at the end of an epoch.
SETTINGS: dict[str, Any] = {
    "target_modules": "all", "lora_dropout": 0.3, "learning_rate": 0.01, "batch_size": 3, "num_epochs": 2, "eval_steps": 3,
    "save_steps": 2, "row_tokens": 600,
}  # fmt: skip


def make_config(checkpoint: Path, dataset: Path, output: Path, **changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"model": str(checkpoint), "dataset": str(dataset), "output": str(output)} | SETTINGS | changes)


def resume(config: TrainingConfig, **kwargs: Any) -> TrainingSummary:
    return train_adapter(config.model_copy(update={"resume": True}), **kwargs)


@pytest.fixture(scope="module")
def uninterrupted(tiny_checkpoint: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSummary:
    """Not to be written to."""
    return train_adapter(make_config(tiny_checkpoint, dataset, tmp_path_factory.mktemp("uninterrupted") / "run"))


@pytest.fixture
def config(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> TrainingConfig:
    return make_config(tiny_checkpoint, dataset, tmp_path / "run")


@pytest.fixture
def finished(uninterrupted: TrainingSummary, config: TrainingConfig) -> TrainingConfig:
    """A copy of the finished run, for tests that damage it."""
    shutil.copytree(uninterrupted.output, config.output)
    return config


def metrics(folder: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def events(folder: str) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(Path(folder) / "tensorboard"))
    found.Reload()
    names = [tag for tag in found.Tags()["scalars"] if tag not in MEASURED]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in names}


def assert_equal_runs(one: TrainingSummary, other: TrainingSummary) -> None:
    """Bit for bit, but for the places and times."""
    assert replace(one, output="", adapter="", val_dataset="") == replace(other, output="", adapter="", val_dataset="")
    assert metrics(one.output) == metrics(other.output)
    assert events(one.output) == events(other.output)
    assert contents(Path(one.output)) == contents(Path(other.output))


def contents(folder: Path) -> dict[str, Any]:
    """The files of a run but those with times in them; of the manifest what does not depend on when it was written."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(("tensorboard/", "metrics.jsonl", "plots/")):
            found[name] = path.read_bytes()
    manifest = json.loads(found["manifest.json"])
    found["manifest.json"] = {key: value for key, value in manifest.items() if key not in ("times", "digest", "code")}
    return found


@pytest.fixture
def one_run_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events files are told apart by the second in which they were begun; here each run begins in another one."""
    seconds = count(int(time.time()))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", SimpleNamespace(time=lambda: next(seconds)))


@pytest.mark.usefixtures("one_run_a_second")
def test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not(
    uninterrupted: TrainingSummary, config: TrainingConfig
) -> None:
    stops: list[int] = []

    def stop_one_later(progress: Progress) -> None:
        if "loss" in progress.figures and progress.done > len(stops):
            stops.append(progress.done)
            raise KeyboardInterrupt

    while len(stops) < uninterrupted.num_steps:
        with pytest.raises(KeyboardInterrupt):
            resume(config, on_progress=stop_one_later)
        assert not (Path(config.output) / "adapter").exists()
    assert stops == list(range(1, uninterrupted.num_steps + 1))
    assert_equal_runs(resume(config), uninterrupted)


def start(settings: str, hash_seed: str, *command: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": hash_seed}
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(settings)
    process.stdin.close()
    return process


KILLED_IN_FORKS = """
import json, os, signal, sys
from contextlib import contextmanager
import yivl_core.training.checkpoint as checkpoint
from yivl_core.training.sft import TrainingConfig, train_adapter

save_tensors, publish_folder, rmtree, num_saved = checkpoint.save_tensors, checkpoint.publish_folder, checkpoint.shutil.rmtree, 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def save_half_of_it(path, tensors):
    global num_saved
    num_saved += 1
    if num_saved == 3:
        path.write_bytes(b"half of a file")
        die()
    save_tensors(path, tensors)

@contextmanager
def publish_and_die(folder):
    with publish_folder(folder) as temporary:
        yield temporary
    if folder.name == "step-000004":
        die()

def remove_half_of_it(folder, *arguments, **settings):
    if folder.name == "step-000003":
        next(folder.glob("*.safetensors")).unlink()
        die()
    rmtree(folder, *arguments, **settings)

def run(when, settings):
    if when == "writing":
        checkpoint.save_tensors = save_half_of_it
    elif when == "written":
        checkpoint.publish_folder = publish_and_die
    else:
        checkpoint.shutil.rmtree = remove_half_of_it
    train_adapter(TrainingConfig(**settings))

for when, settings in json.loads(sys.stdin.read()).items():
    if os.fork() == 0:
        run(when, settings)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
"""
LEFT = {
    "training": ["step-000003", "step-000004"],
    "terminated": [],  # whatever is there as soon as it listens
    "writing": [".step-000004", "step-000003"],
    "written": ["step-000003", "step-000004"],
    "removing": ["step-000003", "step-000004", "step-000006"],
}


def signal_at(process: subprocess.Popen[str], step: int, number: signal.Signals) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event.get("done") == step and "loss" in event["figures"]:
            process.send_signal(number)


@pytest.fixture(scope="module")
def killed(tiny_checkpoint: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingConfig]:
    """Runs killed in mid-epoch, one by a scheduler's signal; while a checkpoint is written, behind it, and as one is removed."""
    folder = tmp_path_factory.mktemp("killed")
    configs = {name: make_config(tiny_checkpoint, dataset, folder / name) for name in LEFT}
    in_forks = {name: configs[name].model_dump() for name in ("writing", "written", "removing")}
    train = ("-m", "yivl_core", "train")
    with (
        start(configs["training"].model_dump_json(), "1", *train) as training,
        start(configs["terminated"].model_dump_json(), "2", *train) as terminated,
        start(json.dumps(in_forks), "3", "-c", KILLED_IN_FORKS) as forks,
    ):
        with ThreadPoolExecutor() as pool:
            pool.map(signal_at, (training, terminated), (5, 2), (signal.SIGKILL, signal.SIGTERM))
        codes = [process.wait(timeout=120) for process in (training, terminated, forks)]
    assert codes == [-signal.SIGKILL, 130, 0]
    time.sleep(1)  # events files are told apart by the second in which they were begun
    return configs


@pytest.mark.parametrize("when", LEFT)
def test_a_run_that_is_killed_ends_as_one_that_is_not(
    when: str, killed: dict[str, TrainingConfig], uninterrupted: TrainingSummary
) -> None:
    checkpoints = Path(killed[when].output) / "checkpoints"
    if when != "terminated":
        assert sorted(path.name.split(".tmp-")[0] for path in checkpoints.iterdir()) == LEFT[when]
        configs = {path.read_bytes() for path in checkpoints.glob("step-*/adapter_config.json")}
        assert configs == {(Path(uninterrupted.adapter) / "adapter_config.json").read_bytes()}, "whatever the order of sets"
    assert_equal_runs(resume(killed[when]), uninterrupted)


def test_a_run_that_another_process_finishes_meanwhile_is_not_published_twice(
    uninterrupted: TrainingSummary, config: TrainingConfig
) -> None:
    published: list[int] = []

    def finish_it(progress: Progress) -> None:
        if progress.message.startswith("loading") and not published:
            published.append(0)
            published[0] = Path(resume(config).adapter).stat().st_ino

    summary = resume(config, on_progress=finish_it)
    assert Path(summary.adapter).stat().st_ino == published[0]
    assert_equal_runs(summary, uninterrupted)


def test_a_finished_run_is_not_made_again(
    uninterrupted: TrainingSummary, finished: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("yivl_core.training.sft.prepare_tuning")
    before = {path: path.stat().st_mtime_ns for path in Path(finished.output).rglob("*")}
    assert_equal_runs(resume(finished), uninterrupted)
    assert {path: path.stat().st_mtime_ns for path in Path(finished.output).rglob("*")} == before


LOSSES: dict[str, Callable[[Path], object]] = {
    "the adapter": lambda run: shutil.rmtree(run / "adapter"),
    "its weights": lambda run: (run / "adapter" / "adapter_model.safetensors").unlink(),
    "half of its weights": lambda run: os.truncate(run / "adapter" / "adapter_model.safetensors", 1000),
    "its configuration": lambda run: (run / "adapter" / "adapter_config.json").write_text("{"),
    "its held-out records": lambda run: (run / "adapter" / "val.jsonl").unlink(),
    "what it was made of": lambda run: (run / "adapter" / "yivl.json").unlink(),
    "the held-out records beside it": lambda run: (run / "val.jsonl").unlink(),
    "adapter and figures": lambda run: list(map(remove, (run / "adapter", run / "metrics.jsonl"))),
    "adapter and some figures": lambda run: (remove(run / "adapter"), keep_lines(run / "metrics.jsonl", 2)),
    "adapter and all figures": lambda run: (remove(run / "adapter"), keep_lines(run / "metrics.jsonl", 0)),
    "adapter and the last figures": lambda run: (remove(run / "adapter"), keep_lines(run / "metrics.jsonl", -1)),
    "adapter and half of a checkpoint": lambda run: (
        remove(run / "adapter"),
        os.truncate(run / "checkpoints" / "step-000008" / "adapter_model.safetensors", 99),
    ),
    "adapter and checkpoints": lambda run: list(map(shutil.rmtree, (run / "adapter", run / "checkpoints"))),
}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def keep_lines(path: Path, number: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:number]))


@pytest.mark.parametrize("what", LOSSES)
def test_what_a_finished_run_has_lost_is_made_again(what: str, uninterrupted: TrainingSummary, finished: TrainingConfig) -> None:
    LOSSES[what](Path(finished.output))
    assert_equal_runs(resume(finished), uninterrupted)


def test_the_figures_of_a_checkpoint_are_on_disk_before_it(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(config.output) / "metrics.jsonl"
    flush, on_disk, checkpoints = os.fsync, b"", []

    def remember(descriptor: int) -> None:
        nonlocal on_disk
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            on_disk = path.read_bytes()
        flush(descriptor)

    def look(folder: Path, *rest: Any) -> None:
        checkpoints.append(rest[-1].step)
        assert (on_disk, on_disk.count(b"\n")) == (path.read_bytes(), rest[-1].num_figures)
        save_training(folder, *rest)

    monkeypatch.setattr("os.fsync", remember)
    monkeypatch.setattr("yivl_core.training.sft.save_training", look)
    train_adapter(config)
    assert checkpoints == [2, 3, 4, 6, 8]


def test_a_full_disk_stops_the_run_and_loses_nothing(
    uninterrupted: TrainingSummary, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_until_full(path: Path, tensors: Any) -> None:
        if "step-000004" in str(path):
            raise OSError(28, "No space left on device", str(path))
        save_tensors(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr("yivl_core.training.checkpoint.save_tensors", save_until_full)
        with pytest.raises(StorageError, match="the disk is full; free some space and run it again"):
            train_adapter(config)
    assert_equal_runs(resume(config), uninterrupted)


CHANGES: dict[str, Any] = {
    "target_modules": "default", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.5, "use_rslora": True,
    "use_dora": True, "loraplus_lr_ratio": 4.0, "learning_rate": 0.02, "lr_schedule": "constant", "warmup_ratio": 0.5,
    "weight_decay": 0.9, "adam_beta1": 0.5, "adam_beta2": 0.9, "max_grad_norm": 0.01, "batch_size": 2,
    "num_epochs": 3, "max_length": 500, "too_long": "truncate", "row_tokens": 1, "val_fraction": 0.5, "eval_steps": 1,
    "save_steps": 1, "keep": "last", "seed": 1, "tuner": "full", "freeze_llm": True,
    "freeze_projector": True, "freeze_vision_tower": True, "projector_learning_rate": 0.02, "vision_learning_rate": 0.02,
    "optimizer": "muon", "augmentation": 0.5, "max_shard_bytes": 2_000_000,
    "cache_samples": True, "eval_answers": 1, "best_metric": "val_cer", "early_stopping_patience": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_resuming_with_another_setting_is_refused_by_name(
    name: str, uninterrupted: TrainingSummary, config: TrainingConfig
) -> None:
    changed = config.model_copy(update={"output": uninterrupted.output, name: CHANGES[name]})
    with pytest.raises(OutputError) as error:
        resume(changed)
    first, *lines = str(error.value).splitlines()
    assert first.endswith("was started with other settings; use the same ones, or choose another folder")
    assert f"  settings.{name}: {getattr(config, name)!r} there, {CHANGES[name]!r} now" in lines
    assert all(line.startswith((f"  settings.{name}: ", "  data.num_", "  data.held_out_digest")) for line in lines)


def test_only_what_decides_no_figure_may_change(uninterrupted: TrainingSummary, finished: TrainingConfig) -> None:
    assert set(CHANGES) | {"dtype", "device", "quantization", "feature_cache", "compile"} | WITHOUT_EFFECT == set(
        TrainingSettings.model_fields
    )
    assert_equal_runs(resume(finished.model_copy(update={"log_steps": 3, "device": "cpu", "recompute": "full"})), uninterrupted)
    with pytest.raises(OutputError, match=r"\n  numerics.dtype: 'float32' there, 'bfloat16' now$"):
        resume(finished.model_copy(update={"dtype": "bfloat16"}))


def test_a_run_of_a_version_with_fewer_settings_is_gone_on_with(
    uninterrupted: TrainingSummary, finished: TrainingConfig, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted.output, tmp_path / "earlier")
    path = tmp_path / "earlier" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    for name in ("use_dora", "loraplus_lr_ratio", "feature_cache"):
        del manifest["settings"][name]
    write_manifest(str(path), manifest, manifest.pop("times"))
    earlier = finished.model_copy(update={"output": str(tmp_path / "earlier")})
    assert resume(earlier).result_digest == uninterrupted.result_digest
    with pytest.raises(OutputError, match=r"\n  settings.use_dora: False there, True now$"):
        resume(earlier.model_copy(update={"use_dora": True}))


def test_resuming_with_other_data_or_another_base_is_refused_by_name(
    finished: TrainingConfig, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    other = str(make_dataset(12, responses={3: "Something else."}))
    with pytest.raises(OutputError, match=r"\n  data.digest: '[0-9a-f]{64}' there, '[0-9a-f]{64}' now$"):
        resume(finished.model_copy(update={"dataset": other}))
    with pytest.raises(OutputError, match=r"\n  data.val_digest: None there, '[0-9a-f]{64}' now"):
        resume(finished.model_copy(update={"val_dataset": other}))
    write_random_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(OutputError, match=r"\n  model.digest: '[0-9a-f]{64}' there, '[0-9a-f]{64}' now$"):
        resume(finished.model_copy(update={"model": str(tmp_path / "other")}))


def test_a_finished_run_tells_where_its_held_out_records_lie_now(
    uninterrupted: TrainingSummary, finished: TrainingConfig, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset.parent, tmp_path / "moved")
    rows = str(tmp_path / "moved" / "rows.jsonl")
    moved = validate_dataset(ValidationConfig(dataset=(rows,), output=str(tmp_path / "validated"))).output
    summary = resume(finished.model_copy(update={"dataset": moved}))
    assert summary.result_digest == uninterrupted.result_digest
    for folder in (summary.output, summary.adapter):
        told = list(read_records(Path(folder) / "val.jsonl"))
        assert len(told) == uninterrupted.num_val_samples
        assert all(str(row.source).startswith(str(tmp_path)) for row in told)
        assert all(image.path.startswith(str(tmp_path)) for row in told for image in row.images)


def test_the_same_base_and_data_elsewhere_are_the_same_run(
    uninterrupted: TrainingSummary, finished: TrainingConfig, tmp_path: Path
) -> None:
    for name in ("model", "dataset"):
        shutil.copytree(getattr(finished, name), tmp_path / name)
    moved = finished.model_copy(update={name: str(tmp_path / name) for name in ("model", "dataset")})
    assert resume(moved).result_digest == uninterrupted.result_digest
