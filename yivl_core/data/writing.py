"""Writes the files of a validated dataset as records come, so that memory does not grow with their number."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from yivl_core.data.dataset import IMAGES_NAME, QUARANTINE_NAME, RECORDS_NAME, WARNINGS_NAME
from yivl_core.data.findings import Finding, Source
from yivl_core.data.row_checks import KEY_BYTES, CheckedBlock

IMAGES_SCHEMA = pa.schema(  # the attributes of `ImageInfo`, in their order
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

_SHA256 = IMAGES_SCHEMA.get_field_index("sha256")
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
        self._images: list[Sequence[Any]] = []
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

    def add(self, block: CheckedBlock) -> None:
        """Add the clean records of a block."""
        self.num_records += len(block.keys) // KEY_BYTES
        self._records.write(block.records)
        self._digest.update(block.canonical)
        for image in block.images:
            if (key := bytes.fromhex(image[_SHA256])) not in self._image_digests:
                self._image_digests.add(key)
                self._images.append(image)
        while len(self._images) >= _ROWS_PER_GROUP:
            self._write_images()

    def warn(self, source: Source, record_id: str | None, findings: tuple[Finding, ...]) -> None:
        """Tell what there is to say about a clean record."""
        self._warnings.write(_findings_line(source, record_id, findings))

    def reject(self, source: Source, record_id: str | None, findings: tuple[Finding, ...], text: str) -> None:
        """Put a rejected line, or what is wrong with a file as a whole, into the quarantine."""
        self.num_quarantined += source.line is not None
        self._quarantine.write(_findings_line(source, record_id, findings, text=text))

    def _open(self, name: str) -> IO[bytes]:
        return self._files.enter_context((self._folder / name).open("wb"))

    def _write_images(self) -> None:
        group, self._images = self._images[:_ROWS_PER_GROUP], self._images[_ROWS_PER_GROUP:]
        columns = list(zip(*group, strict=True)) or [()] * len(IMAGES_SCHEMA)
        self._images_writer.write_table(pa.table(columns, schema=IMAGES_SCHEMA))


def _findings_line(source: Source, record_id: str | None, findings: tuple[Finding, ...], **more: Any) -> bytes:
    """A line of jsonl: place, the kind and remedy of what matters most, then all findings."""
    first = min(findings, key=lambda finding: finding.severity != "error")
    values = {
        "file": source.file,
        "line": source.line,
        "id": record_id,
        **first.to_json(),
        "findings": [finding.to_json() for finding in findings],
        **more,
    }
    return json.dumps(values, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
