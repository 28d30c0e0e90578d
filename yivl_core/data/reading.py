"""Dataset files -> rows, each with its source and, where it is no record, what is wrong with it.

```
file --raw_rows--> named values --column_mapping, formats--> our names --parsing--> Record + addresses --> InputRow
```
Rows come one at a time, in the order of the file; none is left out but blank lines. Images are only named here, not opened.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from yivl_core.data.configuration import Purpose
from yivl_core.data.data_uris import is_data_uri, read_data_uri
from yivl_core.data.findings import Finding, Source
from yivl_core.data.images import Folder, ImageInfo, ImageReference
from yivl_core.data.public_urls import public_url, redact_urls
from yivl_core.data.records import Record
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.formats import Format, detect_format, to_record_values
from yivl_core.data.rows.parquet_rows import is_parquet, split_parquet_rows
from yivl_core.data.rows.parsing import parse_record
from yivl_core.data.rows.raw_row import RawRow, parse_raw_row
from yivl_core.data.rows.raw_rows import RowOptions, first_names, split_raw_rows
from yivl_core.data.rows.strict_json import StrictJsonReader
from yivl_core.errors import ConfigurationError, DatasetError
from yivl_core.object_stores import without_secrets
from yivl_core.storage import is_file, is_local, parent
from yivl_core.url_variables import with_values

__all__ = ["InputRow", "RowReader", "Source", "read_rows", "readable", "readable_url"]

DEFAULT_MAX_LINE_BYTES = 8_000_000  # room for an image in base64


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
    def num_bytes(self) -> int:
        """Memory that the files of its images take, before they are decoded."""
        return sum(image.num_bytes for image in self.images)

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
        query: what is asked in place of what a row says; None: nothing.
        max_line_bytes: longest line that is read.
        file_number: which of the files that are read together it is.
        mapping: the user's names of columns.
        row_format: that of its rows.
    """

    file: str
    folder: Folder
    image_root: Folder | None
    purpose: Purpose
    query: str | None = None
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES
    file_number: int = 0
    mapping: ColumnMapping = field(default_factory=ColumnMapping)
    row_format: Format = "swift"

    @classmethod
    def of_file(
        cls,
        url: str,
        image_root: str | None,
        purpose: Purpose,
        query: str | None = None,
        max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
        mapping: ColumnMapping | None = None,
    ) -> "RowReader":
        """The reader of a file's rows, whose format is that of the first one that can be read.

        Raises:
            ConfigurationError: there is no such file or image root, or the file has another ending.
            StorageError: the file cannot be read.
        """
        _check_file(url)
        options = RowOptions(purpose=purpose, mapping=mapping or ColumnMapping())
        try:
            names = first_names(url, max_line_bytes, options)
        except DatasetError:  # which reading will tell
            names = ()
        root = None if image_root is None else open_root(image_root)
        return cls(
            file=readable_url(url),
            folder=to_folder(parent(url)),
            image_root=root,
            purpose=purpose,
            query=query,
            max_line_bytes=max_line_bytes,
            mapping=options.mapping,
            row_format="swift" if query is not None else detect_format(names),
        )

    @property
    def is_plain(self) -> bool:
        """Whether rows have our own names, so that nothing has to be converted."""
        return self.row_format == "swift" and self.query is None and not self.mapping.columns

    @property
    def has_remote_images(self) -> bool:
        """Whether images have to be fetched that are named by a path."""
        return not isinstance(self.folder if self.image_root is None else self.image_root, Path)

    def read(self, raw: RawRow, json_reader: StrictJsonReader) -> InputRow:
        """What a row says."""
        raw = parse_raw_row(raw, json_reader)
        source, text = Source.of_place(self.file, raw.line), redact_urls(raw.text)
        if raw.values is None or any(finding.severity == "error" for finding in raw.findings):
            return InputRow(source=source, findings=tuple(raw.findings), text=text)
        values, findings = self.convert(raw.values)
        if any(finding.severity == "error" for finding in findings):
            return InputRow(source=source, findings=(*raw.findings, *findings), text=text)
        parsed = parse_record(values, self.purpose)
        is_here = isinstance(self.folder, Path)  # a file from elsewhere has nothing to say of paths on this machine
        if is_here and parsed.note is not None and len(parsed.note.images) == len(parsed.addresses):
            images = references(parsed.note.image_infos(parsed.addresses), self.image_root)
        else:
            images = self.locate(parsed.addresses, raw.contents)
        in_their_words = map(self.mapping.in_their_words, parsed.findings)
        findings = [*raw.findings, *findings, *in_their_words]
        return InputRow(source=source, record=parsed.record, images=images, findings=tuple(findings), text=text)

    def convert(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
        """The values of a row under the names that `parse_record` reads, and what is wrong with them."""
        mapped = self.mapping.apply(values) if self.mapping.columns else dict(values)
        if self.query is not None:
            mapped["query"] = self.query
        if self.row_format == "swift" and "query" in mapped:
            return mapped, []
        return to_record_values(mapped, self.row_format)

    def locate(
        self, addresses: Sequence[str], contents: Mapping[str, bytes] = MappingProxyType({})
    ) -> tuple[ImageReference, ...]:
        """Where the images of a row are.

        Args:
            addresses: as the row gives them.
            contents: the bytes of those that the file itself holds.
        """
        root = self.folder if self.image_root is None else self.image_root
        return tuple(_reference(address, root, contents.get(address)) for address in addresses)


def read_rows(
    url: str,
    image_root: str | None = None,
    purpose: Purpose = "inference",
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    *,
    query: str | None = None,
    mapping: ColumnMapping | None = None,
    first: int = 0,
) -> Iterator[InputRow]:
    """The rows of a dataset file, blank lines left out.

    A row whose `source.line` is None is about the file as a whole, and the last one.

    Args:
        url: the file.
        image_root: folder that image addresses are relative to; default: the file's own, and where a row tells what an earlier
            validation found, the places that it names.
        purpose: training needs a response in each record.
        max_line_bytes: longest line that is read.
        query: what is asked in place of what the rows say.
        mapping: the user's names of columns.
        first: number of the row to begin with, from 0; those before it are not parsed.

    Raises:
        ConfigurationError: there is no such file or image root, or it has another format.
        DatasetError: a compressed or parquet file is damaged. (Raised when reading comes to it.)
        StorageError: the file cannot be read.
    """
    reader, json_reader = RowReader.of_file(url, image_root, purpose, query, max_line_bytes, mapping), StrictJsonReader()
    if query is not None and is_parquet(url):
        raw_rows = split_parquet_rows(url, first, needs_images=True, mapping=mapping)
    else:
        raw_rows = split_raw_rows(url, max_line_bytes, RowOptions(purpose=purpose, mapping=reader.mapping), first)
    return (reader.read(raw, json_reader) for raw in raw_rows)


def open_root(image_root: str) -> Folder:
    """The folder that a user has named for images.

    Raises:
        ConfigurationError: there is none on this machine, or a variable in its address is not set.
    """
    root = to_folder(image_root)
    if isinstance(root, Path) and not root.is_dir():
        raise ConfigurationError(f"{image_root}: there is no such folder; check the image root")
    with_values(image_root)
    return root


def to_folder(url: str) -> Folder:
    """An address as a folder of this machine, or as the URL that it is."""
    return Path(url) if is_local(url) else url


def _check_file(url: str) -> None:
    if is_local(url) and Path(url).is_dir():
        raise ConfigurationError(f"{url}: this is a folder; name the jsonl, json, csv, tsv or parquet file in it")
    if not is_file(url):
        raise ConfigurationError(f"{without_secrets(url)}: there is no such file; check the path")


def _reference(address: str, root: Folder, data: bytes | None) -> ImageReference:
    if data is None and is_data_uri(address) and (found := read_data_uri(address)):
        data, name = found
        return ImageReference(uri=name, address=name, root=root, sha256=hashlib.sha256(data).hexdigest(), data=data)
    sha256 = None if data is None else hashlib.sha256(data).hexdigest()
    uri = public_url(address) if data is None and "://" in address else address
    return ImageReference(uri=uri, address=address, root=root, sha256=sha256, data=data)


def references(infos: tuple[ImageInfo, ...], image_root: Folder | None) -> tuple[ImageReference, ...]:
    """Images as an earlier validation found them: where that was, or below the root that is named now."""
    return tuple(info.reference if image_root is None else info.reference_under(image_root) for info in infos)


def readable(path: str) -> str:
    """A path as text that can be stored: bytes that are not UTF-8 are shown as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def readable_url(address: str) -> str:
    """The same of a path or a URL, which is shown without its secrets."""
    return public_url(readable(address)) if "://" in address else readable(address)
