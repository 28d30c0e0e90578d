"""One look at a whole input, before any of it is answered: how many rows, their digest, and which of them occur again.

What it finds goes into a table on disk and from there into `records-DIGEST.parquet` beside the plan, one row for each record, so
that memory does not grow with the input, and so that a worker of one shard need not look at the others.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from yivl_core.data.images import ImageError, ImageReference, ImageStore
from yivl_core.data.inputs import Input, ListedImages, found_images, is_usable, row_bytes, row_text
from yivl_core.data.reading import InputRow
from yivl_core.data.records import sample_digest
from yivl_core.digests import digest_json
from yivl_core.listing import StoredFile
from yivl_core.outputs.record_table import FoundRecord, RecordTable
from yivl_core.outputs.sample_ids import base_sample_id
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.temporary_tables import temporary_database

_PROGRESS_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class InputScan:
    """What was found.

    Attributes:
        num_records: rows, defective ones too.
        digest: sha256 (hex) of all that they say and of the states of their images.
        shard_digests: of what the rows of each shard say, images apart.
        table: one row for each record.
    """

    num_records: int
    digest: str
    shard_digests: tuple[str, ...]
    table: RecordTable


@contextmanager
def scan_input(
    source: Input, store: ImageStore, shard_size: int, on_progress: OnProgress = ignore_progress
) -> Iterator[InputScan]:
    """Look at each row once, and again at those that may be the same sample as another.

    Finding which are needs the content of images, and reading every image twice would be dear. So the first look compares texts
    and file sizes, in which equal samples agree; of rows that agree the starts and ends of their images are compared, and only
    what agrees in these too is read. Where a listing tells the content's digest, nothing is read.

    Args:
        source: the input.
        store: finds its images.
        shard_size: records in a shard.
        on_progress: hears of each pass.

    Yields:
        What was found. Its table takes some 200 bytes a record on the disk for temporary files, until the block ends.

    Raises:
        DatasetError, StorageError: the input cannot be read, or the table not be written.
    """
    with temporary_database() as database:
        table, digests = RecordTable(database), _RunningDigests(shard_size)
        table.extend(_look(source, store, digests, on_progress))
        if num_alike := table.find_alike():
            table.set_keys(_finer_keys(source, store, table, num_alike, on_progress))
            if num_alike := table.find_alike():
                table.set_occurrences(_names(source, store, table, num_alike, on_progress), _key_of_id)
        yield InputScan(
            num_records=digests.num_rows,
            digest=digests.whole.hexdigest(),
            shard_digests=tuple(digests.of_shards()),
            table=table,
        )


class ShardDigest:
    """sha256 over what the rows of one shard say, images apart: how a worker sees that its rows are those that were planned."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, text: str) -> None:
        """Take in the `row_text` of the next row."""
        self._hash.update(text.encode() + b"\n")

    def hexdigest(self) -> str:
        """The digest of the rows so far, in hex."""
        return self._hash.hexdigest()


class _RunningDigests:
    def __init__(self, shard_size: int) -> None:
        self.num_rows = 0
        self.whole = hashlib.sha256()
        self._shard_size, self._shards = shard_size, list[str]()
        self._shard = ShardDigest()

    def update(self, text: str, files: Sequence[StoredFile | None]) -> None:
        """Take in the next row."""
        if self.num_rows and self.num_rows % self._shard_size == 0:
            self._shards.append(self._shard.hexdigest())
            self._shard = ShardDigest()
        self._shard.update(text)
        self.whole.update(row_bytes(text, files))
        self.num_rows += 1

    def of_shards(self) -> list[str]:
        """The digests of all shards, the last one included."""
        return [*self._shards, self._shard.hexdigest()] if self.num_rows else []


def _look(source: Input, store: ImageStore, digests: _RunningDigests, on_progress: OnProgress) -> Iterator[FoundRecord]:
    for row in source.rows():
        files = found_images(row, store)
        digests.update(row_text(row), files)
        sizes = [
            image.sha256 or (file.content_key or str(file.num_bytes) if file else "")
            for image, file in zip(row.images, files, strict=True)
        ]
        file = files[0] if isinstance(source, ListedImages) else None
        yield FoundRecord(_key(row, sizes), all(file is None or is_usable(file) for file in files), file, row.source.line)
        _report("plan", digests.num_rows, None, on_progress)


def _finer_keys(
    source: Input, store: ImageStore, table: RecordTable, num_alike: int, on_progress: OnProgress
) -> Iterator[tuple[int, bytes]]:
    """Keys by which hardly any two images are equal that are not; a part of each is read."""

    def sampled(image: ImageReference) -> str:
        return hashlib.sha256(store.sample(image)).hexdigest()

    for done, (number, row) in enumerate(_alike_rows(source, table), 1):
        yield number, _key(row, [_content(image, store, sampled) for image in row.images])
        _report("compare", done, num_alike, on_progress)


def _names(
    source: Input, store: ImageStore, table: RecordTable, num_alike: int, on_progress: OnProgress
) -> Iterator[tuple[int, str]]:
    for done, (number, row) in enumerate(_alike_rows(source, table), 1):
        yield number, base_sample_id(row, [_content(image, store, store.digest) for image in row.images])
        _report("compare", done, num_alike, on_progress)


def _alike_rows(source: Input, table: RecordTable) -> Iterator[tuple[int, InputRow]]:
    """The rows that the table has noted as alike, with their numbers, in order."""
    if isinstance(source, ListedImages):
        for number, record in table.alike():
            assert record.file is not None
            yield number, source.planned_row(record.file, record.line)
        return
    wanted = table.alike()
    number, _ = next(wanted)
    for place, row in enumerate(source.rows()):
        if place == number:
            yield place, row
            found = next(wanted, None)
            if found is None:
                return
            number = found[0]


def _content(image: ImageReference, store: ImageStore, measure: Callable[[ImageReference], str]) -> str:
    """What stands for an image's content: its digest where that is known, else what `measure` makes of it."""
    if image.sha256 is not None:
        return image.sha256
    if image.listed is not None and image.listed.content_key is not None:
        return image.listed.content_key
    try:
        return measure(image)
    except ImageError:
        return "unreadable"


def _key(row: InputRow, images: Sequence[str]) -> bytes:
    """A key in which rows of equal names agree, and others the seldomer the more is known of their images."""
    if row.record is None:
        return _short(["no record", row.error_kind])
    if row.record.id is not None:
        return _key_of_id(row.record.id)
    return _short(["sample", sample_digest(row.record, tuple(images))])


def _key_of_id(name: str) -> bytes:
    return _short(["id", name])


def _short(value: list[str | None]) -> bytes:
    return bytes.fromhex(digest_json(value))[:16]


def _report(stage: str, done: int, total: int | None, on_progress: OnProgress) -> None:
    if done % _PROGRESS_ROWS == 0:
        on_progress(Progress(stage=stage, done=done, total=total, unit="record"))
