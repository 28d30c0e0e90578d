"""What a user decides about a training run. No torch here: flows and the command line read it too."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingSettings(BaseModel):
    """How to train, whatever the model and the data. The defaults are the well-known LoRA recipe for Yi-VL."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    target_modules: str = Field(
        default="default",
        min_length=1,
        description="default: q/k/v of the language model; all: every linear layer of language model, projector and tower; "
        "or a regular expression that has to match a module's whole name",
    )
    lora_rank: int = Field(default=8, ge=1, description="rank of the LoRA matrices")
    lora_alpha: int = Field(default=32, ge=1, description="scale of the LoRA product, divided by the rank")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="share of LoRA inputs dropped in training")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="highest learning rate")
    lr_schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="how it falls after the warm-up")
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1, description="share of the optimizer steps over which it rises")
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW's decoupled weight decay")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the gradient's mean")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's decay of the gradient's square")
    max_grad_norm: float = Field(default=0.5, gt=0, description="the gradient is scaled down to at most this norm")
    batch_size: int = Field(default=16, ge=1, description="samples in one optimizer step")
    num_epochs: float = Field(default=1.0, gt=0, description="passes over the training records")
    max_length: int | None = Field(
        default=None, ge=1, description="longest sample in tokens, image tokens counted; default: the model's positions"
    )
    too_long: Literal["drop", "truncate"] = Field(
        default="drop", description="a longer sample is dropped and reported, or its text is cut (never an image or the stop)"
    )
    row_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens packed into one forward pass; default: max_length, so that the longest sample fits",
    )
    val_fraction: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="share of the records held out (at least one, split by image), if no val_dataset is given; 0: none",
    )
    eval_steps: int = Field(
        default=50, ge=1, description="optimizer steps between evaluations; the last step is always evaluated"
    )
    save_steps: int | None = Field(default=None, ge=1, description="optimizer steps between checkpoints; default: as eval_steps")
    keep: Literal["best", "last"] = Field(
        default="best", description="which adapter is the result: lowest validation loss, or the last"
    )
    log_steps: int = Field(default=1, ge=1, description="optimizer steps between lines of metrics.jsonl")
    seed: int = Field(default=42, ge=0, lt=2**63, description="seed of the split, the order, the adapter's start and dropout")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="dtype of the frozen weights and the arithmetic; auto: bfloat16 on a GPU that has it, float32 on CPU",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")


class TrainingConfig(TrainingSettings):
    """Settings of `train_adapter`."""

    model: str = Field(description="checkpoint folder of the base model")
    dataset: str = Field(description="validated dataset to train on (the folder that `yivl validate` writes)")
    val_dataset: str | None = Field(
        default=None, description="validated dataset to evaluate on; default: val_fraction of the dataset"
    )
    output: str = Field(description="training run folder")
    resume: bool = Field(
        default=False, description="go on from the newest complete checkpoint in the output folder, if there is one"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """What `train_adapter` made.

    Attributes:
        output: the training run folder.
        adapter: the adapter folder in it, in PEFT's format.
        adapter_digest: sha256 (hex) of the adapter's content.
        base_digest: sha256 (hex) of the base checkpoint's content.
        num_steps: optimizer steps made in all.
        num_train_samples, num_val_samples, num_dropped: records trained on, held out, and left out as too long.
        train_loss: mean loss over learned tokens in the last tenth of the steps.
        val_loss, val_token_accuracy: of the kept adapter on the held-out records; None without any.
        best_step: the step whose adapter was kept.
        val_dataset: jsonl file with the held-out records.
    """

    output: str
    adapter: str
    adapter_digest: str
    base_digest: str
    num_steps: int
    num_train_samples: int
    num_val_samples: int
    num_dropped: int
    train_loss: float
    val_loss: float | None
    val_token_accuracy: float | None
    best_step: int
    val_dataset: str
