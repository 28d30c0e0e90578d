"""The core's doors by name: which settings each takes and which summary it gives.

A door's function is imported when it is opened, so that looking at the table loads neither torch nor anything else heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pydantic import BaseModel, Field

from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.export.configuration import MergeConfig, MergeSummary
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary
from yivl_core.progress import OnProgress
from yivl_core.settings import narrow
from yivl_core.training.configuration import TrainingConfig, TrainingSummary

DoorFunction = Callable[[Any, OnProgress], Any]


class ShardedInferenceConfig(InferenceConfig):
    """Settings of `infer_shards`, and which shards it is to do."""

    shard_indices: tuple[int, ...] | None = Field(
        default=None, description="shards to do, counted from 0; default: all that are missing; none: plan them only"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One core function that can be run in a process of its own.

    Attributes:
        config: the settings that it takes.
        summary: the dataclass that it returns.
        function: where it is, as `module:name`.
        variables: of the environment, which torch reads when it is loaded; those that are set already stay as they are.
    """

    config: type[BaseModel]
    summary: type[Any]
    function: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> DoorFunction:
        """The function itself, imported now."""
        return _import(self.function)


def infer(config: ShardedInferenceConfig, on_progress: OnProgress) -> InferenceSummary:
    """`infer_shards` with the shards named in the settings, so that it is called like the other doors."""
    settings = narrow(config, InferenceConfig)
    summary: InferenceSummary = _import("yivl_core.inference.batch:infer_shards")(settings, config.shard_indices, on_progress)
    return summary


def _import(place: str) -> Callable[..., Any]:
    module_name, name = place.split(":")
    function: Callable[..., Any] = getattr(import_module(module_name), name)
    return function


DOORS = {
    "validate": Door(config=ValidationConfig, summary=ValidationSummary, function="yivl_core.data.validation:validate_dataset"),
    "train": Door(
        config=TrainingConfig,
        summary=TrainingSummary,
        function="yivl_core.training.sft:train_adapter",
        # Rows of different lengths leave gaps of a twentieth of the memory otherwise.
        variables={"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
    ),
    "merge": Door(config=MergeConfig, summary=MergeSummary, function="yivl_core.export.merge:merge_adapter"),
    "infer": Door(config=ShardedInferenceConfig, summary=InferenceSummary, function="yivl_core.doors:infer"),
    "evaluate": Door(
        config=EvaluationConfig, summary=EvaluationSummary, function="yivl_core.evaluation.report:evaluate_predictions"
    ),
}
