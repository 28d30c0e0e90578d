"""Who a run folder belongs to, and the figures in it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from yivl_core.errors import BusyError, OutputError, StorageError
from yivl_core.training.run_folder import Metrics, RunFolder, logged_steps

CONTENT: dict[str, Any] = {
    "command": "sft",
    "settings": {"tuner": "lora", "lora_rank": 8, "seed": 42},
    "data": {"digest": "d"},
    "model": {"digest": "m"},
    "prompt": {"version": 1},
    "numerics": {"dtype": "float32"},
}


def open_folder(path: Path, *, resume: bool = False, **changes: Any) -> RunFolder:
    return RunFolder(path, CONTENT | changes, resume=resume)


def start(path: Path) -> RunFolder:
    folder = open_folder(path)
    with folder.taken():
        return folder


def test_nothing_is_written_before_the_run_begins(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    assert not folder.path.exists()
    with folder.taken():
        assert {path.name for path in folder.path.iterdir()} == {".lock", "manifest.json"}
    assert [path.name for path in folder.path.iterdir()] == ["manifest.json"]


def test_a_run_is_worked_on_by_one_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yivl_core.locks._LOCK_TIMEOUT_S", 0.1)
    one, other = open_folder(tmp_path), open_folder(tmp_path)
    with one.taken():
        assert open_folder(tmp_path, resume=True).result is None, "to look at it is allowed"
        with pytest.raises(BusyError, match="another process works in this folder"), other.taken():
            pytest.fail("both at once")


def test_what_happened_while_waiting_for_the_folder_is_seen(tmp_path: Path) -> None:
    one, other, third = open_folder(tmp_path), open_folder(tmp_path), open_folder(tmp_path, resume=True)
    with one.taken():
        one.finish({"num_steps": 3})
    with pytest.raises(OutputError, match="holds a training run"), other.taken():
        pytest.fail("both from the start")
    with third.taken():
        assert third.result == {"num_steps": 3}


def test_half_written_files_of_a_killed_run_are_removed_but_not_those_of_a_validation(tmp_path: Path) -> None:
    left = ["checkpoints/.step-000002.tmp-0123456789ab/state.json", ".adapter.tmp-0123456789ab/yivl.json", ".val.jsonl.tmp-01"]
    kept = [".dataset.tmp-0123456789ab/records.jsonl", "checkpoints/step-000001/state.json"]
    start(tmp_path)
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("...")
    with open_folder(tmp_path, resume=True).taken():
        assert [name for name in (*left, *kept) if (tmp_path / name).exists()] == kept


def test_a_run_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(OutputError, match=r"run: holds a training run; go on with it with --resume, or choose another folder"):
        open_folder(tmp_path / "run")


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_somebody_else_is_refused(resume: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(OutputError, match=r"is not empty and holds no training run; choose another folder"):
        open_folder(tmp_path, resume=resume)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("...")
    with pytest.raises(OutputError, match=r"run: is a file; choose a folder for the training run"):
        open_folder(tmp_path / "run")


def test_what_a_killed_start_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.tmp-0123456789ab").write_text('{"comm')
    assert open_folder(tmp_path).result is None


def test_resuming_an_empty_folder_starts(tmp_path: Path) -> None:
    assert open_folder(tmp_path, resume=True).result is None


def test_every_other_setting_is_named(tmp_path: Path) -> None:
    start(tmp_path)
    changes = {
        "settings": {"tuner": "lora", "lora_rank": 4, "seed": 42},
        "data": {"digest": "e", "val_digest": "v"},
        "model": {"digest": "n"},
    }
    with pytest.raises(OutputError) as error:
        open_folder(tmp_path, resume=True, **changes)
    assert str(error.value).splitlines()[1:] == [
        "  settings.lora_rank: 8 there, 4 now",
        "  data.digest: 'd' there, 'e' now",
        "  data.val_digest: None there, 'v' now",
        "  model.digest: 'm' there, 'n' now",
    ]


def test_what_is_only_told_decides_nothing(tmp_path: Path) -> None:
    """A run of an earlier version, which tells of neither files nor texts, is gone on with."""
    earlier = start(tmp_path)
    told = {"model": {"digest": "m", "files": {"model.safetensors": "f"}}, "prompt": {"version": 1, "system": "Be kind."}}
    now = open_folder(tmp_path, resume=True, **told)
    assert now.digest == earlier.digest
    with pytest.raises(OutputError, match=r"\n  prompt.version: 1 there, 2 now$"):
        open_folder(tmp_path, resume=True, **told | {"prompt": {"version": 2, "system": "Be kind."}})


def test_a_setting_that_is_gone_is_named(tmp_path: Path) -> None:
    with open_folder(tmp_path, data={"digest": "d", "val_digest": "v"}).taken():
        pass
    with pytest.raises(OutputError, match=r"data.val_digest: 'v' there, None now"):
        open_folder(tmp_path, resume=True)


def test_the_result_is_found_again_and_the_start_is_kept(tmp_path: Path) -> None:
    folder = start(tmp_path)
    started = json.loads((tmp_path / "manifest.json").read_text())["times"]["started"]
    open_folder(tmp_path, resume=True).finish({"num_steps": 3})
    assert open_folder(tmp_path, resume=True).result == {"num_steps": 3}
    assert json.loads((tmp_path / "manifest.json").read_text())["times"]["started"] == started
    assert folder.result is None


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_going_on_drops_later_figures_and_an_unfinished_line(tmp_path: Path) -> None:
    killed = Metrics(tmp_path, 0)
    for step in range(1, 5):
        killed.log(step, {"loss": 8.0 / step})
    killed.log(2, {"val_loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    metrics = Metrics(tmp_path, 2)
    assert read_lines(tmp_path) == [{"step": 1, "loss": 8.0}, {"step": 2, "loss": 4.0}, {"step": 2, "val_loss": 1.0}]
    metrics.log(3, {"loss": 0.5})
    assert read_lines(tmp_path)[-1] == {"step": 3, "loss": 0.5}
    metrics.close()


@pytest.mark.parametrize(
    "line",
    [b"\x00\xff", b"", b"null", b"[1]", b"{}", b'{"step": "2"}', b'{"step": true}', b'{"step": 2, "loss": null}'],
)
def test_figures_that_were_damaged_are_refused(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 3, "loss": 1.0}\n')
    with pytest.raises(OutputError, match=r"metrics.jsonl: is damaged \(line 2: .*; remove the run's folder, or choose another"):
        logged_steps(tmp_path)


def test_a_folder_in_the_place_of_the_figures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics.jsonl: this is a folder, where a file belongs"):
        logged_steps(tmp_path)


def test_the_steps_of_all_whole_lines_are_known(tmp_path: Path) -> None:
    assert logged_steps(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "val_loss": 2}\n{"step": 2}')
    assert logged_steps(tmp_path) == [1, 1]


def test_what_was_flushed_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bytes] = []
    metrics = Metrics(tmp_path, 0)
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(os.pread(descriptor, 1000, 0)))
    metrics.log(1, {"loss": 2.0})
    metrics.log(1, {"val_loss": 3.0})
    assert metrics.flush() == 2
    assert flushed == [b'{"step": 1, "loss": 2.0}\n{"step": 1, "val_loss": 3.0}\n']
    metrics.close()


def test_tensorboard_shows_the_same_figures_also_after_a_kill(tmp_path: Path) -> None:
    """The killed process never closes its events file."""
    killed = Metrics(tmp_path, 0)
    for step in range(1, 5):
        killed.log(step, {"loss": 8.0 / step, "learning_rate": 0.5})
    metrics = Metrics(tmp_path, 2)
    metrics.log(3, {"loss": 0.5, "learning_rate": 0.25})
    metrics.close()
    assert read_events(tmp_path) == {
        "loss": [(1, 8.0), (2, 4.0), (3, 0.5)],
        "learning_rate": [(1, 0.5), (2, 0.5), (3, 0.25)],
    }


def test_the_mean_is_that_of_the_last_tenth(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    for step in range(1, 26):
        metrics.log(step, {"loss": float(step)})
        metrics.log(step, {"val_loss": 1000.0})
    assert metrics.mean_of_last("loss", 0.1) == (24 + 25) / 2
    assert metrics.mean_of_last("loss", 0.001) == 25
    metrics.close()


def test_the_evaluation_of_a_step_is_found(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    metrics.log(1, {"loss": 2.0})
    metrics.log(1, {"val_loss": 3.0})
    metrics.log(2, {"loss": 1.0})
    assert metrics.evaluation_at(1) == {"step": 1, "val_loss": 3.0}
    assert metrics.evaluation_at(2) == {}
    metrics.close()


@pytest.mark.usefixtures("plots")
def test_the_plot_shows_the_figures(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    metrics.log(1, {"loss": 2.0})
    metrics.plot()
    without = (tmp_path / "plots" / "loss.png").read_bytes()
    metrics.log(2, {"loss": 1.0})
    metrics.log(2, {"val_loss": 1.5})
    metrics.close()
    with Image.open(tmp_path / "plots" / "loss.png") as plot:
        assert plot.format == "PNG"
        assert min(plot.size) > 400
    assert (tmp_path / "plots" / "loss.png").read_bytes() != without


def test_a_figure_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        metrics.log(1, {"loss": float("nan")})
    metrics.close()
