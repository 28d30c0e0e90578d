"""Where records come from, as a user says it. Nothing is opened, so that flows and the command line can read it quickly."""

from pydantic import BaseModel, ConfigDict, Field

from yivl_core.data.presets import Language, Task, find_question


class InputSource(BaseModel):
    """Where records come from: a validated dataset, a file, or images with one question about each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str | None = Field(
        default=None,
        description="validated-dataset folder, or a jsonl, json, csv, tsv (also .gz, .zst) or parquet file, or their fsspec URL",
    )
    image_root: str | None = Field(
        default=None,
        description="folder or fsspec URL that image paths are relative to and may not leave; default: the dataset file's own "
        "folder, and for a validated dataset the places where its images were found",
    )
    images: str | None = Field(
        default=None,
        description="folder of images, with its subfolders, or a glob pattern, here or at an fsspec URL; or a text file with one "
        "path or URL a line, or parquet files that hold the images",
    )
    prompt: str | None = Field(default=None, description="what to ask about each image of `images`")
    task: Task | None = Field(default=None, description="in place of a prompt: ask what this task needs")
    language: Language = Field(default="en", description="of the question that `task` asks")
    subject: str | None = Field(
        default=None, description="what the task `count` counts, in Chinese with its measure word; default: objects of any kind"
    )
    limit: int | None = Field(default=None, ge=1, description="take the first so many rows only; default: all")

    @property
    def question(self) -> str | None:
        """What is asked about each image of `images`."""
        return self.prompt or (find_question(self.task, self.language, self.subject) if self.task else None)
