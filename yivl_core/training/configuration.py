"""What a user decides about a training run. No torch here: flows and the command line read it too."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from yivl_core.settings import Gigabytes

_LORA_RATE, _FULL_RATE = 1e-4, 1e-5
_OF_LORA = (
    "target_modules", "lora_rank", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "loraplus_lr_ratio", "quantization",
)  # fmt: skip
_RATES_AND_SWITCHES = {"projector_learning_rate": "freeze_projector", "vision_learning_rate": "freeze_vision_tower"}
_OF_FULL = ("freeze_llm", "freeze_projector", "freeze_vision_tower", "optimizer", "max_shard_bytes")

# Settings that change no result: how it is watched, and how what it takes is come by.
WITHOUT_EFFECT = frozenset({"log_steps", "num_workers", "recompute", "gpu_memory"})


class TrainingSettings(BaseModel):
    """How to train, whatever the model and the data. The defaults are the well-known LoRA recipe for Yi-VL."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tuner: Literal["lora", "full"] = Field(
        default="lora",
        description="lora: small matrices beside frozen weights; full: the weights themselves, which gives a whole checkpoint",
    )
    target_modules: str = Field(
        default="default",
        min_length=1,
        description="default: q/k/v of the language model; all: every linear layer of language model, projector and tower; "
        "or a regular expression that has to match a module's whole name",
    )
    lora_rank: int = Field(default=8, ge=1, description="rank of the LoRA matrices")
    lora_alpha: int = Field(default=32, ge=1, description="scale of the LoRA product, divided by the rank")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="share of LoRA inputs dropped in training")
    use_rslora: bool = Field(default=False, description="rsLoRA: lora_alpha is divided by the root of the rank in place of it")
    use_dora: bool = Field(
        default=False, description="DoRA: the length of each output's weights is learned beside their direction; slower"
    )
    loraplus_lr_ratio: float = Field(
        default=1.0, ge=1, le=1000, description="LoRA+: B's learning rate (of DoRA the lengths' too) is so many times that of A"
    )
    freeze_llm: bool = Field(default=False, description="full tuning leaves the language model as it is")
    freeze_projector: bool = Field(default=False, description="full tuning leaves the projector as it is")
    freeze_vision_tower: bool = Field(default=False, description="full tuning leaves the vision tower as it is")
    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description=f"highest learning rate; default: {_LORA_RATE:g} for lora, {_FULL_RATE:g} for full"
    )
    projector_learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="the same for what is trained in the projector; default: learning_rate"
    )
    vision_learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="the same for what is trained in the vision tower; default: learning_rate"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw for all; or, for full tuning, muon for the matrices of layers and projector (its step as large as "
        "AdamW's, so that one learning rate serves both) and adamw for the rest",
    )
    lr_schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="how it falls after the warm-up")
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1, description="share of the optimizer steps over which it rises")
    weight_decay: float = Field(
        default=0.1, ge=0, description="decoupled weight decay; full tuning spares norms and biases of it"
    )
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
        description="tokens packed into one forward pass; default: on a GPU what is fastest in its memory, on the CPU max_length",
    )
    val_fraction: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="share of the records held out (at least one, split by image), if no val_dataset is given; 0: none",
    )
    recompute: Literal["auto", "none", "selective", "full"] = Field(
        default="auto",
        description="what layers compute again in the backward pass in place of keeping it: nothing; attention (of weights that "
        "are tuned: all but matrix products); all, for a third more time; auto: layer by layer what gpu_memory demands",
    )
    gpu_memory: Gigabytes | None = Field(
        default=None,
        description="most memory to use of a GPU, in GB of 10^9 bytes, as 19GB, by which row_tokens and recompute are chosen; "
        "default: what is free",
    )
    quantization: Literal["none", "fp8", "nf4"] = Field(
        default="none",
        description="fp8: products with the language model's frozen weights in 8 bits, on a GPU that has them; faster, less "
        "exact. nf4: these weights held in 4 bits (QLoRA), which needs the extra `quant`; less memory, less exact",
    )
    compile: bool = Field(
        default=False,
        description="compile augmentation, and layers of all but plain LoRA (torch.compile): a minute at the start, then faster "
        "steps on a GPU",
    )
    num_workers: int | None = Field(
        default=None,
        ge=0,
        description="processes that read and prepare samples; 0: threads of the training's own process; default: one for each "
        "core, 8 at most, where a GPU trains, and 0 on the CPU",
    )
    augmentation: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how strongly images are changed at random each time they are learned (light, contrast, noise, width, place)",
    )
    cache_samples: bool = Field(
        default=False,
        description="keep prepared samples in memory, their pixels on the device, and go through the steps of the first epoch in "
        "another order in each later one",
    )
    feature_cache: str | None = Field(
        default=None,
        min_length=1,
        description="folder that keeps what a frozen vision tower gives of each image, for this run and later ones; pays where "
        "images are learned more than once; default: none",
    )
    eval_steps: int = Field(
        default=50, ge=1, description="optimizer steps between evaluations; the last step is always evaluated"
    )
    eval_answers: int = Field(
        default=0,
        ge=0,
        description="held-out records that are answered too at each evaluation, which tells the answers' character error rate",
    )
    best_metric: Literal["val_loss", "val_cer"] = Field(
        default="val_loss", description="what makes a step the best: loss, or character error rate of the answers"
    )
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="stop after so many evaluations in a row that are no better than the best; default: never"
    )
    save_steps: int | None = Field(default=None, ge=1, description="optimizer steps between checkpoints; default: as eval_steps")
    keep: Literal["best", "last"] = Field(
        default="best", description="which step's weights are the result: those of the best one (best_metric), or the last"
    )
    max_shard_bytes: int = Field(
        default=5_000_000_000, ge=1_000_000, description="largest weight file of a fully tuned checkpoint, in bytes"
    )
    log_steps: int = Field(default=1, ge=1, description="optimizer steps between lines of metrics.jsonl")
    seed: int = Field(default=42, ge=0, lt=2**63, description="seed of the split, the order, the adapter's start and dropout")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="dtype of the frozen weights and the arithmetic, while what is trained is kept in float32; auto: bfloat16 on "
        "a GPU that has it, float32 on CPU",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")

    @property
    def highest_learning_rate(self) -> float:
        """The learning rate, that of the tuner where none was given."""
        return self.learning_rate or (_LORA_RATE if self.tuner == "lora" else _FULL_RATE)

    @property
    def deciding(self) -> dict[str, Any]:
        """Every setting that decides the result; of a feature cache that there is one, wherever it lies."""
        settings = self.model_dump(include=set(TrainingSettings.model_fields) - WITHOUT_EFFECT)
        return settings | {"feature_cache": None if self.feature_cache is None else True}

    @model_validator(mode="after")
    def _goes_together(self) -> "TrainingSettings":
        other, fields = ("full", _OF_FULL) if self.tuner == "lora" else ("lora", _OF_LORA)
        for name in fields:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"`{name}` is a setting of the tuner {other!r}, and `tuner` is {self.tuner!r}; leave it out, or give "
                    f"`tuner` {other}"
                )
        if self.freeze_llm and self.freeze_projector and self.freeze_vision_tower:
            raise ValueError("nothing is left to train: at most two of `freeze_llm`, `freeze_projector`, `freeze_vision_tower`")
        if self.best_metric == "val_cer" and not self.eval_answers:
            raise ValueError("`best_metric` val_cer needs answers; give `eval_answers`, the number of held-out records to answer")
        if self.eval_answers and self.quantization == "fp8":
            raise ValueError("`eval_answers` cannot be had with `quantization` fp8, which only trains; leave one of them out")
        if self.quantization == "fp8" and self.use_dora:
            raise ValueError("`quantization` fp8 is for plain LoRA, and `use_dora` is given; leave one of them out, or give nf4")
        for name in ("augmentation", "cache_samples"):
            if self.feature_cache is not None and getattr(self, name):
                raise ValueError(f"`feature_cache` keeps what images gave, and `{name}` needs the images; leave one of them out")
        for rate, freeze in _RATES_AND_SWITCHES.items():
            if getattr(self, freeze) and getattr(self, rate) is not None:
                raise ValueError(f"`{rate}` is given for what `{freeze}` leaves as it is; leave one of them out")
        return self


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

    @model_validator(mode="after")
    def _has_what_evaluations_need(self) -> "TrainingConfig":
        for name in ("early_stopping_patience", "eval_answers"):
            if getattr(self, name) and self.val_dataset is None and not self.val_fraction:
                raise ValueError(f"`{name}` needs records that are held out; give a `val_dataset`, or a `val_fraction` above 0")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """What `train_adapter` made.

    Attributes:
        output: the training run folder.
        adapter: the adapter folder in it, in PEFT's format; None for full tuning.
        model: the checkpoint folder in it, in the base's layout; None for lora.
        result_digest: sha256 (hex) of the content of adapter or model.
        base_digest: sha256 (hex) of the base checkpoint's content.
        num_steps: optimizer steps made in all.
        num_train_samples, num_val_samples, num_dropped: records trained on, held out, and left out as too long.
        train_loss: mean loss over learned tokens in the last tenth of the steps.
        val_loss, val_token_accuracy: of the kept weights on the held-out records; None without any.
        val_cer: character error rate of their answers to `eval_answers` of these; None without any.
        stopped_early: whether evaluations had not got better for long (`early_stopping_patience`).
        best_step: the step whose weights were kept.
        val_dataset: jsonl file with the held-out records.
    """

    output: str
    adapter: str | None
    model: str | None
    result_digest: str
    base_digest: str
    num_steps: int
    num_train_samples: int
    num_val_samples: int
    num_dropped: int
    train_loss: float
    val_loss: float | None
    val_token_accuracy: float | None
    val_cer: float | None
    stopped_early: bool
    best_step: int
    val_dataset: str
