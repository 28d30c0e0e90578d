"""The validated-dataset folder, as everything after validation reads it.

```
records.jsonl      clean records as the user wrote them, each with a note on where it was written and what its images are
quarantine.jsonl   rejected lines, each with all that is wrong with it
warnings.jsonl     clean records about which there is something to say
images.parquet     one row for each different image of the clean records
inputs.parquet     what was looked at, so that the next validation sees whether anything has changed
report.json, .md   digest, settings, counts, findings by kind with examples
images.jpg         some of the images, for the report
```
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from yivl_core.data.configuration import Purpose
from yivl_core.data.findings import Source
from yivl_core.data.images import ImageInfo
from yivl_core.data.notes import NOTE_FIELD, note_json
from yivl_core.data.records import Record
from yivl_core.data.rows.parsing import parse_record
from yivl_core.digests import canonical_json
from yivl_core.errors import DatasetError
from yivl_core.storage import open_binary, publish_file

__all__ = ["ImageInfo", "ValidatedDataset", "ValidatedRecord", "is_validated_dataset", "record_to_json", "write_records"]

FORMAT = "yivl validated dataset"
FORMAT_VERSION = 1
_LINE = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
RECORDS_NAME, QUARANTINE_NAME, WARNINGS_NAME = "records.jsonl", "quarantine.jsonl", "warnings.jsonl"
IMAGES_NAME, INPUTS_NAME = "images.parquet", "inputs.parquet"
REPORT_NAME, READABLE_REPORT_NAME, SHEET_NAME = "report.json", "report.md", "images.jpg"
FILE_NAMES = frozenset(
    {
        RECORDS_NAME,
        QUARANTINE_NAME,
        WARNINGS_NAME,
        IMAGES_NAME,
        INPUTS_NAME,
        REPORT_NAME,
        READABLE_REPORT_NAME,
        SHEET_NAME,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedRecord:
    """A clean record.

    Attributes:
        record: as the user wrote it.
        source: where the user wrote it.
        images: one for each of `record.image_addresses`, in the same order.
    """

    record: Record
    source: Source
    images: tuple[ImageInfo, ...]

    @property
    def canonical(self) -> str:
        """The content in one line: the digests of images stand for their addresses, and where things lie is left out."""
        content = record_to_json(self.record)
        if self.record.images:
            digests = iter(self.images)
            content["images"] = [None if address is None else next(digests).sha256 for address in self.record.images]
        return canonical_json(content)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedDataset:
    """A validated dataset on this machine. Iterating reads its records one at a time.

    Attributes:
        folder: where it is.
        digest: sha256 (hex) over the content of the records in order.
        num_records: clean records.
        purpose: what they were validated for.
    """

    folder: str
    digest: str
    num_records: int
    purpose: Purpose

    @classmethod
    def open(cls, folder: str) -> "ValidatedDataset":
        """The validated dataset in a folder.

        Raises:
            DatasetError: the folder holds none.
        """
        report = _read_report(folder)
        if report is None:
            raise DatasetError(
                f"{folder}: this is not a validated dataset; make one with `yivl validate FILE --output FOLDER` "
                "(a folder of images is given with --images)"
            )
        if report.get("version") != FORMAT_VERSION:
            raise DatasetError(
                f"{folder}: the dataset was validated by another version of yivl (format {report.get('version')}, "
                f"this one reads {FORMAT_VERSION}); run `yivl validate` again"
            )
        return cls(folder=folder, digest=report["digest"], num_records=report["num_records"], purpose=report["purpose"])

    def __iter__(self) -> Iterator[ValidatedRecord]:
        """The records in order.

        Raises:
            DatasetError: the records are not those that were validated (found at the end, if no single line is broken).
            StorageError: the records cannot be read.
        """
        digest = hashlib.sha256()
        path = Path(self.folder) / RECORDS_NAME
        for validated in read_records(path):
            digest.update(validated.canonical.encode() + b"\n")
            yield validated
        if digest.hexdigest() != self.digest:
            raise DatasetError(f"{path}: records were changed after validation; run `yivl validate` again")


def is_validated_dataset(folder: str) -> bool:
    """Whether a folder is one that `yivl validate` has written."""
    return _read_report(folder) is not None


def write_records(path: Path, records: Iterable[ValidatedRecord]) -> None:
    """Write clean records to a jsonl file, in one step, so that `open_input` and `validate_dataset` find their images again.

    The file may be moved: the images stay where they are, and are recognised by their sha256.
    """
    with publish_file(path) as temporary_path, temporary_path.open("w", encoding="utf-8", newline="\n") as file:
        for validated in records:
            file.write(record_line(validated))


def read_records(path: Path, first: int = 0) -> Iterator[ValidatedRecord]:
    """The records of a file that `write_records` or a validation wrote, from a number on; those before it are not parsed.

    Raises:
        DatasetError: a line is none of these.
        StorageError: the file cannot be read.
    """
    with open_binary(str(path)) as file:
        for number, line in islice(enumerate(file, 1), first, None):
            validated = parse_line(line.decode(errors="replace"))
            if validated is None:
                raise DatasetError(f"{path}:{number}: this line was changed after validation; run `yivl validate` again")
            yield validated


def digest_records(records: Iterable[ValidatedRecord]) -> str:
    """sha256 (hex) over the content of records in order, wherever they and their images lie."""
    digest = hashlib.sha256()
    for validated in records:
        digest.update(validated.canonical.encode() + b"\n")
    return digest.hexdigest()


def record_line(validated: ValidatedRecord) -> str:
    """A clean record as a line of jsonl, line end included."""
    values = {**record_to_json(validated.record), NOTE_FIELD: note_json(validated.source, validated.images)}
    return _LINE.encode(values) + "\n"


def record_to_json(record: Record) -> dict[str, Any]:
    """The record as a JSON object in the form that `read_rows` reads; fields that say nothing are left out."""
    return record.model_dump(mode="json", exclude_defaults=True)


def _read_report(folder: str) -> dict[str, Any] | None:
    try:
        report = json.loads((Path(folder) / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(report, dict) and report.get("format") == FORMAT and (Path(folder) / RECORDS_NAME).is_file()
    return report if is_ours else None


def parse_line(line: str) -> ValidatedRecord | None:
    """The record of a line that `record_line` wrote; None for any other line."""
    try:
        parsed = parse_record(json.loads(line), "inference")
    except (ValueError, TypeError, AttributeError):
        return None
    if parsed.record is None or parsed.note is None:
        return None
    return ValidatedRecord(record=parsed.record, source=parsed.note.source, images=parsed.note.image_infos(parsed.addresses))
