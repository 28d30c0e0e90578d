"""Save and resume: a checkpoint is complete or not there, and going on from it gives what an uninterrupted run gives.

```
checkpoints/step-000050/
    adapter_config.json  adapter_model.safetensors    the adapter, as PEFT reads it; or, of full tuning,
    model.safetensors                                 the tuned weights in float32
    optimizer.safetensors                             what the optimizers remember of each parameter (AdamW: two means)
    state.json                                        the step, which step was best so far, the loss scale of float16, how many
                                                      lines of metrics.jsonl belong to it, and sha256 of all this
```

Order, learning rate and random numbers follow from the step alone (`schedule.py`), so nothing else has to be kept.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from yivl_core.digests import digest_file, digest_json
from yivl_core.model.tensors import load_tensors, save_tensors
from yivl_core.storage import publish_folder, storage_errors
from yivl_core.training.optimization import Optimizers
from yivl_core.training.tuning import Tuning

_OPTIMIZER_FILE = "optimizer.safetensors"
_STATE_FILE = "state.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """How far a run is.

    Attributes:
        step: optimizer steps made.
        best_step: the step with the lowest value of the metric that decides so far; 0 before the first evaluation.
        best_value: that value; None before the first evaluation.
        num_worse: evaluations since then.
        scaler: state of the loss scaler (`torch.amp.GradScaler`); empty where the loss is not scaled.
        num_figures: lines of metrics.jsonl up to this step.
    """

    step: int = 0
    best_step: int = 0
    best_value: float | None = None
    num_worse: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    num_figures: int = 0

    def at(self, step: int) -> "TrainingState":
        """The same with more steps made."""
        return replace(self, step=step)

    def evaluated(self, value: float) -> "TrainingState":
        """The state after an evaluation at this step; an equal value does not replace an earlier best."""
        if self.best_value is not None and value >= self.best_value:
            return replace(self, num_worse=self.num_worse + 1)
        return replace(self, best_step=self.step, best_value=value, num_worse=0)


def save_training(folder: Path, tuning: Tuning, optimizers: Optimizers, state: TrainingState) -> None:
    """Publish the checkpoint of `state.step` below `folder`, then remove all but it and the best one.

    Raises:
        StorageError: it cannot be written; earlier checkpoints are untouched.
    """
    with publish_folder(step_folder(folder, state.step)) as temporary:
        tuning.save(temporary)
        save_tensors(temporary / _OPTIMIZER_FILE, optimizers.state())
        record = asdict(state) | {"files": _digests(temporary, tuning)}
        text = json.dumps(record | {"digest": digest_json(record)})
        (temporary / _STATE_FILE).write_text(text + "\n", encoding="utf-8")
    with storage_errors(str(folder)):
        for step in saved_steps(folder):
            if step not in (state.step, state.best_step):
                shutil.rmtree(step_folder(folder, step))


def load_training(folder: Path, tuning: Tuning, optimizers: Optimizers, logged_steps: Sequence[int]) -> TrainingState:
    """Put the newest checkpoint below `folder` into model and optimizers; a state of step 0 where there is none.

    A checkpoint does not count if a file of it is lost or is not as it was written, if its best one is so harmed, or if not all
    of its figures are there: the steps after the one before it are made again.

    Args:
        folder: where checkpoints lie.
        tuning: gets what was trained.
        optimizers: get what they remember.
        logged_steps: the step of each line in metrics.jsonl.
    """
    for step in reversed(saved_steps(folder)):
        state = _read_state(folder, step, tuning)
        if state is None or _read_state(folder, state.best_step or step, tuning) is None:
            continue
        if state.num_figures != sum(logged <= step for logged in logged_steps):
            continue
        tuning.restore(step_folder(folder, step))
        optimizers.restore(load_tensors(step_folder(folder, step) / _OPTIMIZER_FILE))
        return state
    return TrainingState()


def saved_steps(folder: Path) -> list[int]:
    """The steps of all complete checkpoints, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name)))


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06}"


def _digests(folder: Path, tuning: Tuning) -> dict[str, str]:
    return {name: digest_file(folder / name) for name in (*tuning.file_names, _OPTIMIZER_FILE)}


def _read_state(folder: Path, step: int, tuning: Tuning) -> TrainingState | None:
    """The state of a checkpoint; None where a file of it is lost or is not as it was written."""
    path = step_folder(folder, step)
    try:
        record = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
        is_whole = record.pop("digest") == digest_json(record) and record["step"] == step
        files = record.pop("files")
        if is_whole and files == _digests(path, tuning):
            return TrainingState(**record)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return None
