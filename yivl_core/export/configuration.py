"""What a user decides about an export, and what it wrote."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from yivl_core.errors import ConfigurationError
from yivl_core.model.files import read_adapter_config


class MergeConfig(BaseModel):
    """Settings of `merge_adapter`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: str = Field(description="adapter folder, as `yivl sft` writes it")
    model: str | None = Field(
        default=None, description="checkpoint folder of the base model; default: where the adapter was trained on it"
    )
    output: str = Field(description="checkpoint folder to write")
    layout: Literal["published", "transformers"] | None = Field(
        default=None,
        description="published: the layout of the Yi-VL repositories; transformers: what the Auto classes open; "
        "default: the base's own",
    )
    max_shard_bytes: int = Field(default=5_000_000_000, ge=1_000_000, description="largest weight file, in bytes")
    device: str = Field(
        default="auto", description="where the merged model is compared with the unmerged one: auto, cpu, cuda or cuda:N"
    )


def find_base(config: MergeConfig) -> str:
    """The base that is merged into: the one that is named, or else the one that the adapter was trained on.

    Raises:
        ConfigurationError: the adapter does not say which that was, or it is not there.
        CheckpointError: no adapter folder.
    """
    if config.model is not None:
        return config.model
    base = read_adapter_config(Path(config.adapter)).get("base_model_name_or_path")
    if not base:
        raise ConfigurationError(f"{config.adapter}: does not say what it was trained on; give the base as --model")
    if not os.path.exists(base):  # noqa: PTH110  (of a name that is too long the other would raise an error)
        raise ConfigurationError(f"{config.adapter}: was trained on {base}, which is not there; give the base as --model")
    return str(base)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSummary:
    """What `merge_adapter` wrote.

    Attributes:
        output: the checkpoint folder.
        digest: sha256 (hex) of the checkpoint's content.
        base_digest, adapter_digest: of what was merged.
        num_merged: weight matrices that the adapter changed.
        largest_logit_difference: between the merged and the unmerged model on the probe; an absolute number.
        was_there: the same merge had been published before, and nothing was written.
    """

    output: str
    digest: str
    base_digest: str
    adapter_digest: str
    num_merged: int
    largest_logit_difference: float
    was_there: bool
