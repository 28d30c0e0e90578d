"""Short training runs on the tiny checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from yivl_core.progress import OnProgress, ignore_progress
from yivl_core.training.configuration import TrainingConfig, TrainingSummary
from yivl_core.training.run_folder import Metrics
from yivl_core.training.sft import train_adapter

Train = Callable[..., TrainingSummary]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums come out in the same order in every process."""
    torch.set_num_threads(1)


@pytest.fixture
def plots() -> None:
    """For tests that want the plots of runs."""


@pytest.fixture(autouse=True)
def without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a short run, and few tests look at it."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(Metrics, "plot", lambda _: None)


@pytest.fixture
def train(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> Train:
    """Trains on the dataset of twelve records, or another, into a folder of the test's own."""

    def run(output: str = "run", on_progress: OnProgress = ignore_progress, **settings: Any) -> TrainingSummary:
        values: dict[str, Any] = {"model": str(tiny_checkpoint), "dataset": str(dataset), "batch_size": 4, "learning_rate": 1e-3}
        return train_adapter(
            TrainingConfig(**values | {"output": output if "://" in output else str(tmp_path / output)} | settings), on_progress
        )

    return run
