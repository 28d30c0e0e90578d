"""What a user decides about handing predictions to another program's evaluation, and what was written."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TableFormat = Literal["xlsx", "tsv"]
_FILE_NAME_PART = r"^[^/\\\x00-\x1f]+$"


class VLMEvalKitConfig(BaseModel):
    """Settings of `write_vlmevalkit`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predictions: str = Field(description="predictions folder or fsspec URL, as `yivl infer` writes it")
    dataset: str = Field(description="VLMEvalKit's table (.tsv, also .gz, .zst) that was answered, whose columns are copied")
    model_name: str = Field(pattern=_FILE_NAME_PART, description="the model's name, as VLMEvalKit is told it (--model)")
    dataset_name: str | None = Field(
        default=None, pattern=_FILE_NAME_PART, description="the benchmark's name (--data); default: that of the table's file"
    )
    output: str = Field(description="folder or fsspec URL for MODEL_BENCHMARK.xlsx; an earlier one is replaced")
    file_format: TableFormat = Field(
        default="xlsx", description="xlsx: what VLMEvalKit reads by default; tsv: what it reads with PRED_FORMAT=tsv"
    )
    max_line_bytes: int = Field(default=8_000_000, ge=1000, description="longest row of the table that is read, in bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class VLMEvalKitSummary:
    """What was written.

    Attributes:
        file: the table with the predictions.
        num_rows: its rows, without the header.
        num_failed: rows whose prediction is empty, since there is an error in its place.
        num_without_image: rows of the benchmark that were left out, as VLMEvalKit leaves them out: their `image` is empty.
        num_asked_otherwise: rows whose question does not stand in what the model was asked.
        num_unused: predictions about records that the benchmark does not have.
        num_cut: cells that were cut at what a cell of xlsx may hold, 32,767 characters.
        num_cleaned: cells with what xlsx cannot hold: control characters were left out, carriage returns made newlines.
    """

    file: str
    num_rows: int
    num_failed: int
    num_without_image: int
    num_asked_otherwise: int
    num_unused: int
    num_cut: int
    num_cleaned: int
