"""Writes the files of a validated dataset as records come, so that memory does not grow with their number."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from yivl_core.data.dataset import IMAGES_NAME, QUARANTINE_NAME, RECORDS_NAME, WARNINGS_NAME, ValidatedRecord, record_line
from yivl_core.data.findings import Finding
from yivl_core.data.images import ImageInfo
from yivl_core.data.reading import InputRow

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # the address as the user wrote it, where the image came first
        pa.field("path", pa.string(), nullable=False),  # where it was found: an absolute path
        pa.field("sha256", pa.string(), nullable=False),  # of the bytes of the file, hex
        pa.field("width", pa.int32(), nullable=False),  # pixels, as it is shown
        pa.field("height", pa.int32(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),  # how its pixels are stored, in Pillow's words
        pa.field("num_bytes", pa.int64(), nullable=False),
    ],
    metadata={"format": "yivl images", "version": "1"},
)

_ROWS_PER_GROUP = 10_000


class DatasetWriter:
    """Writes into a folder that exists and is empty; use it as a context manager.

    Attributes:
        num_records: clean records so far.
        num_quarantined: rejected records so far.
        num_images: different images, by content, in the clean records so far.
    """

    def __init__(self, folder: Path) -> None:
        self.num_records = 0
        self.num_quarantined = 0
        self._folder = folder
        self._digest = hashlib.sha256()
        self._image_digests: set[bytes] = set()
        self._images: list[ImageInfo] = []
        self._files = ExitStack()

    def __enter__(self) -> "DatasetWriter":
        self._records = self._open(RECORDS_NAME)
        self._quarantine = self._open(QUARANTINE_NAME)
        self._warnings = self._open(WARNINGS_NAME)
        self._images_writer = self._files.enter_context(pq.ParquetWriter(self._folder / IMAGES_NAME, IMAGES_SCHEMA))
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._write_images()
        self._files.close()

    @property
    def digest(self) -> str:
        """sha256 (hex) over the content of the clean records so far, in order."""
        return self._digest.hexdigest()

    @property
    def num_images(self) -> int:
        """Different images, by content, in the clean records so far."""
        return len(self._image_digests)

    def add(self, validated: ValidatedRecord, canonical: str, row: InputRow, findings: tuple[Finding, ...]) -> None:
        """Add a clean record; `findings` are the warnings about it, `canonical` is `validated.canonical`."""
        self.num_records += 1
        self._records.write(record_line(validated))
        self._digest.update(canonical.encode() + b"\n")
        for image in validated.images:
            if (key := bytes.fromhex(image.sha256)) not in self._image_digests:
                self._image_digests.add(key)
                self._images.append(image)
        if len(self._images) >= _ROWS_PER_GROUP:
            self._write_images()
        if findings:
            self._warnings.write(_findings_line(row, findings))

    def reject(self, row: InputRow, findings: tuple[Finding, ...]) -> None:
        """Put a rejected line, or what is wrong with a file as a whole, into the quarantine."""
        self.num_quarantined += row.source.line is not None
        self._quarantine.write(_findings_line(row, findings, text=row.text))

    def _open(self, name: str) -> IO[str]:
        return self._files.enter_context((self._folder / name).open("w", encoding="utf-8", newline="\n"))

    def _write_images(self) -> None:
        columns = {name: [getattr(image, name) for image in self._images] for name in IMAGES_SCHEMA.names}
        self._images_writer.write_table(pa.table(columns, schema=IMAGES_SCHEMA))
        self._images = []


def _findings_line(row: InputRow, findings: tuple[Finding, ...], **more: Any) -> str:
    """A line of jsonl: place, the kind and remedy of what matters most, then all findings."""
    first = min(findings, key=lambda finding: finding.severity != "error")
    values = {
        "file": row.source.file,
        "line": row.source.line,
        "id": row.record.id if row.record else None,
        **first.to_json(),
        "findings": [finding.to_json() for finding in findings],
        **more,
    }
    return json.dumps(values, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"
