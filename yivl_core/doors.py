"""The core's doors by name: which settings each takes and which summary it gives.

A door's function is imported when it is opened, so that looking at the table loads neither torch nor anything else heavy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.errors import OutputError
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.export.configuration import MergeConfig, MergeSummary
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary
from yivl_core.model.files import RANDOM_KIND, checkpoint_digest, read_about
from yivl_core.progress import OnProgress
from yivl_core.settings import narrow
from yivl_core.training.configuration import TrainingConfig, TrainingSummary

DoorFunction = Callable[[Any, OnProgress], Any]


class ShardedInferenceConfig(InferenceConfig):
    """Settings of `infer_shards`, and which shards it is to do."""

    shard_indices: tuple[int, ...] | None = Field(
        default=None, description="shards to do, counted from 0; default: all that are missing; none: plan them only"
    )


class RandomCheckpointConfig(BaseModel):
    """Settings of `write_random_checkpoint`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str = Field(description="checkpoint folder to write")
    seed: int = Field(default=0, ge=0, description="seed of the weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCheckpointSummary:
    """What `write_random_checkpoint` wrote: the checkpoint folder, and the sha256 (hex) of its content."""

    output: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One core function that can be run in a process of its own.

    Attributes:
        config: the settings that it takes.
        summary: the dataclass that it returns.
        function: where it is, as `module:name`.
    """

    config: type[BaseModel]
    summary: type[Any]
    function: str

    def open(self) -> DoorFunction:
        """The function itself, imported now."""
        return _import(self.function)


def infer(config: ShardedInferenceConfig, on_progress: OnProgress) -> InferenceSummary:
    """`infer_shards` with the shards named in the settings, so that it is called like the other doors."""
    settings = narrow(config, InferenceConfig)
    summary: InferenceSummary = _import("yivl_core.inference.batch:infer_shards")(settings, config.shard_indices, on_progress)
    return summary


def write_random_checkpoint(config: RandomCheckpointConfig, _: OnProgress) -> RandomCheckpointSummary:
    """`write_random_checkpoint`, called like the other doors.

    Raises:
        OutputError: the folder holds something else than an earlier random checkpoint.
    """
    folder = Path(config.output)
    if folder.is_dir() and any(folder.iterdir()) and read_about(folder).get("kind") != RANDOM_KIND:
        raise OutputError(f"{folder}: holds something else than a random checkpoint; choose another output folder")
    _import("yivl_core.model.random_checkpoint:write_random_checkpoint")(Path(config.output), seed=config.seed)
    return RandomCheckpointSummary(output=config.output, digest=checkpoint_digest(config.output))


def _import(place: str) -> Callable[..., Any]:
    module_name, name = place.split(":")
    function: Callable[..., Any] = getattr(import_module(module_name), name)
    return function


DOORS = {
    "validate": Door(config=ValidationConfig, summary=ValidationSummary, function="yivl_core.data.validation:validate_dataset"),
    "train": Door(config=TrainingConfig, summary=TrainingSummary, function="yivl_core.training.sft:train_adapter"),
    "merge": Door(config=MergeConfig, summary=MergeSummary, function="yivl_core.export.merge:merge_adapter"),
    "infer": Door(config=ShardedInferenceConfig, summary=InferenceSummary, function="yivl_core.doors:infer"),
    "evaluate": Door(
        config=EvaluationConfig, summary=EvaluationSummary, function="yivl_core.evaluation.report:evaluate_predictions"
    ),
    "random-checkpoint": Door(
        config=RandomCheckpointConfig,
        summary=RandomCheckpointSummary,
        function="yivl_core.doors:write_random_checkpoint",
    ),
}
