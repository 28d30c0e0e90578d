"""Blocks of rows -> what a validation writes of them: each row parsed, each of its images decoded in full.

Nothing here looks at two rows at once but for images, so blocks can be checked side by side, in threads and processes.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from yivl_core.data.dataset import ValidatedRecord, record_line
from yivl_core.data.findings import Finding, error, shown, warning
from yivl_core.data.images import IMAGE_WARNINGS, ImageError, ImageInfo, ImageReference, ImageStore
from yivl_core.data.raw_rows import RawRow
from yivl_core.data.reading import InputRow, RowReader
from yivl_core.data.strict_json import StrictJsonReader

KEY_BYTES = 16  # of a record's sha256: enough to tell a billion records apart

_NUM_IMAGES_REMEMBERED = 4096
_ADDRESS_KINDS = frozenset({"image_missing", "path_escape", "url_not_allowed", "control_char", "bad_unicode"})

Outcome = tuple[ImageInfo | None, tuple[Finding, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Rows of a file that are checked together.

    Attributes:
        reader: of that file.
        rows: in the file's order.
    """

    reader: RowReader
    rows: Sequence[RawRow]


class CheckedRow(NamedTuple):  # which is made in half the time of a dataclass
    """What was found out about a row.

    Attributes:
        line: where it stands; None for what concerns the file as a whole.
        id: the user's name for the record, if it is one.
        findings: those of the row, and those of its images.
        text: of a row that is rejected, how it is written; None for a clean one.
    """

    line: int | None
    id: str | None
    findings: tuple[Finding, ...]
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBlock:
    """What was found out about a block.

    Attributes:
        file: path of its file.
        rows: one for each row of the block.
        records: the lines of the clean ones for `records.jsonl`.
        canonical: the content of the clean ones, a line each.
        keys: the first 16 bytes of the sha256 of each line of that.
        images: of the clean ones, in order: the values of each `ImageInfo`.
    """

    file: str
    rows: Sequence[CheckedRow]
    records: bytes
    canonical: bytes
    keys: bytes
    images: Sequence[Sequence[Any]]


class ImageChecker:
    """Looks at images for the threads of this process; what several rows name is decoded once, if they are not too far apart.

    Args:
        store: reads the images.

    Attributes:
        num_checked: how many different images it was asked about.
    """

    def __init__(self, store: ImageStore) -> None:
        self.num_checked = 0
        self._store = store
        self._known: OrderedDict[ImageReference, Future[Outcome]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def max_pixels(self) -> int:
        """Most pixels of an image."""
        return self._store.max_pixels

    def check(self, image: ImageReference) -> Outcome:
        """What an image is, None if it cannot be used, and what was found about it. Its pixels are dropped at once.

        Raises:
            StorageError: the disk or network failed.
        """
        with self._lock:
            future = self._known.pop(image, None)
            is_new = future is None
            if future is None:
                future = Future()
                self.num_checked += 1
            self._known[image] = future  # behind all others, as the latest
            if len(self._known) > _NUM_IMAGES_REMEMBERED:
                self._known.popitem(last=False)
        if is_new:
            try:
                future.set_result(_look_at(image, self._store))
            except BaseException as cause:
                future.set_exception(cause)
                raise
        return future.result()


def check_block(block: RowBlock, images: ImageChecker) -> CheckedBlock:
    """Check the rows of a block.

    Raises:
        StorageError: the disk or network failed.
    """
    json_reader = StrictJsonReader()
    rows, records, contents, keys = [], [], [], []
    values: list[Sequence[Any]] = []
    for raw in block.rows:
        row = block.reader.read(raw, json_reader)
        outcomes = [images.check(image) for image in row.images]  # also of a row that is rejected, so that all is mended at once
        findings = _findings(row, outcomes)
        record = row.record
        if record is None or any(finding.severity == "error" for finding in findings):
            name = None if record is None else record.id
            rows.append(CheckedRow(line=row.source.line, id=name, findings=findings, text=row.text))
            continue
        rows.append(CheckedRow(line=row.source.line, id=record.id, findings=findings, text=None))
        own_infos = tuple(info for info, _ in outcomes if info is not None)
        validated = ValidatedRecord(record=record, source=row.source, images=own_infos)
        content = validated.canonical.encode()
        records.append(record_line(validated).encode())
        contents.append(content + b"\n")
        keys.append(hashlib.sha256(content).digest()[:KEY_BYTES])
        values += [info.values for info in own_infos]
    return CheckedBlock(
        file=block.reader.file,
        rows=rows,
        records=b"".join(records),
        canonical=b"".join(contents),
        keys=b"".join(keys),
        images=values,
    )


def _findings(row: InputRow, outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    if not any(findings for _, findings in outcomes):
        return row.findings
    # Text that cannot be stored was found in the row already, whether it is an address or not.
    text_kinds = {finding.kind for finding in row.findings} & {"control_char", "bad_unicode"}
    of_images = (finding for _, findings in outcomes for finding in findings if finding.kind not in text_kinds)
    return (*row.findings, *of_images)


def _look_at(image: ImageReference, store: ImageStore) -> Outcome:
    try:
        loaded = store.load(image)
    except ImageError as cause:
        if cause.kind in _ADDRESS_KINDS:
            return None, (error(cause.kind, cause.message, cause.remedy),)
        return None, (error("image_unreadable", cause.message, cause.remedy, detail=cause.kind),)
    findings = []
    for kind in loaded.warnings:
        message, remedy = IMAGE_WARNINGS[kind]
        findings.append(warning(kind, f"image {shown(image.uri)}: {message}", remedy))
    return loaded.info, tuple(findings)
