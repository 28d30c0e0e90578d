"""Input of any form -> rows, each with its source and, where it is no record, what is wrong with it.

```
jsonl, json list, csv --raw_rows--> named values --parsing--> Record + addresses --+
validated-dataset folder ----------dataset----------------------------------------+--> InputRow
folder or glob of images, with one prompt --image_folders--------------------------+
```
Rows come one at a time, in the order of the input; none is left out but blank lines. Images are only named here, not opened.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from yivl_core.data.configuration import Purpose
from yivl_core.data.dataset import ValidatedDataset, is_validated_dataset
from yivl_core.data.findings import Finding, Source, error, shown
from yivl_core.data.image_folders import find_images
from yivl_core.data.images import ImageError, ImageInfo, ImageReference, ImageStore
from yivl_core.data.parsing import parse_record
from yivl_core.data.raw_rows import RawRow, parse_raw_row, split_raw_rows
from yivl_core.data.records import ImageCountError, Record, conversation
from yivl_core.data.strict_json import StrictJsonReader
from yivl_core.digests import digest_file, digest_json
from yivl_core.errors import ConfigurationError, DatasetError
from yivl_core.storage import is_local

__all__ = ["InputRow", "InputSource", "Source", "input_digest", "read_inputs", "read_rows"]

DEFAULT_MAX_LINE_BYTES = 1_000_000


class InputSource(BaseModel):
    """Where records come from: a validated dataset, a file, or a folder of images with one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str | None = Field(default=None, description="validated-dataset folder, or a jsonl, json or csv file")
    image_root: str | None = Field(
        default=None,
        description="folder that image paths are relative to and may not leave; default: the dataset file's own folder, and for "
        "a validated dataset the places where its images were found",
    )
    images: str | None = Field(default=None, description="folder of images, with its subfolders, or a glob pattern")
    prompt: str | None = Field(default=None, description="what to ask about each image of `images`")
    limit: int | None = Field(default=None, ge=1, description="take the first so many rows only; default: all")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """One row of any input, defective ones too.

    Attributes:
        source: where it was written.
        record: the record, or None where the row is none.
        images: where each image is, in the order of `record.image_addresses`.
        findings: what is wrong with it; `record` is None if one of them is an error.
        text: how a defective row is written, cut after 2,000 characters.
    """

    source: Source
    record: Record | None = None
    images: tuple[ImageReference, ...] = ()
    findings: tuple[Finding, ...] = ()
    text: str = ""

    @property
    def first_error(self) -> Finding | None:
        """What keeps the row from being a record."""
        return next((finding for finding in self.findings if finding.severity == "error"), None)

    @property
    def error_kind(self) -> str | None:
        """The kind of the first error, or None for a record."""
        return self.first_error.kind if self.first_error else None

    @property
    def error(self) -> str | None:
        """What is wrong and how to mend it, or None for a record."""
        return str(self.first_error) if self.first_error else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Makes records of the rows of one file.

    Attributes:
        file: its path, as it can be stored.
        folder: where it is.
        image_root: folder that image addresses are relative to; None: see `read_rows`.
        purpose: training needs a response in each record.
    """

    file: str
    folder: Path
    image_root: Path | None
    purpose: Purpose

    @classmethod
    def of_file(cls, url: str, image_root: str | None, purpose: Purpose) -> "RowReader":
        """The reader of a file's rows.

        Raises:
            ConfigurationError: there is no such file or image root.
        """
        _check_file(url)
        root = None if image_root is None else Path(image_root)
        if root is not None and not root.is_dir():
            raise ConfigurationError(f"{image_root}: there is no such folder; check the image root")
        return cls(file=_readable(url), folder=Path(url).parent, image_root=root, purpose=purpose)

    def read(self, raw: RawRow, json_reader: StrictJsonReader) -> InputRow:
        """What a row says."""
        raw = parse_raw_row(raw, json_reader)
        source = Source(file=self.file, line=raw.line)
        if raw.values is None or any(finding.severity == "error" for finding in raw.findings):
            return InputRow(source=source, findings=tuple(raw.findings), text=raw.text)
        parsed = parse_record(raw.values, self.purpose)
        if parsed.note is not None and len(parsed.note.images) == len(parsed.addresses):
            images = _references(parsed.note.image_infos(parsed.addresses), self.image_root)
        else:
            root = self.folder if self.image_root is None else self.image_root
            images = tuple(ImageReference(uri=address, address=address, root=root) for address in parsed.addresses)
        findings = (*raw.findings, *parsed.findings)
        return InputRow(source=source, record=parsed.record, images=images, findings=findings, text=raw.text)


def read_rows(
    url: str,
    image_root: str | None = None,
    purpose: Purpose = "inference",
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
) -> Iterator[InputRow]:
    """The rows of a jsonl, json or csv file, blank lines left out.

    A row whose `source.line` is None is about the file as a whole, and the last one.

    Args:
        url: the file.
        image_root: folder that image addresses are relative to; default: the file's own, and where a row tells what an earlier
            validation found, the places that it names.
        purpose: training needs a response in each record.
        max_line_bytes: longest line that is read.

    Raises:
        ConfigurationError: there is no such file or image root, or it has another format.
        StorageError: the file cannot be read.
    """
    reader, json_reader = RowReader.of_file(url, image_root, purpose), StrictJsonReader()
    return (reader.read(raw, json_reader) for raw in split_raw_rows(url, max_line_bytes))


def read_inputs(source: InputSource) -> Iterator[InputRow]:
    """The rows of any input, in order; every row is there, defective ones with an error.

    Raises:
        ConfigurationError: the input is not there, or the settings do not name one input.
        DatasetError: a file as a whole cannot be read, or it holds nothing. (Raised when reading comes to it.)
        StorageError: a file cannot be read.
    """
    if source.images is not None:
        rows = _rows_of_images(source.images, source.prompt, source.image_root)
    elif source.dataset is None:
        raise ConfigurationError("no input is named; give `dataset`, or `images` and `prompt`")
    elif Path(source.dataset).is_dir():
        rows = _rows_of_validated_dataset(source.dataset, source.image_root)
    else:
        rows = _refuse_broken_files(read_rows(source.dataset, source.image_root))
    return itertools.islice(rows, source.limit)


def input_digest(source: InputSource) -> str:
    """sha256 (hex) of what decides the rows, prompt and limit included.

    A validated dataset has its own digest. A file counts with its bytes, the image root that is named, and the images that its
    rows name, up to the limit. Of these, as of a folder of images, the sizes and times of change count, not the content, since
    reading a million images only for this would be dear: a copy with new times has another digest, and an image that was replaced
    by one of the same size and time is not noticed. An image that cannot be used counts as such. One whose sha256 an earlier
    validation has noted counts by that note, which is part of the file: it is checked when the image is loaded.

    Raises:
        ConfigurationError, DatasetError, StorageError: as `read_inputs`.
    """
    settings = {"prompt": source.prompt, "limit": source.limit}
    if source.images is not None:
        root, names = find_images(source.images)
        return digest_json([settings, [[_readable(name), _file_state(root / name)] for name in names[: source.limit]]])
    if source.dataset is not None and is_validated_dataset(source.dataset):
        return digest_json([settings, ValidatedDataset.open(source.dataset).digest])
    images = _digest_images(read_inputs(source))
    return digest_json([settings, digest_file(Path(source.dataset or "")), source.image_root, images])


def _digest_images(rows: Iterable[InputRow]) -> str:
    """sha256 (hex) over the states of the images of all rows, in order; their addresses are in the file."""
    digest, store = hashlib.sha256(), ImageStore()
    for image in itertools.chain.from_iterable(row.images for row in rows):
        if image.sha256 is None:
            digest.update(_image_state(image, store).encode() + b"\n")
    return digest.hexdigest()


def _image_state(image: ImageReference, store: ImageStore) -> str:
    """Size and time of change of an image; or what keeps it from being used, as far as that shows without opening it."""
    try:
        return _file_state(store.resolve(image))
    except ImageError as cause:
        return cause.kind


def _file_state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "image_missing"
    return f"{status.st_size} {status.st_mtime_ns}" if os.access(path, os.R_OK) else "permission_denied"


def _check_file(url: str) -> None:
    if not is_local(url):
        raise ConfigurationError(f"{url}: a dataset has to be a file on this machine; fetch it first")
    path = Path(url)
    if path.is_dir():
        raise ConfigurationError(f"{url}: this is a folder; name the jsonl, json or csv file in it")
    if not path.is_file():
        raise ConfigurationError(f"{url}: there is no such file; check the path")


def _references(infos: tuple[ImageInfo, ...], image_root: Path | None) -> tuple[ImageReference, ...]:
    """Images as an earlier validation found them: where that was, or below the root that is named now."""
    return tuple(info.reference if image_root is None else info.reference_under(image_root) for info in infos)


def _refuse_broken_files(rows: Iterator[InputRow]) -> Iterator[InputRow]:
    for row in rows:
        if row.source.line is None:
            raise DatasetError(f"{row.source}: {row.error}")
        yield row


def _rows_of_validated_dataset(folder: str, image_root: str | None) -> Iterator[InputRow]:
    root = None if image_root is None else Path(image_root)
    return (
        InputRow(source=validated.source, record=validated.record, images=_references(validated.images, root))
        for validated in ValidatedDataset.open(folder)
    )


def _rows_of_images(pattern: str, prompt: str | None, image_root: str | None) -> Iterator[InputRow]:
    if not prompt:
        raise ConfigurationError("`images` are named without a `prompt`; say what to ask about each of them")
    if image_root is not None:
        raise ConfigurationError(f"`image_root` {image_root} goes with a `dataset`, not with `images`; leave it out")
    try:
        conversation(Record(query=prompt, images=("",)))
    except ImageCountError as cause:
        raise ConfigurationError(f"prompt {shown(prompt)}: {cause}") from cause
    root, names = find_images(pattern)
    return (_row_of_image(root, name, prompt) for name in names)


def _row_of_image(root: Path, name: str, prompt: str) -> InputRow:
    source = Source(file=_readable(str(root / name)))
    if _readable(name) != name:
        finding = error("bad_unicode", f"the file name {name!a} is not UTF-8", "rename the file")
        return InputRow(source=source, findings=(finding,))
    image = ImageReference(uri=name, address=name, root=root)
    return InputRow(source=source, record=Record(query=prompt, images=(name,)), images=(image,))


def _readable(path: str) -> str:
    """A path as text that can be stored: bytes that are not UTF-8 are shown as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")
