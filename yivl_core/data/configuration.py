"""What a user decides about validating a dataset, and what the validation found in short."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, model_validator

from yivl_core.data.network.url_settings import UNDECIDING_URL_SETTINGS, UrlSettings
from yivl_core.data.presets import find_question

Purpose = Literal["training", "inference"]

# Pillow refuses larger images by itself: twice its limit against images that are small on disk and huge in memory.
MAX_PIXELS_LIMIT = 178_956_970

# Settings that change nothing in a result: where it goes, how fast it is made, and where images are kept.
UNDECIDING = UNDECIDING_URL_SETTINGS | {"output", "num_workers", "max_worker_bytes"}


class ValidationSettings(UrlSettings):
    """How a dataset is validated, whatever it is."""

    columns: tuple[str, ...] = Field(
        default=(),
        description="the dataset's own names of columns, as FIELD=COLUMN, such as query=question or images=meta.picture",
    )
    question: str = Field(
        default=find_question("caption", "en"), description="what is asked about the images of COCO's annotations"
    )
    weights: tuple[float, ...] = Field(
        default=(), description="one for each file: rows are taken in these proportions, as many as there are without repeats"
    )
    num_rows: int | None = Field(
        default=None, ge=1, description="rows of the whole mixture; small files give rows several times; default: as there are"
    )
    seed: int = Field(default=42, ge=0, description="of the draw of rows, where not all are taken")
    max_line_bytes: int = Field(
        default=8_000_000, ge=1000, description="longest line that is read, in bytes; a longer one is an error"
    )
    max_pixels: int = Field(
        default=64_000_000,
        ge=1,
        le=MAX_PIXELS_LIMIT,
        description="most pixels (width x height) of an image; a larger one is an error, found before it is decoded",
    )
    policy: tuple[str, ...] = Field(
        default=(),
        description="what is done about a kind of finding, as KIND=stop, KIND=quarantine or KIND=warn; "
        "default: errors are quarantined, warnings told",
    )
    image_depth: Literal["full", "header"] = Field(
        default="full",
        description="full: images are decoded, header: only their headers are read, which does not show that a file is cut off",
    )
    max_worker_bytes: int = Field(
        default=2_000_000_000,
        ge=200_000_000,
        description="memory that a process which checks rows may take; an image that needs more is an error",
    )
    num_workers: int | None = Field(
        default=None,
        ge=0,
        le=1024,
        description="processes that check the rows of a large dataset, images included; 0: only this one; default: one a core",
    )


class ValidationConfig(ValidationSettings):
    """Settings of `validate_dataset`."""

    dataset: tuple[str, ...] = Field(
        min_length=1,
        description="jsonl, json, csv, tsv or parquet files, patterns or URLs of such files, read in this order as one dataset; "
        "NAME#500 takes 500 rows of one",
    )
    output: str = Field(description="folder to write the validated dataset to")
    image_root: str | None = Field(
        default=None, description="folder that image paths are relative to and may not leave; default: each file's own folder"
    )
    purpose: Purpose = Field(default="training", description="training needs a response in each record")
    apart_from: tuple[str, ...] = Field(
        default=(), description="validated datasets with which no question and no image may be shared: what is held out for tests"
    )
    model: str | None = Field(
        default=None, description="folder of a checkpoint with whose tokenizer the length of each record is counted"
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="most tokens of a record, images included, counted with `model`; default: the positions of the model",
    )

    @model_validator(mode="after")
    def _counts_tokens_where_they_are_limited(self) -> "ValidationConfig":
        if self.max_length is not None and self.model is None:
            raise ValueError("`max_length` is a number of tokens; give the `model` with whose tokenizer they are counted")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSummary:
    """What `validate_dataset` found.

    Attributes:
        output: the validated-dataset folder.
        digest: sha256 (hex) over the clean records in order, image digests in place of addresses.
        num_lines: records looked at (lines of jsonl, rows of csv, items of a json list), blank lines left out.
        num_records: clean records.
        num_quarantined: rejected records.
        num_errors: findings that rejected a record or a whole file; a record can have several. 0: the dataset is clean.
        num_images: different images in the clean records.
        num_warnings: findings that did not reject their record.
        findings_by_kind: how often each kind of finding was seen, warnings included.
        was_there: an earlier validation left this result, and nothing has changed since. Tells nothing of the data: not compared.
    """

    output: str
    digest: str
    num_lines: int
    num_records: int
    num_quarantined: int
    num_errors: int
    num_images: int
    num_warnings: int
    findings_by_kind: dict[str, int]
    was_there: bool = field(default=False, compare=False)
