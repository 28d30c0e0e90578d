"""What only shows between rows: the same record or image twice, and what stands in a dataset that is to be kept apart.

Rows come in blocks that were checked one by one; what is found here is kept until all have come. All of it lies on disk but for
the latest keys, so memory does not grow with the dataset.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from itertools import groupby, islice
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from yivl_core.data.checks.checked_rows import CheckedBlock
from yivl_core.data.checks.key_table import KEY_BYTES, Frequent, KeyTable, Repeat
from yivl_core.data.checks.policies import Policies
from yivl_core.data.checks.record_lengths import Distribution, RecordLengths
from yivl_core.data.dataset import ValidatedDataset, ValidatedRecord
from yivl_core.data.findings import Finding, Source, shown, warning
from yivl_core.data.records import sample_digest
from yivl_core.data.references import ImageInfo
from yivl_core.temporary_tables import temporary_database

_NUM_IMAGES_REMEMBERED = 50_000
_ROWS_PER_INSERT = 10_000
_SHA256 = 3  # its place in `CheckedBlock.images`
_NUM_KEPT_FREQUENT = 10
_IMAGE_VALUES = "SELECT uri, path, sha256, width, height, mode, num_bytes"  # as in `ImageInfo`
_TABLES = """
CREATE TABLE images (
    sha256 TEXT PRIMARY KEY, uri TEXT, path TEXT, width INTEGER, height INTEGER, mode TEXT, num_bytes INTEGER,
    number INTEGER, place TEXT
) WITHOUT ROWID;
CREATE TABLE apart (sha256 TEXT PRIMARY KEY, dataset TEXT) WITHOUT ROWID;
CREATE TABLE files (path BLOB PRIMARY KEY, state TEXT) WITHOUT ROWID;
CREATE TABLE late (number INTEGER, file INTEGER, line INTEGER, kind TEXT, message TEXT, remedy TEXT);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LateFindings:
    """What was found about a clean record after all.

    Attributes:
        number: of the record among the clean ones, from 0.
        source: where it stands.
        findings: at least one.
    """

    number: int
    source: Source
    findings: tuple[Finding, ...]


class _KnownImage(NamedTuple):
    uri: str
    place: str
    apart: str | None


class AcrossRows:
    """Takes in what was found out about each row; use it as a context manager.

    Args:
        policies: how severe each kind is.

    Attributes:
        num_records: clean records so far.
        num_images: different images, by content, in them.
        num_unsettled: how often nothing lasting is known of an image: its URL could not be fetched, or rights or memory did
            not suffice.
    """

    def __init__(self, policies: Policies) -> None:
        self.num_records = 0
        self.num_images = 0
        self.num_unsettled = 0
        self._policies = policies
        self._files: dict[int, str] = {}  # by number
        self._apart: list[str] = []  # names of the datasets to be kept apart
        self._num_image_uses = 0
        self._left_out = np.empty(0, np.uint64)
        self._remembered: dict[str, _KnownImage] = {}
        self._resources = ExitStack()

    def __enter__(self) -> "AcrossRows":
        self._database = self._resources.enter_context(temporary_database())
        self._database.executescript(_TABLES)
        self._records = self._resources.enter_context(KeyTable())
        self._answers = self._resources.enter_context(KeyTable())
        self._answer_lengths = self._resources.enter_context(RecordLengths())
        self._num_tokens = self._resources.enter_context(RecordLengths())
        self._questions = self._resources.enter_context(KeyTable())
        self._known_questions = self._resources.enter_context(KeyTable())
        self._image_uses = self._resources.enter_context(KeyTable())
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    def keep_apart(self, dataset: ValidatedDataset) -> None:
        """Have it told which rows share a question or an image with a record of this dataset.

        Raises:
            DatasetError, StorageError: it cannot be read.
        """
        self._apart.append(dataset.folder)
        records = enumerate(dataset, 1)
        while part := list(islice(records, _ROWS_PER_INSERT)):
            keys = [sample_digest(record.record, tuple(image.sha256 for image in record.images)) for _, record in part]
            numbers = np.array([number for number, _ in part])
            shortened = bytes.fromhex("".join(key[: 2 * KEY_BYTES] for key in keys))
            self._known_questions.add(shortened, numbers, len(self._apart) - 1, numbers)
            images = [(image.sha256, dataset.folder) for _, record in part for image in record.images]
            self._database.executemany("INSERT OR IGNORE INTO apart VALUES (?, ?)", images)

    def add(self, block: CheckedBlock) -> None:
        """Take in a block, whose clean records follow those of the blocks before."""
        file = block.file_number
        self._files.setdefault(file, block.file)
        numbers = np.arange(self.num_records, self.num_records + len(block.lines))
        self._records.add(block.keys, numbers, file, block.lines)
        answered = block.answer_lengths >= 0
        keys = np.frombuffer(block.answers, f"V{KEY_BYTES}")[answered].tobytes()
        self._answers.add(keys, numbers[answered], file, block.lines[answered])
        self._answer_lengths.add(block.answer_lengths)
        self._num_tokens.add(block.num_tokens)
        if self._apart:
            self._questions.add(block.questions, numbers, file, block.lines)
        for position, (row, *values) in enumerate(block.images, self._num_image_uses):
            self._add_image(values, position, self.num_records + row, file, int(block.lines[row]))
        if block.images:
            digests = bytes.fromhex("".join(image[_SHA256][: 2 * KEY_BYTES] for image in block.images))
            rows = np.array([image[0] for image in block.images]) + self.num_records
            self._image_uses.add(digests, rows, file, rows)
            self._num_image_uses += len(block.images)
        self.num_records += len(block.lines)
        self.num_unsettled += block.num_unsettled
        files = ((os.fsencode(path), state) for path, state in block.image_files.items())
        self._database.executemany("INSERT OR IGNORE INTO files VALUES (?, ?)", files)

    def late_findings(self) -> Iterator[LateFindings]:
        """What was found about clean records, in their order. To be asked for once, when all blocks have been added."""
        self._note(self._records.repeats(), self._repeated)
        if self._apart:
            self._note(self._questions.matches(self._known_questions), self._leaked)
        rows = self._database.execute("SELECT * FROM late ORDER BY number, kind, rowid")
        for (number, file, line), group in groupby(rows, key=lambda row: row[:3]):
            findings = self._policies.apply(tuple(warning(*row[3:]) for row in group))
            yield LateFindings(number=number, source=Source.of_place(self._files[file], line), findings=findings)

    def leave_out(self, rejected: npt.NDArray[np.uint64], kept: Iterable[ValidatedRecord]) -> None:
        """Forget records that were rejected for what was found late.

        Args:
            rejected: their numbers, in order.
            kept: all other records.
        """
        self._left_out = rejected
        self._database.execute("DELETE FROM images")
        self._remembered.clear()
        self.num_images = 0
        images = enumerate((image, str(record.source)) for record in kept for image in record.images)
        for position, (image, place) in images:
            uri, path, sha256, *values = image.values
            self._insert_image((sha256, uri, path, *values, position, place))

    def places(self, numbers: Iterable[int]) -> list[int]:
        """Where records stand among those that were not left out, in order."""
        return [number - int(np.searchsorted(self._left_out, number)) for number in sorted(numbers)]

    def images(self) -> Iterator[tuple[Any, ...]]:
        """Each different image, where it came first: the values of an `ImageInfo`."""
        return iter(self._database.execute(f"{_IMAGE_VALUES} FROM images ORDER BY number"))

    def image_sizes(self) -> dict[str, Any] | None:
        """What there is to say about the images together; None where there are none."""
        if not self.num_images:
            return None
        (num_bytes,) = self._database.execute("SELECT sum(num_bytes) FROM images").fetchone()
        find = "SELECT width, height FROM images ORDER BY width * height {}, number LIMIT 1"
        smallest, largest = (list(self._database.execute(find.format(order)).fetchone()) for order in ("ASC", "DESC"))
        return {"num_bytes": num_bytes, "smallest": smallest, "largest": largest}

    def sample_images(self, number: int) -> list[tuple[ImageInfo, str]]:
        """So many different images, or all, evenly spread, each with the place of the first record that shows it."""
        step = max(1, self.num_images / number)
        wanted = {int(index * step) for index in range(min(number, self.num_images))}
        rows = self._database.execute(f"{_IMAGE_VALUES}, place FROM images ORDER BY number")
        names = [field.name for field in fields(ImageInfo)]
        return [
            (ImageInfo(**dict(zip(names, values, strict=True))), place)
            for index, (*values, place) in enumerate(rows)
            if index in wanted
        ]

    def image_files(self) -> Iterator[tuple[bytes, str]]:
        """Path and state of each image file of this machine that was looked at, by path."""
        return iter(self._database.execute("SELECT path, state FROM files ORDER BY path"))

    def most_used_images(self) -> list[tuple[str, int]]:
        """The images that the most records show, and how many do."""
        find = "SELECT uri FROM images WHERE sha256 BETWEEN ? AND ?"
        _, keys = self._image_uses.most_frequent(_NUM_KEPT_FREQUENT, self._left_out)
        return [
            (self._database.execute(find, (key.key.hex(), key.key.hex() + "g")).fetchone()[0], key.num_entries)
            for key in keys
            if key.num_entries > 1
        ]

    def frequent_answers(self) -> tuple[int, list[Frequent]]:
        """How many different answers there are, and the most frequent ones."""
        return self._answers.most_frequent(_NUM_KEPT_FREQUENT, self._left_out)

    def answer_lengths(self) -> Distribution | None:
        """Characters of the responses."""
        return self._answer_lengths.distribution(self._left_out)

    def num_tokens(self) -> Distribution | None:
        """Tokens of the records, images included; None where they were not counted."""
        return self._num_tokens.distribution(self._left_out)

    def _add_image(self, values: list[Any], position: int, number: int, file: int, line: int) -> None:
        uri, sha256 = values[0], values[2]
        known = self._remembered.get(sha256)
        if known is None:
            known = self._find_or_add(sha256, values, position, str(Source.of_place(self._files[file], line)))
            if len(self._remembered) >= _NUM_IMAGES_REMEMBERED:
                self._remembered.clear()
            self._remembered[sha256] = known
        if uri != known.uri:
            message = f"image {shown(uri)} is the same as {shown(known.uri)}, which {known.place} shows"
            self._add_late(
                number, file, line, warning("duplicate_image", message, "keep one of the files, or one of the records")
            )
        if known.apart is not None:
            message = f"image {shown(uri)} is in {known.apart}, too"
            self._add_late(number, file, line, warning("leaked_image", message, "leave the record out of one of the two"))

    def _find_or_add(self, sha256: str, values: list[Any], position: int, place: str) -> "_KnownImage":
        uri, apart = values[0], None
        if not self._insert_image((sha256, *values[:2], *values[3:], position, place)):
            uri, place = self._database.execute("SELECT uri, place FROM images WHERE sha256 = ?", (sha256,)).fetchone()
        if self._apart:
            apart = self._database.execute("SELECT dataset FROM apart WHERE sha256 = ?", (sha256,)).fetchone()
        return _KnownImage(uri=uri, place=place, apart=None if apart is None else apart[0])

    def _insert_image(self, row: tuple[Any, ...]) -> bool:
        """Note an image; whether it is a new one."""
        cursor = self._database.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.num_images += cursor.rowcount
        return cursor.rowcount > 0

    def _repeated(self, repeat: Repeat) -> Finding | None:
        if (repeat.file, repeat.line) == (repeat.first_file, repeat.first_line):
            return None  # it was asked for more than once
        first = Source.of_place(self._files[repeat.first_file], repeat.first_line)
        return warning("duplicate_record", f"this record stands at {first} already", "keep one of them")

    def _leaked(self, match: Repeat) -> Finding:
        place = f"record {match.first_line} of {self._apart[match.first_file]}"
        return warning("leaked_record", f"{place} asks the same of the same images", "leave the record out of one of the two")

    def _note(self, repeats: Iterator[Repeat], finding_of: Callable[[Repeat], Finding | None]) -> None:
        while part := list(islice(repeats, _ROWS_PER_INSERT)):
            found = ((repeat, finding_of(repeat)) for repeat in part)
            rows = [
                (repeat.number, repeat.file, repeat.line, finding.kind, finding.message, finding.remedy)
                for repeat, finding in found
                if finding is not None
            ]
            self._database.executemany("INSERT INTO late VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _add_late(self, number: int, file: int, line: int, finding: Finding) -> None:
        row = (number, file, line, finding.kind, finding.message, finding.remedy)
        self._database.execute("INSERT INTO late VALUES (?, ?, ?, ?, ?, ?)", row)
