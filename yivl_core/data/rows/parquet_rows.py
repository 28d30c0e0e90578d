"""Parquet files -> rows of named values. Images may be addresses, or lie in the file itself, as bytes.

| column `images` or `image` | what it holds |
|---|---|
| string | the address of one image |
| binary | the bytes of one image |
| struct of `bytes` and `path` | either; so the datasets library stores images |
| list of one of these | any number of images |

Rows come a few at a time and row groups are read as a stream: memory depends on the largest pages of the file, not on its size.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yivl_core.data.findings import UnreadableFileError, error
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.raw_row import MAX_KEPT_CHARS, RawRow
from yivl_core.errors import DatasetError
from yivl_core.object_stores import without_secrets
from yivl_core.storage import open_binary

_ROWS_AT_A_TIME = 16
_BYTES_AT_A_TIME = 64_000_000
_BUFFER_BYTES = 1 << 20
_IMAGE_COLUMNS = ("images", "image")
_SHOWN_CHARS = 200


def is_parquet(url: str) -> bool:
    """Whether a file is one, by its name."""
    return PurePosixPath(url).suffix.lower() == ".parquet"


def count_parquet_rows(url: str) -> int:
    """The number of rows that a parquet file's footer tells.

    Raises:
        DatasetError, StorageError: as `split_parquet_rows`.
    """
    with _opened(url) as parquet:
        return int(parquet.metadata.num_rows)


def parquet_columns(url: str) -> list[str]:
    """The names of the columns of a parquet file.

    Raises:
        DatasetError, StorageError: as `split_parquet_rows`.
    """
    with _opened(url) as parquet:
        return list(parquet.schema_arrow.names)


def split_parquet_rows(
    url: str, first: int = 0, *, needs_images: bool = False, mapping: ColumnMapping | None = None
) -> Iterator[RawRow]:
    """The rows of a parquet file, numbered from 1.

    An image that lies in the file has the address that its `path` gives, or else `NAME:ROW`, with `#2` for the second of a row.

    Args:
        url: the file.
        first: number of the row to begin with, from 0; row groups before it are not read.
        needs_images: whether there has to be a column of images.
        mapping: the user's names of columns; of them that of the images is needed here, since they may be bytes.

    Raises:
        DatasetError: the file is damaged or no parquet, or has no column of images. (Raised when reading comes to it.)
        StorageError: it cannot be opened.
    """
    with _opened(url) as parquet:
        if not parquet.metadata.num_rows:
            yield RawRow(line=None, findings=[error("empty_file", "the file holds no record", "write one record a row")])
            return
        names = parquet.schema_arrow.names
        image_columns = [theirs for ours, theirs in (mapping.columns if mapping else ()) if ours == "images"] or _IMAGE_COLUMNS
        if needs_images and not set(image_columns) & set(names):
            raise DatasetError(
                f"{without_secrets(url)} has no column `images` or `image`; it has {', '.join(names)}: "
                "rename the one that is meant"
            )
        yield from _rows(parquet, PurePosixPath(url).name, first, image_columns)


@contextmanager
def _opened(url: str) -> Iterator[pq.ParquetFile]:
    with open_binary(url) as file:
        try:
            yield pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        except (pa.ArrowException, ValueError, OSError) as cause:
            if isinstance(cause, OSError) and cause.errno is not None:
                raise  # the disk or the network, not the content
            message = f"the file is damaged, or no parquet file ({cause})"
            raise UnreadableFileError(without_secrets(url), message, "write it again") from cause


def _rows(parquet: pq.ParquetFile, name: str, first: int, image_columns: Sequence[str]) -> Iterator[RawRow]:
    ends = list(accumulate(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)))
    first_group = bisect_right(ends, first)
    groups = range(first_group, parquet.num_row_groups)
    number = ends[first_group - 1] if first_group else 0
    row_bytes = max((_row_bytes(parquet.metadata.row_group(group)) for group in groups), default=0)
    num_rows = max(1, min(_ROWS_AT_A_TIME, _BYTES_AT_A_TIME // max(1, row_bytes)))
    for batch in parquet.iter_batches(batch_size=num_rows, row_groups=list(groups)):
        for columns in zip(*(_values(column) for column in batch.columns), strict=True):
            number += 1
            if number > first:
                yield _row(number, dict(zip(batch.schema.names, columns, strict=True)), name, image_columns)


def _row_bytes(group: pq.RowGroupMetaData) -> int:
    return int(group.total_byte_size) // max(1, int(group.num_rows))


class _Unreadable:
    """In the place of a value that Python cannot hold: text that is not UTF-8, a time beyond the year 9999."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _values(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError):
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError) as cause:
        return _Unreadable(cause)


def _row(number: int, columns: dict[str, Any], name: str, image_columns: Sequence[str]) -> RawRow:
    for key, value in columns.items():
        if isinstance(value, _Unreadable):
            finding = error("wrong_type", f"the value of `{key}` cannot be read ({value.cause})", "mend it, or leave it out")
            return RawRow(line=number, findings=[finding])
    contents: dict[str, bytes] = {}
    column = next((column for column in image_columns if columns.get(column) is not None), None)
    values = {key: _as_json(value) for key, value in columns.items() if value is not None and key not in image_columns}
    if column is not None:
        images = columns[column] if isinstance(columns[column], list) else [columns[column]]
        # Under the user's name, if there is one, which is mapped later like any other.
        field = "images" if column in _IMAGE_COLUMNS else column
        values[field] = [_address(image, f"{name}:{number}", contents) for image in images]
    if isinstance(values.get("history"), list):
        values["history"] = [_round(pair) for pair in values["history"]]
    text = ", ".join(f"{key}: {value!r}"[:_SHOWN_CHARS] for key, value in values.items())[:MAX_KEPT_CHARS]
    return RawRow(line=number, text=text, values=values, num_bytes=sum(map(len, contents.values())), contents=contents)


def _address(image: Any, name: str, contents: dict[str, bytes]) -> Any:
    """What stands for an image in a record; its bytes go to `contents`."""
    data, address = image, image
    if isinstance(image, Mapping):
        data, address = image.get("bytes"), image.get("path")
    if not isinstance(data, bytes):
        return _as_json(address)
    if not isinstance(address, str) or address in contents:
        address = name if name not in contents else f"{name}#{len(contents) + 1}"
    contents[address] = data
    return address


def _round(pair: Any) -> Any:
    """A round of a conversation as jsonl has it; predictions store it as a struct."""
    return [pair["query"], pair["response"]] if isinstance(pair, dict) and pair.keys() == {"query", "response"} else pair


def _as_json(value: Any) -> Any:
    """A value as JSON has it; what JSON does not know (times, decimals, bytes) as text."""
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    return str(value)
