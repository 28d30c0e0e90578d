"""What a user decides about batch inference. No torch here, so that flows and the command line can read it quickly."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from yivl_core.data.input_source import InputSource
from yivl_core.data.network.url_settings import UrlSettings
from yivl_core.errors import ConfigurationError
from yivl_core.model.files import HELD_OUT_FILE
from yivl_core.settings import Gigabytes, narrow

# Logits divided by less leave the range of float32.
_MIN_TEMPERATURE = 1e-4


def _not_tiny(temperature: float) -> float:
    if 0 < temperature < _MIN_TEMPERATURE:
        raise ValueError(f"give 0 for the likeliest token each time, or {_MIN_TEMPERATURE} or more")
    return temperature


def _is_part(text: str) -> str:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError("write i/n: 1/4, 2/4, 3/4 and 4/4 share the work between four")
    return text


class DecodingSettings(BaseModel):
    """How tokens are chosen and when an answer ends."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: int = Field(default=512, ge=1, description="most tokens of one answer")
    temperature: Annotated[float, AfterValidator(_not_tiny)] = Field(
        default=0.0, ge=0, le=100, description="0: greedy; higher: more random"
    )
    top_k: int | None = Field(default=None, ge=1, description="sample from the k likeliest tokens only")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the likeliest tokens that hold this probability together"
    )
    repetition_penalty: float = Field(
        default=1.0, ge=0.01, le=100, description="above 1: tokens already in prompt or answer become less likely"
    )
    seed: int = Field(default=0, ge=0, description="seed of the sampling; each record draws from its own stream")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="texts that end an answer, besides the model's own stop; they are left out"
    )
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="tokens that end an answer, besides the end-of-text token"
    )
    logprobs: bool = Field(default=False, description="tell the log-probability of each token of an answer")


class EngineSettings(BaseModel):
    """How an engine uses a device. Nothing here changes an answer but by rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int | None = Field(
        default=None, ge=1, description="most records answered at a time; default: what the device and its memory are good for"
    )
    gpu_memory: Gigabytes | None = Field(
        default=None, description="most memory to use of a GPU, in GB of 10^9 bytes, as 18GB; default: what is free"
    )
    batch_invariant: bool = Field(
        default=False,
        description="give a record the same tokens alone, in any batch and in any order, on one kind of GPU; slower; resumed "
        "only with steps of the same sizes, which follow from batch_size, and from gpu_memory or what is free",
    )
    attention: Literal["auto", "sdpa"] = Field(
        default="auto",
        description="sdpa: plain PyTorch in place of the engine's own GPU kernels, as on GPUs that cannot run them",
    )
    quantization: Literal["none", "fp8"] = Field(
        default="none", description="fp8: matrix products of all layers in 8 bits, on a GPU that has them; faster, less exact"
    )


class InferenceConfig(UrlSettings, DecodingSettings, EngineSettings, InputSource):
    """Settings of `infer_shards`."""

    model: str = Field(description="checkpoint folder: the base model, or a merged one")
    adapter: str | None = Field(default=None, description="adapter folder to put on the base model, without merging")
    load_dataset_config: bool = Field(
        default=False, description="take the records that the training of this adapter or model held out, in place of a dataset"
    )
    output: str = Field(description="folder or fsspec URL to write predictions to")
    shard_size: int = Field(default=1000, ge=1, description="records in one part file, the unit of resuming")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of the weights and the arithmetic; auto: bfloat16 on a GPU that has it, float32 on CPU"
    )
    device: str = Field(
        default="auto",
        description="auto, cpu, cuda or cuda:N; split: a model that fits no GPU over all of them, and over CPU memory, slowly",
    )
    verify_invariance: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="before the run, answer the first so many records together, in reverse and one by one, and tell how many "
        "came out differently; with batch_invariant none may",
    )
    resume: bool = Field(default=False, description="keep the parts that an earlier run with the same settings published")
    as_planned: bool = Field(
        default=False,
        description="with resume: do not list and compare the input again; new images are left out, missing ones become errors",
    )
    shard: Annotated[str, AfterValidator(_is_part)] | None = Field(
        default=None,
        description="i/n: do every n-th shard from the i-th on, beside n - 1 others that write to the same output",
    )
    max_failures: int | None = Field(
        default=None, ge=0, description="stop when more rows than this have an error in place of an answer; default: never"
    )
    contact_sheet: int | None = Field(
        default=None,
        ge=1,
        le=5000,
        description="when all is done, show so many rows with small images on a page, OUTPUT/contact-sheet.html; drawn by `seed`",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> "InferenceConfig":
        named = [name for name in ("dataset", "images", "load_dataset_config") if getattr(self, name)]
        if len(named) != 1:
            given = " and ".join(f"`{name}`" for name in named) or "none"
            raise ValueError(f"give exactly one of `dataset`, `images` and `load_dataset_config` (given: {given})")
        if self.prompt and self.task:
            raise ValueError("give a `prompt` or a `task`, which stands for a prompt, not both")
        if bool(self.images) != bool(self.question):
            raise ValueError(
                "`images` goes together with `prompt` or `task`: give the folder or glob, and what to ask about each image"
            )
        if self.subject and self.task != "count":
            raise ValueError("`subject` is what the task `count` counts; leave it out, or give task count")
        if self.language != "en" and not self.task:
            raise ValueError("`language` is that of the question which a `task` asks; leave it out, or give a task")
        if self.as_planned and not self.resume:
            raise ValueError("`as_planned` goes with `resume`: there is no plan yet that could be kept to")
        return self

    def own_shards(self, num_shards: int) -> range:
        """The shards of a plan that are this run's: every n-th of them for `shard` i/n, else all."""
        number, _, num_parts = (self.shard or "1/1").partition("/")
        return range(int(number) - 1, num_shards, int(num_parts))

    @property
    def is_split(self) -> bool:
        """Whether the model is spread over several devices."""
        return self.device == "split"


def find_input(config: InferenceConfig) -> InputSource:
    """The input as the data layer knows it; for `load_dataset_config` the rows that training held out.

    Raises:
        ConfigurationError: nobody knows which they were.
    """
    source = narrow(config, InputSource)
    if not config.load_dataset_config:
        return source
    folder = Path(config.adapter or config.model)
    held_out = folder / HELD_OUT_FILE
    if not held_out.is_file():
        raise ConfigurationError(
            f"{folder}: has no {HELD_OUT_FILE}, which yivl writes beside what it trains or merges, so nobody knows which records "
            "were held out; give --dataset"
        )
    return source.model_copy(update={"dataset": str(held_out)})


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSummary:
    """What `infer_shards` wrote.

    Attributes:
        output: the predictions folder.
        content_digest: sha256 (hex) of all rows but timings, log-probabilities and source; None while shards are missing.
        num_records: all rows; while shards are missing, those of this call.
        num_failed: rows with an error among them.
        num_by_finish_reason: these rows by `stop`, `length`, `error`.
        num_by_error_kind: those with an error by what went wrong.
        num_shards, num_shards_done: shards of the plan, and published ones.
        runtime_s: seconds of this call, loading included.
        records_per_s: records of this call a second, loading left out.
        completion_tokens: tokens written by this call.
        sizes: what the engine chose for this device and its memory, in words; empty where nothing was to be done.
        invariance: how many records were answered in several ways before the run, and how many of them came out differently; None
            where that was not asked for.
        contact_sheet: the page of some of the rows; None where that was not asked for, or shards are missing.
    """

    output: str
    content_digest: str | None
    num_records: int
    num_failed: int
    num_by_finish_reason: dict[str, int]
    num_shards: int
    num_shards_done: int
    runtime_s: float
    records_per_s: float
    completion_tokens: int
    num_by_error_kind: dict[str, int] = field(default_factory=dict)
    sizes: str = ""
    invariance: dict[str, int] | None = None
    contact_sheet: str | None = None
