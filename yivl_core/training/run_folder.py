"""The folder of a training run: what decided it, its figures, and whether it may be gone on with.

```
manifest.json       what decided the run; at the end also its result, which marks it as finished
.lock               held while the run is worked on
metrics.jsonl       one line a logged step and one an evaluation
tensorboard/        the same figures as TensorBoard events
plots/*.png         loss, learning rate, throughput and memory over steps; CER where records are answered
checkpoints/        see checkpoint.py
adapter/            the result in PEFT's format, or, of full tuning,
model/              the result in the base's layout; yivl.json and the held-out rows are in either
val.jsonl           the records held out
dropped.jsonl       the records left out as too long
```
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from yivl_core.digests import digest_json
from yivl_core.errors import OutputError
from yivl_core.locks import LOCK_NAME, sole_user
from yivl_core.outputs.manifest import MANIFEST_NAME, read_manifest, write_manifest
from yivl_core.storage import is_temporary, publish_bytes, publish_file, remove_unfinished, storage_errors
from yivl_core.training.configuration import TrainingSettings
from yivl_core.training.result import RESULT_FOLDERS

_DATASETS = ("dataset", "val_dataset")  # where the flow `sft` puts what it validates
METRICS_NAME = "metrics.jsonl"
# Each plot's label, and its figures with their names.
_PLOTS = {
    "loss": ("loss (nats a learned token)", {"loss": "training", "val_loss": "validation"}),
    "learning_rate": ("learning rate", {"learning_rate": "learning rate"}),
    "throughput": ("samples a second", {"samples_per_s": "samples a second"}),
    "memory": ("most memory so far (GB of 10^9 bytes)", {"memory_gb": "memory"}),
    "cer": ("character error rate", {"val_cer": "validation"}),
}
_PLOT_EVERY_S = 60.0
_DECIDING = ("settings", "data", "model", "prompt", "numerics")
# What else these blocks hold is told beside it, and runs of earlier versions lack it.
_DECIDING_KEYS = {"model": ("digest",), "prompt": ("version",)}


def started_with(folder: Path) -> dict[str, Any]:
    """The settings of the run that lies in a folder; none where there is none."""
    found = read_manifest(str(folder / MANIFEST_NAME)) or {}
    return dict(found.get("settings") or {})


class RunFolder:
    """The folder of a run, new or to be gone on with; nothing is written to it before it is `taken`.

    Args:
        path: the folder.
        content: the manifest of this run, without a result.
        resume: whether an earlier run may be there.

    Attributes:
        result: the summary of the finished run that lies here; None where it has still to be made.

    Raises:
        OutputError: the folder is not empty and `resume` is off, or the run in it was decided by other settings.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self._content = dict(content)
        self._resume = resume
        self.result: dict[str, Any] | None = None
        self._look()

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def result_folder(self) -> Path:
        """Where the result lies: the adapter, or the model."""
        return self.path / RESULT_FOLDERS[self._content["settings"]["tuner"]]

    @property
    def digest(self) -> str:
        """sha256 (hex) of what decided the run: its manifest but for code, environment, paths and times."""
        return digest_json({block: _deciding(self._content, block) for block in _DECIDING})

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within this block no other process works on the run, and the folder has its manifest.

        Raises:
            BusyError: another process does.
            OutputError: as above; the folder may have changed since.
        """
        with sole_user(self.path, self.path / LOCK_NAME):
            self._look()
            for folder, pattern in ((self.checkpoints, "*"), (self.path, self.result_folder.name), (self.path, "*.json*")):
                remove_unfinished(folder, pattern)
            if self._is_new:
                write_manifest(str(self.path / MANIFEST_NAME), self._content, {"started": self._started})
            yield

    def finish(self, result: Mapping[str, Any]) -> str:
        """Write the result into the manifest, whose digest is returned."""
        self.result = dict(result)
        times = {"started": self._started, "ended": time.time()}
        return write_manifest(str(self.path / MANIFEST_NAME), self._content | {"result": dict(result)}, times)

    def _look(self) -> None:
        found = self._find(self._resume)
        self._is_new = found is None
        self.result = None
        self._started = time.time()
        if found is not None:
            self._check(found)
            self.result = found.get("result")
            self._started = (found.get("times") or {}).get("started", self._started)

    def _find(self, resume: bool) -> dict[str, Any] | None:
        if self.path.is_file():
            raise OutputError(f"{self.path}: is a file; choose a folder for the training run")
        found = read_manifest(str(self.path / MANIFEST_NAME))
        if found is None and self._holds_anything():
            raise OutputError(f"{self.path}: is not empty and holds no training run; choose another folder")
        if found is not None and not resume:
            raise OutputError(f"{self.path}: holds a training run; go on with it with --resume, or choose another folder")
        return found

    def _holds_anything(self) -> bool:
        """Whether there is more than what comes before a run: datasets validated for it, its lock, half-written files."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(path.name not in (*_DATASETS, LOCK_NAME) and not is_temporary(path.name) for path in self.path.iterdir())

    def _check(self, found: Mapping[str, Any]) -> None:
        lines = []
        for block in _DECIDING:
            there, now = _deciding(found, block), _deciding(self._content, block)
            if block == "settings":  # a run of an earlier version knows fewer
                there = {name: field.default for name, field in TrainingSettings.model_fields.items() if name in now} | there
            different = [key for key in (there | now) if there.get(key) != now.get(key)]
            lines += [f"{block}.{key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in different]
        if lines:
            raise OutputError(
                f"{self.path}: the run in this folder was started with other settings; use the same ones, or choose another "
                "folder\n  " + "\n  ".join(lines)
            )


def _deciding(content: Mapping[str, Any], block: str) -> dict[str, Any]:
    values: dict[str, Any] = content.get(block, {})
    return {key: value for key, value in values.items() if key in _DECIDING_KEYS.get(block, values)}


class Metrics:
    """Figures of a run by step: metrics.jsonl, TensorBoard events and the plot.

    Args:
        folder: of the run.
        last_step: the step that is gone on from; lines of later steps are removed.
    """

    def __init__(self, folder: Path, last_step: int) -> None:
        self._path = folder / METRICS_NAME
        self._plots = folder / "plots"
        self._plotted_at = time.monotonic()
        self._lines = [line for line in _read_lines(self._path) if line["step"] <= last_step]
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        publish_bytes(str(self._path), text.encode())
        with storage_errors(str(folder)):
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        line = {"step": step, **figures}
        self._lines.append(line)
        with storage_errors(str(self._path)):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def flush(self) -> int:
        """Have all lines on disk, so that they outlast a power cut like the checkpoint that they belong to; how many they are."""
        with storage_errors(str(self._path)), self._path.open("rb") as file:
            os.fsync(file.fileno())
        return len(self._lines)

    def mean_of_last(self, name: str, share: float) -> float:
        """The mean of a figure over the last share of its lines, at least one."""
        values = [line[name] for line in self._lines if name in line]
        last = values[-max(1, int(len(values) * share)) :]
        return sum(last) / len(last)

    def evaluation_at(self, step: int) -> dict[str, float]:
        """The figures of the evaluation at a step; empty where there was none."""
        return next((line for line in self._lines if line["step"] == step and "val_loss" in line), {})

    @property
    def losses(self) -> list[float]:
        """The training losses that were logged."""
        return [line["loss"] for line in self._lines if "loss" in line]

    def plot(self) -> None:
        """Draw the figures over steps."""
        self._plotted_at = time.monotonic()
        for name, (label, series) in _PLOTS.items():
            points = {key: [(line["step"], line[key]) for line in self._lines if key in line] for key in series}
            if any(points.values()):
                with publish_file(self._plots / f"{name}.png") as temporary:
                    _draw(label, {series[key]: found for key, found in points.items() if found}).savefig(
                        temporary, format="png", dpi=120
                    )

    def plot_now_and_then(self) -> None:
        """Draw them if that is some time ago, for who watches a run that takes days."""
        if time.monotonic() - self._plotted_at > _PLOT_EVERY_S:
            self.plot()

    def close(self) -> None:
        """Flush the TensorBoard events and draw the plots."""
        self._writer.close()
        self.plot()


def _draw(label: str, series: Mapping[str, list[tuple[float, float]]]) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        style = "o-" if name.startswith("validation") else "-"
        axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set(xlabel="optimizer step", ylabel=label)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend()
    return figure


def logged_steps(folder: Path) -> list[int]:
    """The step of each line in the metrics of a run; none where there are no metrics.

    Raises:
        OutputError: a line is damaged.
        StorageError: the file cannot be read.
    """
    return [line["step"] for line in _read_lines(folder / METRICS_NAME)]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Earlier lines; a last one that a killed run left unfinished is dropped."""
    with storage_errors(str(path)):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
    return [_read_line(path, number, line) for number, line in enumerate(lines, start=1)]


def _read_line(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
        problem = "" if _is_line(line) else "no object of a step and its figures"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise OutputError(f"{path}: is damaged (line {number}: {problem}); remove the run's folder, or choose another")
    return cast(dict[str, Any], line)


def _is_line(value: Any) -> bool:
    """Whether a JSON value is a line of metrics; true and false are no numbers here."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    return all(type(figure) in (int, float) for figure in value.values())
