"""One look at a whole input, before any of it is answered: how many rows, their digest, and which of them occur again.

What it finds goes into a table on disk and from there into `records-DIGEST.parquet` beside the plan, one row for each record, so
that memory does not grow with the input, and so that a worker of one shard need not look at the others.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from yivl_core.ahead import request_threads, work_ahead
from yivl_core.data.images import ImageError, ImageReference, ImageStore
from yivl_core.data.inputs import Input, ListedImages, found_image, found_rows, is_usable, row_bytes, row_text
from yivl_core.data.reading import InputRow
from yivl_core.data.records import sample_digest
from yivl_core.digests import digest_json
from yivl_core.listing import StoredFile
from yivl_core.outputs.record_table import FoundRecord, PlannedRecord, RecordTable
from yivl_core.outputs.sample_ids import base_sample_id
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.temporary_tables import temporary_database

_PROGRESS_ROWS = 1000

Item = TypeVar("Item")
Result = TypeVar("Result")
_NumberedRow = tuple[int, InputRow]


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
    what agrees in these too is read. Where an earlier validation or a listing tells the content of all images, nothing is read.
    An object store is asked about many images at once, and gives whole ones only: there what agrees in size is read at once.

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
    with temporary_database() as database, request_threads() as threads:
        table, digests = RecordTable(database), _RunningDigests(shard_size)
        passes = _Passes(source, store, table, threads, on_progress)
        table.extend(passes.look(digests))
        is_mixed = len(digests.kinds) > 1
        if is_mixed:  # one kind cannot be compared with another
            table.set_keys(passes.keys_of_sizes(digests.num_rows))
        if num_alike := table.find_alike():
            if digests.kinds == {"size"} and not source.is_remote:
                table.set_keys(passes.finer_keys(num_alike))
                num_alike = table.find_alike()
            if num_alike:
                table.set_occurrences(passes.names(num_alike, is_read=is_mixed), _key_of_id)
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
    """What grows from row to row.

    Attributes:
        num_rows: so far.
        whole: of all rows and the states of their images.
        kinds: how the contents of images are known: by `sha256`, by a `key` of the store, or by their `size` alone.
    """

    def __init__(self, shard_size: int) -> None:
        self.num_rows = 0
        self.kinds: set[str] = set()
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


class _Passes:
    """What is done to all rows, or to some, one after another.

    Args:
        source: the input.
        store: finds its images.
        table: of its records.
        threads: for questions to an object store.
        on_progress: hears of each pass.
    """

    def __init__(self, source: Input, store: ImageStore, table: RecordTable, threads: Executor, on_progress: OnProgress) -> None:
        self._source, self._store, self._table, self._threads, self._on_progress = source, store, table, threads, on_progress

    def look(self, digests: _RunningDigests) -> Iterator[FoundRecord]:
        """All records, with keys in which equal samples agree if the contents of all images are known in the same way."""
        has_files = isinstance(self._source, ListedImages)
        for row, files in found_rows(self._source, self._store, self._threads):
            digests.update(row_text(row), files)
            sizes = []
            for image, file in zip(row.images, files, strict=True):
                kind, known = _known_content(image, file)
                sizes.append(known)
                if file is None or is_usable(file):
                    digests.kinds.add(kind)
            are_found = all(file is None or is_usable(file) for file in files)
            yield FoundRecord(_key(row, sizes), are_found, files[0] if has_files else None, row.source.line)
            self._report("plan", digests.num_rows, None)

    def keys_of_sizes(self, num_rows: int) -> Iterator[tuple[int, bytes]]:
        """Keys of all records in which equal samples agree however their images are known."""

        def key(numbered: _NumberedRow) -> tuple[int, bytes]:
            number, row = numbered
            sizes = [image.public_name or str(found_image(image, self._store).num_bytes) for image in row.images]
            return number, _key(row, sizes)

        return self._counted(self._ahead(key, self._all_rows()), num_rows)

    def finer_keys(self, num_alike: int) -> Iterator[tuple[int, bytes]]:
        """Keys by which hardly any two images are equal that are not; a part of each is read."""

        def sampled(image: ImageReference) -> str:
            return hashlib.sha256(self._store.sample(image)).hexdigest()

        keys = ((number, _key(row, [_content(image, sampled) for image in row.images])) for number, row in self._alike_rows())
        return self._counted(keys, num_alike)

    def names(self, num_alike: int, is_read: bool) -> Iterator[tuple[int, str]]:
        """What tells the samples apart that may be equal.

        Args:
            num_alike: how many these are.
            is_read: whether images are read although the store has keys for some.
        """

        def name(numbered: _NumberedRow) -> tuple[int, str]:
            number, row = numbered
            return number, base_sample_id(
                row, [self._store_key(image, is_read) or _content(image, self._store.digest) for image in row.images]
            )

        return self._counted(self._ahead(name, self._alike_rows()), num_alike)

    def _store_key(self, image: ImageReference, is_read: bool) -> str | None:
        if is_read or image.sha256 is not None or image.listed is None:
            return None
        return image.listed.content_key

    def _ahead(self, work: Callable[[_NumberedRow], Result], rows: Iterable[_NumberedRow]) -> Iterator[Result]:
        if not self._source.is_remote:
            return map(work, rows)
        return work_ahead(self._threads, work, rows, num_bytes=lambda numbered: numbered[1].num_bytes)

    def _all_rows(self) -> Iterator[_NumberedRow]:
        if isinstance(self._source, ListedImages):
            for number, record in enumerate(self._table.records()):
                yield number, self._planned_row(record)
            return
        yield from enumerate(self._source.rows())

    def _alike_rows(self) -> Iterator[_NumberedRow]:
        """The rows that the table has noted as alike, with their numbers, in order."""
        wanted = self._table.alike()
        if isinstance(self._source, ListedImages):
            for number, record in wanted:
                yield number, self._planned_row(record)
            return
        number, _ = next(wanted)
        for place, row in enumerate(self._source.rows()):
            if place == number:
                yield place, row
                found = next(wanted, None)
                if found is None:
                    return
                number = found[0]

    def _planned_row(self, record: PlannedRecord) -> InputRow:
        assert isinstance(self._source, ListedImages)
        assert record.file is not None
        return self._source.planned_row(record.file, record.line)

    def _counted(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        for done, item in enumerate(items, 1):
            yield item
            self._report("compare", done, total)

    def _report(self, stage: str, done: int, total: int | None) -> None:
        if done % _PROGRESS_ROWS == 0:
            self._on_progress(Progress(stage=stage, done=done, total=total, unit="record"))


def _known_content(image: ImageReference, file: StoredFile | None) -> tuple[str, str]:
    """How the content of an image is known without reading it, and what is known."""
    if image.sha256 is not None:
        return "sha256", image.sha256
    if image.public_name is not None:
        return "url", image.public_name
    assert file is not None
    return ("key", file.content_key) if file.content_key else ("size", str(file.num_bytes))


def _content(image: ImageReference, measure: Callable[[ImageReference], str]) -> str:
    """What stands for an image's content: its digest or URL where that is known, else what `measure` makes of it."""
    known = image.sha256 or image.public_name
    if known is not None:
        return known
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
