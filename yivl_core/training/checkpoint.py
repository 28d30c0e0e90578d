"""Save and resume: a checkpoint is complete or not there, and going on from it gives what an uninterrupted run gives.

```
checkpoints/step-000050/
    adapter_config.json  adapter_model.safetensors    the adapter, as PEFT reads it
    optimizer.safetensors                             AdamW's two means of each parameter
    state.json                                        the step, which step was best so far, the loss scale of float16
```

Order, learning rate and random numbers follow from the step alone (`schedule.py`), so nothing else has to be kept.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict

from yivl_core.errors import CheckpointError
from yivl_core.model.adapters import ADAPTER_FILE, save_adapter
from yivl_core.model.tensors import open_tensors, save_tensors
from yivl_core.storage import publish_folder

_OPTIMIZER_FILE = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """How far a run is.

    Attributes:
        step: optimizer steps made.
        best_step: the step with the lowest validation loss so far; 0 before the first evaluation.
        best_loss: that loss; None before the first evaluation.
        scaler: state of the loss scaler (`torch.amp.GradScaler`); empty where the loss is not scaled.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float | None = None
    scaler: dict[str, Any] = field(default_factory=dict)

    def at(self, step: int) -> "TrainingState":
        """The same with more steps made."""
        return replace(self, step=step)

    def evaluated(self, loss: float) -> "TrainingState":
        """The state after an evaluation at this step; an equal loss does not replace an earlier best."""
        if self.best_loss is not None and loss >= self.best_loss:
            return self
        return replace(self, best_step=self.step, best_loss=loss)


def save_training(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Publish the checkpoint of `state.step` below `folder`, then remove all but it and the best one.

    Raises:
        StorageError: it cannot be written; earlier checkpoints are untouched.
    """
    with publish_folder(step_folder(folder, state.step)) as temporary:
        save_adapter(model, temporary)
        save_tensors(temporary / _OPTIMIZER_FILE, _flatten(optimizer))
        (temporary / "state.json").write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
    for step in saved_steps(folder):
        if step not in (state.step, state.best_step):
            shutil.rmtree(step_folder(folder, step))


def load_training(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Put the newest checkpoint below `folder` into model and optimizer; a state of step 0 where there is none.

    A checkpoint of which a file is lost or damaged, or whose best one is, does not count: the steps after the one before it are
    made again.
    """
    for step in reversed(saved_steps(folder)):
        try:
            state = TrainingState(**json.loads((step_folder(folder, step) / "state.json").read_text(encoding="utf-8")))
            weights = _read_tensors(step_folder(folder, step) / ADAPTER_FILE)
            moments = _read_tensors(step_folder(folder, step) / _OPTIMIZER_FILE)
            _read_tensors(step_folder(folder, state.best_step or step) / ADAPTER_FILE)
        except (CheckpointError, FileNotFoundError, ValueError, TypeError):
            continue
        set_peft_model_state_dict(model, weights)
        _restore(optimizer, moments)
        return state
    return TrainingState()


def saved_steps(folder: Path) -> list[int]:
    """The steps of all complete checkpoints, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06}"


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.load() for name, tensor in open_tensors((path,)).items()}


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, values in states.items() for key, value in values.items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
