"""What validation notes about a record, in the record's own line: where it was written, and its images as they were found.

The note is the field `validated` of a line in `records.jsonl` and in a training run's `val.jsonl`. It lets such a file be read
wherever it lies. It opens no door: an image that it names is used only if its content has the sha256 that the note gives, which
nobody knows who has not had the image.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from yivl_core.data.findings import Source
from yivl_core.data.images import ImageInfo

NOTE_FIELD = "validated"


class _NotedImage(BaseModel):
    """The attributes of `ImageInfo` but the address, which is the record's."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    sha256: str
    width: int
    height: int
    mode: str
    num_bytes: int


class ValidatedNote(BaseModel):
    """Where a record was written, and what its images were."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: str
    line: int | None
    item: int = 1
    images: list[_NotedImage]

    @property
    def source(self) -> Source:
        """Where the user wrote the record."""
        return Source(file=self.file, line=self.line, item=self.item)

    def image_infos(self, addresses: Sequence[str]) -> tuple[ImageInfo, ...]:
        """The images of the record that names these addresses; as many as the note has."""
        return tuple(
            ImageInfo(
                uri=address,
                path=image.path,
                sha256=image.sha256,
                width=image.width,
                height=image.height,
                mode=image.mode,
                num_bytes=image.num_bytes,
            )
            for address, image in zip(addresses, self.images, strict=True)
        )


def note_json(source: Source, images: Sequence[ImageInfo]) -> dict[str, Any]:
    """The note as a JSON object."""
    return {
        "file": source.file,
        **source.numbers,
        "images": [image_note(image) for image in images],
    }


def image_note(image: ImageInfo) -> dict[str, Any]:
    """The part of the note that tells of an image."""
    return {name: getattr(image, name) for name in _NotedImage.model_fields}


def take_note(values: dict[str, Any]) -> ValidatedNote | None:
    """Take the note out of a record's values. A field of that name with another shape is the user's own, and stays."""
    if NOTE_FIELD not in values:
        return None
    try:
        note = ValidatedNote.model_validate(values[NOTE_FIELD])
    except ValidationError:
        return None
    del values[NOTE_FIELD]
    return note
