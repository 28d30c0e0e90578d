"""Writes the files of a validated dataset as records come, so that memory does not grow with their number.

What is found only when all have come changes files that are written: `revise` adds warnings, `leave_out` takes out records.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from yivl_core.data.checks.across_rows import LateFindings
from yivl_core.data.checks.checked_rows import CheckedBlock
from yivl_core.data.dataset import (
    IMAGES_NAME,
    QUARANTINE_NAME,
    RECORDS_NAME,
    WARNINGS_NAME,
    ValidatedRecord,
    parse_line,
    record_to_json,
)
from yivl_core.data.findings import Finding, Source
from yivl_core.data.rows.raw_row import MAX_KEPT_CHARS
from yivl_core.digests import canonical_json

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

_ROWS_PER_GROUP = 10_000
_LINE = json.JSONEncoder(ensure_ascii=False)

Numbers = npt.NDArray[np.uint64]
Tell = Callable[[Source, str | None, tuple[Finding, ...]], None]


class DatasetWriter:
    """Writes into a folder that exists and is empty; use it as a context manager.

    Attributes:
        num_records: clean records so far.
        num_quarantined: rejected records so far.
    """

    def __init__(self, folder: Path) -> None:
        self.num_records = 0
        self.num_quarantined = 0
        self._folder = folder
        self._digest = hashlib.sha256()
        self._warned = array("Q")  # number of the record of each line of `warnings.jsonl`
        self._files = ExitStack()

    def __enter__(self) -> "DatasetWriter":
        self._records = self._open(RECORDS_NAME)
        self._quarantine = self._open(QUARANTINE_NAME)
        self._warnings = self._open(WARNINGS_NAME)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write all to disk; nothing can be added afterwards."""
        self._files.close()

    @property
    def digest(self) -> str:
        """sha256 (hex) over the content of the clean records so far, in order."""
        return self._digest.hexdigest()

    def add(self, block: CheckedBlock) -> None:
        """Add the clean records of a block, and what there is to say about its rows."""
        numbers = dict(zip(block.lines.tolist(), count(self.num_records))) if block.noted else {}
        for row in block.noted:
            source = Source.of_place(block.file, row.line)
            if row.text is not None:
                self._reject(source, row.id, row.findings, row.text)
            elif row.line is not None:
                self._warned.append(numbers[row.line])
                self._warnings.write(_findings_line(source, row.id, row.findings))
        self.num_records += len(block.lines)
        self._records.write(block.records)
        self._digest.update(block.canonical)

    def revise(self, late: Iterable[LateFindings], tell: Tell) -> Numbers:
        """Add what was found about clean records when all had come. Those that it rejects stay until `leave_out`.

        Args:
            late: in the order of the records.
            tell: called with each place, the record's id, and the late findings.

        Returns:
            Numbers of the rejected records, in order.
        """
        rejected = array("Q")
        self._records.flush()
        self._warnings.close()
        earlier_path = self._folder / f"{WARNINGS_NAME}.earlier"
        (self._folder / WARNINGS_NAME).rename(earlier_path)
        self._warnings = self._open(WARNINGS_NAME)
        with earlier_path.open("rb") as earlier_lines, (self._folder / RECORDS_NAME).open("rb") as lines:
            earlier = _Pending(zip(self._warned, earlier_lines, strict=True))
            num_read = 0
            for found in late:
                self._warnings.writelines(earlier.before(found.number))
                line = next(islice(lines, found.number - num_read, None))
                num_read = found.number + 1
                record_id: str | None = orjson.loads(line).get("id")  # in a third of the time that `_parsed` takes
                findings = (*earlier.findings_of(found.number), *found.findings)
                tell(found.source, record_id, found.findings)
                if any(finding.severity == "error" for finding in found.findings):
                    text = canonical_json(record_to_json(_parsed(line).record))[:MAX_KEPT_CHARS]
                    self._reject(found.source, record_id, findings, text)
                    rejected.append(found.number)
                else:
                    self._warnings.write(_findings_line(found.source, record_id, findings))
            self._warnings.writelines(earlier.before(self.num_records))
        earlier_path.unlink()
        return np.frombuffer(rejected, np.uint64)

    def leave_out(self, rejected: Numbers) -> Iterator[ValidatedRecord]:
        """Take records out, and give those that stay; all is done when the last one was taken."""
        self._records.close()
        earlier_path = self._folder / f"{RECORDS_NAME}.earlier"
        (self._folder / RECORDS_NAME).rename(earlier_path)
        self._records = self._open(RECORDS_NAME)
        self._digest = hashlib.sha256()
        self.num_records = 0
        gone = iter(rejected.tolist())
        next_gone = next(gone, None)
        with earlier_path.open("rb") as lines:
            for number, line in enumerate(lines):
                if number == next_gone:
                    next_gone = next(gone, None)
                    continue
                validated = _parsed(line)
                self._records.write(line)
                self._digest.update(validated.canonical.encode() + b"\n")
                self.num_records += 1
                yield validated
        earlier_path.unlink()

    def read(self, positions: Sequence[int]) -> list[ValidatedRecord]:
        """Some of the records, by their places in the file, which are in order."""
        self._records.flush()
        found, num_read = [], 0
        with (self._folder / RECORDS_NAME).open("rb") as lines:
            for position in positions:
                found.append(_parsed(next(islice(lines, position - num_read, None))))
                num_read = position + 1
        return found

    def write_images(self, images: Iterable[tuple[Any, ...]]) -> None:
        """Write `images.parquet`: the values of an `ImageInfo` for each different image."""
        rows = iter(images)
        with pq.ParquetWriter(self._folder / IMAGES_NAME, IMAGES_SCHEMA) as writer:
            while group := list(islice(rows, _ROWS_PER_GROUP)):
                writer.write_table(pa.table(list(zip(*group, strict=True)), schema=IMAGES_SCHEMA))

    def _reject(self, source: Source, record_id: str | None, findings: tuple[Finding, ...], text: str) -> None:
        """Put a rejected line, or what is wrong with a file as a whole, into the quarantine."""
        self.num_quarantined += source.line is not None
        self._quarantine.write(_findings_line(source, record_id, findings, text=text))

    def _open(self, name: str) -> IO[bytes]:
        return self._files.enter_context((self._folder / name).open("wb"))


class _Pending:
    """Lines of `warnings.jsonl` in the order of their records, taken as far as they are asked for."""

    def __init__(self, lines: Iterator[tuple[int, bytes]]) -> None:
        self._lines = lines
        self._next = next(lines, None)

    def before(self, number: int) -> Iterator[bytes]:
        """The lines of the records before one."""
        while self._next is not None and self._next[0] < number:
            yield self._next[1]
            self._next = next(self._lines, None)

    def findings_of(self, number: int) -> tuple[Finding, ...]:
        """What the line of a record tells; nothing where it has none."""
        if self._next is None or self._next[0] != number:
            return ()
        findings = json.loads(self._next[1])["findings"]
        self._next = next(self._lines, None)
        return tuple(Finding(**finding) for finding in findings)


def _parsed(line: bytes) -> ValidatedRecord:
    validated = parse_line(line.decode())
    assert validated is not None
    return validated


def _findings_line(source: Source, record_id: str | None, findings: tuple[Finding, ...], **more: Any) -> bytes:
    """A line of jsonl: place, the kind and remedy of what matters most, then all findings."""
    first = min(findings, key=lambda finding: finding.severity != "error")
    values = {
        "file": source.file,
        **source.numbers,
        "id": record_id,
        **first.to_json(),
        "findings": [finding.to_json() for finding in findings],
        **more,
    }
    return _LINE.encode(values).encode(errors="backslashreplace") + b"\n"
