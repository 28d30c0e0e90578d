"""Files -> rows, whatever the file format, each row with its line, and what is wrong with it.

| name | by |
|---|---|
| `.jsonl`, `.csv`, `.tsv` | `line_rows`; rows that share an image: `shared_images` |
| `.json`: a list, or COCO's annotations | `json_items`, `coco` |
| `.parquet` | `parquet_rows` |

All but parquet files may be compressed (`.gz`, `.zst`). Rows come one at a time: memory does not depend on the file. To the
reader of its format a damaged file ends at the damage, which is raised here when the reader is done.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import IO, TypeVar

from yivl_core.data.configuration import Purpose
from yivl_core.data.findings import warning
from yivl_core.data.rows.coco import DEFAULT_QUESTION, is_coco, read_coco
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.compression import data_suffix, is_compressed, open_uncompressed
from yivl_core.data.rows.json_items import list_items
from yivl_core.data.rows.line_rows import read_jsonl, read_line_blocks, read_table
from yivl_core.data.rows.parquet_rows import parquet_columns, split_parquet_rows
from yivl_core.data.rows.raw_row import Lines, RawRow, about_file, parse_raw_row
from yivl_core.data.rows.shared_images import with_shared_images
from yivl_core.data.rows.strict_json import StrictJsonReader
from yivl_core.errors import ConfigurationError, DatasetError
from yivl_core.object_stores import without_secrets
from yivl_core.storage import open_binary

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DELIMITERS = {".csv": ",", ".tsv": "\t"}

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 1024
_NUM_ROWS_LOOKED_AT = 100
_NOT_TEXT = {
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"\x1f\x8b": ("compressed with gzip", "name it .gz, or unpack it with gunzip"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"BZh": ("compressed with bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ\x00": ("compressed with xz", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "name it .zst, or unpack it with unzstd"),
    b"PAR1": ("a parquet file", "name it .parquet"),
}

Row = TypeVar("Row", bound=RawRow | Lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """What a user says about the rows of a file.

    Attributes:
        purpose: COCO's annotations have a row for each caption to train on, for each image otherwise.
        mapping: the user's names of columns.
        question: asked about each image of COCO.
    """

    purpose: Purpose = "inference"
    mapping: ColumnMapping = field(default_factory=ColumnMapping)
    question: str = DEFAULT_QUESTION


def split_raw_rows(url: str, max_line_bytes: int, options: RowOptions | None = None, first: int = 0) -> Iterator[RawRow]:
    """The rows of a file, blank lines left out; after a finding about the whole file, nothing more.

    JSON is found, but not parsed, which is most of the work and can be done elsewhere.

    Args:
        url: a file whose name ends as in the table above.
        max_line_bytes: longest line (of jsonl), row (of csv and tsv) or item (of a JSON document) that is read.
        options: what the user says about its rows.
        first: number of the row to begin with, from 0.

    Raises:
        ConfigurationError: the name ends otherwise.
        DatasetError: a compressed or parquet file is damaged. (Raised when reading comes to it, as the next one.)
        StorageError: the file cannot be read.
    """
    options = options or RowOptions()
    suffix = data_suffix(url)
    if suffix not in SUFFIXES or (suffix == ".parquet" and is_compressed(url)):
        raise ConfigurationError(
            f"{without_secrets(url)}: a dataset file has to end in {', '.join(SUFFIXES)}, or in .gz or .zst behind the first "
            "four; rename or convert it"
        )
    if suffix == ".parquet":
        return split_parquet_rows(url, first, mapping=options.mapping)
    if suffix in DELIMITERS:
        return islice(_table_rows(url, options.mapping, DELIMITERS[suffix], max_line_bytes), first, None)
    reader = read_jsonl if suffix == ".jsonl" else partial(_read_json, options)
    return islice(_rows(url, reader, max_line_bytes), first, None)


def split_lines(
    url: str, max_line_bytes: int, options: RowOptions, num_bytes: Callable[[], int]
) -> Iterator[RawRow] | Iterator[RawRow | Lines]:
    """As `split_raw_rows`, with most lines of jsonl in blocks, to be split by `lines_of` where they are parsed.

    Args:
        url: as there.
        max_line_bytes: as there.
        options: as there.
        num_bytes: about how many bytes the next block should have.
    """
    if data_suffix(url) != ".jsonl":
        return split_raw_rows(url, max_line_bytes, options)
    return _rows(url, partial(read_line_blocks, num_bytes), max_line_bytes)


def first_names(url: str, max_line_bytes: int, options: RowOptions) -> tuple[str, ...]:
    """The names of the fields of the first row that can be read, as the user has mapped them; none where no row can be.

    Args:
        url: the file.
        max_line_bytes: as for `split_raw_rows`.
        options: as there.

    Raises:
        ConfigurationError, DatasetError, StorageError: as there.
    """
    if data_suffix(url) == ".parquet":
        names = parquet_columns(url)
        return tuple(options.mapping.apply(dict.fromkeys(names)))
    if is_annotated(url):
        return ("query", "images")
    reader = StrictJsonReader()
    for raw in islice(split_raw_rows(url, max_line_bytes, options), _NUM_ROWS_LOOKED_AT):
        if (values := parse_raw_row(raw, reader).values) is not None:
            return tuple(options.mapping.apply(values))
    return ()


def is_annotated(url: str) -> bool:
    """Whether a file holds COCO's annotations, as far as it can be read.

    Raises:
        StorageError: it cannot be read.
    """
    if data_suffix(url) != ".json":
        return False
    try:
        with open_binary(url) as opened, open_uncompressed(opened, url) as file:
            return is_coco(file.peek(_HEAD_BYTES).removeprefix(_BOM))
    except DatasetError:  # a damaged file, which reading will tell
        return False


def _table_rows(url: str, mapping: ColumnMapping, delimiter: str, max_line_bytes: int) -> Iterator[RawRow]:
    def read() -> Iterator[RawRow]:
        return _rows(url, partial(read_table, mapping, delimiter), max_line_bytes)

    return with_shared_images(read(), read, mapping)


def _rows(url: str, reader: Callable[[IO[bytes], int], Iterator[Row]], max_line_bytes: int) -> Iterator[Row | RawRow]:
    with open_binary(url) as opened, open_uncompressed(opened, url) as file:
        head = file.peek(8)
        for magic, (what, remedy) in _NOT_TEXT.items():
            if head.startswith(magic):
                yield about_file("bad_encoding", f"the file is {what}, not UTF-8 text", remedy)
                return
        has_bom = head.startswith(_BOM)
        if has_bom:
            file.read(len(_BOM))
        is_empty = True
        for row in reader(file, max_line_bytes):
            if is_empty and has_bom and isinstance(row, RawRow):
                bom = warning("bom", "the file starts with a byte order mark", "save it as UTF-8 without BOM")
                row = row._replace(findings=[*row.findings, bom])
            is_empty = False
            yield row
        file.read(1)  # raises where the file is damaged, which was its end to the reader
        if is_empty:
            yield about_file("empty_file", "the file holds no record", "write one record a line")


def _read_json(options: RowOptions, file: IO[bytes], max_bytes: int) -> Iterator[RawRow]:
    head: bytes = file.peek(_HEAD_BYTES)  # type: ignore[attr-defined]
    return read_coco(file, max_bytes, options.purpose, options.question) if is_coco(head) else list_items(file, max_bytes)
