"""Input of any form -> rows, in an order that is the same every time.

```
jsonl, json list, csv, parquet --reading----------------------+
validated-dataset folder --------dataset----------------------+--> InputRow
folder, glob or list of images, with one prompt --image_folders+
```
"""

import codecs
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from yivl_core.ahead import request_threads, work_ahead
from yivl_core.data.dataset import RECORDS_NAME, ValidatedDataset, is_validated_dataset, read_records, record_to_json
from yivl_core.data.findings import Source, error, shown
from yivl_core.data.image_folders import find_files, find_root
from yivl_core.data.images import EXTENSIONS, ImageError, ImageReference, ImageStore
from yivl_core.data.input_source import InputSource
from yivl_core.data.reading import InputRow, open_root, read_rows, readable, readable_url, references, to_folder
from yivl_core.data.records import ImageCountError, Record, conversation
from yivl_core.data.rows.parquet_rows import count_parquet_rows, is_parquet
from yivl_core.digests import canonical_json, digest_json
from yivl_core.errors import ConfigurationError, DatasetError
from yivl_core.listing import StoredFile
from yivl_core.progress import OnProgress, ignore_progress
from yivl_core.storage import is_file, is_local, join, open_binary, parent

__all__ = ["Input", "InputSource", "ListedImages", "input_digest", "open_input"]

_LIST_EXTENSIONS = frozenset({".txt", ".lst", ".list"})
_IMAGE_EXTENSIONS = frozenset(EXTENSIONS)


class Input(Protocol):
    """Rows of an input, which may be larger than memory."""

    @property
    def is_seekable(self) -> bool:
        """Whether reading may begin at any row without reading those before it."""

    @property
    def is_remote(self) -> bool:
        """Whether images may lie on an object store."""

    def rows(self, first: int = 0) -> Iterator[InputRow]:
        """The rows in order, from a number on.

        Raises:
            DatasetError: a file as a whole cannot be read, or it holds nothing. (Raised when reading comes to it.)
            StorageError: a file or folder cannot be read.
        """


def open_input(source: InputSource, on_progress: OnProgress = ignore_progress) -> Input:
    """The input that settings name.

    Args:
        source: names it.
        on_progress: hears of the listing of files, whenever the rows are asked for.

    Raises:
        ConfigurationError: it is not there, or the settings do not name one input.
    """
    if source.images is not None:
        question = _checked_question(source)
        if is_parquet(source.images):
            return _ParquetImages(source, question, on_progress)
        return ListedImages(source, question, on_progress)
    if source.dataset is None:
        raise ConfigurationError("no input is named; give `dataset`, or `images` and `prompt`")
    if is_local(source.dataset) and Path(source.dataset).is_dir():
        return _ValidatedRecords(source)
    return _DatasetFile(source)


def input_digest(source: InputSource) -> str:
    """sha256 (hex) of what decides the rows.

    A validated dataset has its own digest. Else it is that of the rows as they are written, and of their images. Of these the
    sizes and times of change count (on an object store the ETag), not the content, since reading a million images only for this
    would be dear: a copy with new times has another digest, and an image that was replaced by one of the same size and time is
    not noticed. An image that cannot be used counts as such. One whose sha256 an earlier validation has noted counts by that
    note: it is checked when the image is loaded. One behind a URL counts by the URL as it may be stored, whatever that leads to:
    without user, password and the values of secret parameters, so that links which are signed again are the same.

    Raises:
        ConfigurationError: as `open_input`.
        DatasetError, StorageError: as `Input.rows`.
    """
    stated = stated_digest(source)
    if stated is not None:
        return stated
    digest, store, rows = hashlib.sha256(), ImageStore(), open_input(source)
    with request_threads() as threads:
        for row, files in found_rows(rows, store, threads):
            digest.update(row_bytes(row_text(row), files))
    return digest.hexdigest()


def stated_digest(source: InputSource) -> str | None:
    """The digest of a validated dataset as that states it; None for other inputs."""
    if source.dataset is None or not is_local(source.dataset) or not is_validated_dataset(source.dataset):
        return None
    return digest_json([source.limit, ValidatedDataset.open(source.dataset).digest])


def row_text(row: InputRow) -> str:
    """What a row says, in one line: of images whose content is known that, of others the address."""
    if row.record is None:
        return canonical_json([row.error_kind, row.text])
    content = record_to_json(row.record)
    if row.images:
        names = (image.sha256 or image.public_name or image.address for image in row.images)
        content["images"] = [None if address is None else next(names) for address in row.record.images]
    return canonical_json(content)


def row_bytes(text: str, files: Sequence[StoredFile | None]) -> bytes:
    """What a digest of the data takes in of a row: what it says, and size and time of change of each image of unknown content.

    Args:
        text: of `row_text`.
        files: as `found_rows` gives them.
    """
    return "\n".join([text, *(file.state for file in files if file is not None), ""]).encode()


def found_rows(source: Input, store: ImageStore, threads: Executor) -> Iterator[tuple[InputRow, list[StoredFile | None]]]:
    """The rows of an input, each with what is known of its images without reading them; None where their content is known.

    Args:
        source: the input.
        store: finds its images.
        threads: for questions to an object store.

    Raises:
        DatasetError, StorageError: as `Input.rows`; the store failed.
    """

    def found(row: InputRow) -> tuple[InputRow, list[StoredFile | None]]:
        return row, [None if image.sha256 else found_image(image, store) for image in row.images]

    if not source.is_remote:
        return map(found, source.rows())
    return work_ahead(threads, found, source.rows(), num_bytes=lambda row: row.num_bytes)


def is_usable(file: StoredFile) -> bool:
    """Whether what `found_image` tells is a file with content, and not a URL, or the reason why there is none."""
    return file.num_bytes > 0


def found_image(image: ImageReference, store: ImageStore) -> StoredFile:
    """What is known of an image without reading or fetching it; the reason as its state where it cannot be used.

    Raises:
        StorageError: the store failed.
    """
    if image.public_name is not None:
        return StoredFile(image.uri, 0, image.public_name, None)
    try:
        return store.find(image)
    except ImageError as cause:
        return StoredFile(image.uri if "://" in image.address else image.address, 0, cause.kind, None)


class _DatasetFile:
    """The rows of a jsonl, json, csv, tsv or parquet file."""

    def __init__(self, source: InputSource) -> None:
        self._source = source
        self.is_seekable = is_parquet(source.dataset or "")
        self.is_remote = not is_local(source.image_root or source.dataset or "")

    def rows(self, first: int = 0) -> Iterator[InputRow]:
        source = self._source
        assert source.dataset is not None
        rows = read_rows(source.dataset, source.image_root, first=first)
        return _limited(_refuse_broken_files(rows), source.limit, first)


class _ValidatedRecords:
    """The records of a validated dataset."""

    is_seekable = False

    def __init__(self, source: InputSource) -> None:
        assert source.dataset is not None
        self._source = source
        self._dataset = ValidatedDataset.open(source.dataset)
        self._root = None if source.image_root is None else open_root(source.image_root)
        self.is_remote = isinstance(self._root, str)

    def rows(self, first: int = 0) -> Iterator[InputRow]:
        records = read_records(Path(self._dataset.folder) / RECORDS_NAME, first) if first else iter(self._dataset)
        rows = (
            InputRow(source=validated.source, record=validated.record, images=references(validated.images, self._root))
            for validated in records
        )
        return _limited(rows, self._source.limit, first)


class _ParquetImages:
    """The images that parquet files hold, with one question about each."""

    is_seekable = True

    def __init__(self, source: InputSource, question: str, on_progress: OnProgress) -> None:
        self._source, self._question, self._on_progress = source, question, on_progress
        self.is_remote = not is_local(source.image_root or source.images or "")

    def rows(self, first: int = 0) -> Iterator[InputRow]:
        return _limited(self._all_rows(first), self._source.limit, first)

    def _all_rows(self, first: int) -> Iterator[InputRow]:
        assert self._source.images is not None
        listing = find_files(self._source.images, frozenset({".parquet"}), self._on_progress)
        is_empty = True
        for file in listing.files:
            url = join(str(listing.root), file.name)
            num_rows = count_parquet_rows(url)
            is_empty &= num_rows == 0
            if first < num_rows:
                yield from map(_with_image, read_rows(url, self._source.image_root, query=self._question, first=first))
            first = max(0, first - num_rows)
        if is_empty:
            raise DatasetError(f"{self._source.images}: there is no row in it")


class ListedImages:
    """A folder, glob pattern or list of images, with one question about each: an `Input` whose rows can be made of single files.

    Args:
        source: names it.
        question: about each image.
        on_progress: hears of the listing, whenever the rows are asked for.

    Raises:
        ConfigurationError: there is no such folder or list.
    """

    is_seekable = False

    def __init__(self, source: InputSource, question: str, on_progress: OnProgress) -> None:
        assert source.images is not None
        self._pattern, self._limit, self._question, self._on_progress = source.images, source.limit, question, on_progress
        self._list = source.images if _is_list(source.images) else None
        if self._list is None:
            if source.image_root is not None:
                raise ConfigurationError(
                    f"`image_root` {source.image_root} goes with a `dataset` or a list of images, not with a folder; leave it out"
                )
            self._root = find_root(source.images)
        else:
            self._root = open_root(source.image_root) if source.image_root else to_folder(parent(self._list))
        self.is_remote = isinstance(self._root, str)

    def rows(self, first: int = 0) -> Iterator[InputRow]:
        """As `Input.rows`; the files are listed."""
        if self._list is None:
            files = find_files(self._pattern, _IMAGE_EXTENSIONS, self._on_progress).files
            rows = (self.planned_row(file, None) for file in files)
        else:
            rows = (self._row(name, line, None) for line, name in _read_list(self._list))
        return _limited(itertools.islice(rows, first, None), self._limit, first)

    def lines(self) -> Iterator[tuple[int, str]]:
        """The paths and URLs of a list as they were written, with the numbers of their lines; of a folder nothing.

        Raises:
            DatasetError, StorageError: the list names nothing, or cannot be read.
        """
        return iter(()) if self._list is None else _read_list(self._list)

    def planned_row(self, file: StoredFile, line: int | None, lines: Iterator[tuple[int, str]] | None = None) -> InputRow:
        """The row of a file that was found before, which a list named in this line.

        Args:
            file: what was found; of a URL the name is what may be stored of it.
            line: None for a folder.
            lines: what `lines` gives, up to an earlier row: where a URL is looked up as it was written; None: it is not.

        Raises:
            DatasetError: something else stands in that line now.
            StorageError: the list cannot be read.
        """
        row = self._row(file.name, line, file)
        if lines is None or self._list is None or row.images[0].fetched_url is None:
            return row
        row = self._row(next((name for number, name in lines if number == line), ""), line, None)
        if row.images[0].uri != file.name:
            raise DatasetError(
                f"{row.source}: names {shown(row.images[0].uri)}, and {shown(file.name)} was planned; the list was changed: "
                "bring it back and resume, or start again with an empty output folder"
            )
        return row

    def _row(self, name: str, line: int | None, file: StoredFile | None) -> InputRow:
        if self._list is None:
            source = Source(file=readable_url(join(str(self._root), name)))
        else:
            source = Source(file=readable_url(self._list), line=line)
        image = ImageReference(uri=readable_url(name), address=name, root=self._root)
        if self._list is None or image.fetched_url is None:
            image = replace(image, listed=file)
        if readable(name) != name:
            finding = error("bad_unicode", f"the file name {name!a} is not UTF-8", "rename the file")
            return InputRow(source=source, findings=(finding,), images=(image,), text=readable(name))
        return InputRow(source=source, record=Record(query=self._question, images=(name,)), images=(image,))


def _with_image(row: InputRow) -> InputRow:
    if row.record is None or row.images:
        return row
    finding = error("image_missing", "the row holds no image", "give its bytes or its address, or leave the row out")
    return replace(row, record=None, findings=(*row.findings, finding))


def _checked_question(source: InputSource) -> str:
    question = source.question
    if not question:
        raise ConfigurationError("`images` are named without a `prompt` or `task`; say what to ask about each of them")
    try:
        conversation(Record(query=question, images=("",)))
    except ImageCountError as cause:
        raise ConfigurationError(f"prompt {shown(question)}: {cause}") from cause
    return question


def _is_list(url: str) -> bool:
    return PurePosixPath(url).suffix.lower() in _LIST_EXTENSIONS and is_file(url)


def _read_list(url: str) -> Iterator[tuple[int, str]]:
    """The paths of a list with the numbers of their lines, from 1; blank lines are left out.

    Raises:
        DatasetError: it names nothing.
    """
    is_empty = True
    with open_binary(url) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            name = line.removesuffix(b"\n").removesuffix(b"\r")
            if name.strip():
                is_empty = False
                yield number, name.decode(errors="surrogateescape")
    if is_empty:
        raise DatasetError(f"{readable_url(url)}: the list names no image; write one path a line")


def _limited(rows: Iterable[InputRow], limit: int | None, first: int) -> Iterator[InputRow]:
    return itertools.islice(rows, None if limit is None else max(0, limit - first))


def _refuse_broken_files(rows: Iterator[InputRow]) -> Iterator[InputRow]:
    for row in rows:
        if row.source.line is None:
            raise DatasetError(f"{row.source}: {row.error}")
        yield row
