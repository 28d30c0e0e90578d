"""The parameters of flows that take more than one core function's settings, and what `retrain` returns. No Prefect here."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from yivl_core.data.configuration import ValidationSettings, ValidationSummary
from yivl_core.evaluation.configuration import EvaluationSummary, ScoringSettings
from yivl_core.export.configuration import MergeConfig
from yivl_core.inference.configuration import DecodingSettings, InferenceConfig
from yivl_core.promotion.configuration import PromotionConfig, PromotionSummary, Requirement
from yivl_core.training.configuration import TrainingConfig, TrainingSettings, TrainingSummary


class Deadline(BaseModel):
    """How long work in a child process may take."""

    deadline_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds after which training, merging or inference (each by itself) is stopped; what it published is kept, "
        "and it can be gone on with; default: no limit",
    )


class SftConfig(TrainingConfig, Deadline):
    """Parameters of `sft`: those of the training, with datasets that need not be validated yet."""

    dataset: str = Field(
        description="a dataset file of any format (validated first, into OUTPUT/dataset), or a folder that `yivl validate` wrote"
    )
    val_dataset: str | None = Field(
        default=None, description="the same, for evaluating while training; default: val_fraction of the dataset"
    )
    image_root: str | None = Field(
        default=None, description="folder that image paths are relative to and may not leave; default: each file's own folder"
    )
    validation: ValidationSettings = Field(default=ValidationSettings(), description="how files are validated")


class ExportConfig(MergeConfig, Deadline):
    """Parameters of `export`."""


class InferConfig(InferenceConfig, Deadline):
    """Parameters of `infer`."""

    where: Literal["here", "workers"] = Field(
        default="here",
        description="here: one process does all shards; workers: runs of the infer-shard deployment do the missing ones",
    )
    shards_per_run: int | None = Field(
        default=None,
        ge=1,
        description="shards that one run on a worker does with the model loaded once; default: 1 where there are few, up to 8",
    )

    @model_validator(mode="after")
    def _is_shared_in_one_way(self) -> "InferConfig":
        if self.where == "workers" and self.shard:
            raise ValueError("`shard` shares the work by hand, and `where` workers by Prefect; give one of them")
        if self.where == "here" and self.shards_per_run:
            raise ValueError("`shards_per_run` is for runs on workers; give `where` workers, or leave it out")
        return self


class InferShardConfig(InferenceConfig, Deadline):
    """Parameters of `infer-shard`, which a worker runs."""

    shard_indices: tuple[int, ...] = Field(
        min_length=1, description="which shards of the plan in the output folder, counted from 0"
    )


class PromoteConfig(PromotionConfig):
    """Parameters of `promote`."""

    approval: bool = Field(
        default=False,
        description="ask on the Prefect server before the current model is changed: the run is suspended, which frees its "
        "worker, and goes on when somebody resumes it with a yes or no; for runs of the deployment",
    )

    @model_validator(mode="after")
    def _asks_before_promotions_alone(self) -> "PromoteConfig":
        if self.approval and self.rollback:
            raise ValueError("`rollback` is done at once, without `approval`; leave out one of them")
        return self


class RetrainConfig(Deadline):
    """Parameters of `retrain`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="checkpoint folder of the base model")
    dataset: tuple[str, ...] = Field(min_length=1, description="dataset files of any format to train on, read as one dataset")
    val_dataset: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="files to evaluate on; default: training.val_fraction of the dataset",
    )
    image_root: str | None = Field(
        default=None, description="folder that image paths are relative to and may not leave; default: each file's own folder"
    )
    validation: ValidationSettings = Field(default=ValidationSettings(), description="how files are validated")
    output: str = Field(description="folder of all runs; a stage that was done before with the same content is found in it")
    training: TrainingSettings = Field(default=TrainingSettings(), description="how to train")
    decoding: DecodingSettings = Field(default=DecodingSettings(), description="how to answer the validation records")
    infer_batch_size: int | None = Field(
        default=None, ge=1, description="most validation records answered at a time; default: what the device is good for"
    )
    shard_size: int = Field(default=1000, ge=1, description="validation records in one part file")
    scoring: ScoringSettings = Field(default=ScoringSettings(), description="how the answers are compared with their references")
    evaluate_base: bool = Field(
        default=True, description="also let the base model answer, so that the report shows what the training changed"
    )

    gate: str | None = Field(
        default=None, description="YAML file that says what has to hold of the report; its result is the exit code (README: gate)"
    )
    promote: bool = Field(
        default=False,
        description="make the new model the current one of the registry, if the gate passes and it is better; it is compared "
        "with the current model then, if there is one",
    )
    registry: str | None = Field(
        default=None, description="folder or fsspec URL of the registry; default: registry in the output folder"
    )
    promotion_requires: Requirement = Field(
        default="better", description="what has to be said of the primary metric beside the current model"
    )

    @model_validator(mode="after")
    def _promotes_by_a_gate(self) -> "RetrainConfig":
        if self.promote and self.gate is None:
            raise ValueError("`promote` needs a `gate`: without one nothing says that a model is good enough")
        if self.registry is not None and not self.promote:
            raise ValueError("`registry` is read and changed by `promote` alone; give both, or none")
        return self

    @model_validator(mode="after")
    def _has_records_to_evaluate_on(self) -> "RetrainConfig":
        if self.val_dataset is None and self.training.val_fraction == 0:
            raise ValueError("there is nothing to evaluate on: give `val_dataset`, or `training.val_fraction` above 0")
        return self


class DemoConfig(BaseModel):
    """Parameters of `demo`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str = Field(default=".demo", description="folder to work in; a second run goes on from what is there")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainSummary:
    """What `retrain` made.

    Attributes:
        output: the folder of this run, which holds summary.json.
        validation: of the training data.
        training: of the adapter, or of the weights.
        model: the checkpoint folder: base and adapter merged, or the tuned one.
        predictions: that model's answers.
        evaluation: of those, beside the current model's if there is one and the new one is to take its place, else beside the
            base model's if that was asked for.
        base_evaluation: of the base model's answers to the same records; None if it was not asked for.
        compared_with: which model's answers `evaluation` has beside it.
        promotion: whether the model became the current one, and why not; None if that was not asked for.
    """

    output: str
    validation: ValidationSummary
    training: TrainingSummary
    model: str
    predictions: str
    evaluation: EvaluationSummary
    base_evaluation: EvaluationSummary | None
    compared_with: Literal["base", "current"] | None
    promotion: PromotionSummary | None
