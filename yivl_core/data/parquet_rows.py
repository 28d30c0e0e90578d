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
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yivl_core.data.findings import error
from yivl_core.data.raw_rows import RawRow
from yivl_core.errors import DatasetError
from yivl_core.storage import open_binary

_ROWS_AT_A_TIME = 16
_BUFFER_BYTES = 1 << 20
_IMAGE_COLUMNS = ("images", "image")
_SHOWN_CHARS = 200


def is_parquet(url: str) -> bool:
    """Whether a file is one, by its name."""
    return PurePosixPath(url).suffix.lower() == ".parquet"


def split_parquet_rows(url: str, first: int = 0) -> Iterator[RawRow]:
    """The rows of a parquet file, numbered from 1.

    An image that lies in the file has the address that its `path` gives, or else `NAME:ROW`, with `#2` for the second of a row.

    Args:
        url: the file.
        first: number of the row to begin with, from 0; row groups before it are not read.

    Raises:
        DatasetError: the file is damaged or no parquet. (Raised when reading comes to it.)
        StorageError: it cannot be opened.
    """
    with open_binary(url) as file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            if not parquet.metadata.num_rows:
                yield RawRow(line=None, findings=[error("empty_file", "the file holds no record", "write one record a row")])
                return
            yield from _rows(parquet, PurePosixPath(url).name, first)
        except (pa.ArrowException, ValueError, OSError) as cause:
            if isinstance(cause, OSError) and cause.errno is not None:
                raise  # the disk or the network, not the content
            raise DatasetError(f"{url} is damaged, or no parquet file ({cause}); write it again") from cause


def _rows(parquet: pq.ParquetFile, name: str, first: int) -> Iterator[RawRow]:
    ends = list(accumulate(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)))
    first_group = bisect_right(ends, first)
    groups = range(first_group, parquet.num_row_groups)
    number = ends[first_group - 1] if first_group else 0
    for batch in parquet.iter_batches(batch_size=_ROWS_AT_A_TIME, row_groups=list(groups)):
        for values in batch.to_pylist(maps_as_pydicts="lossy"):
            number += 1
            if number > first:
                yield _row(number, values, name)


def _row(number: int, columns: dict[str, Any], name: str) -> RawRow:
    contents: dict[str, bytes] = {}
    column = next((column for column in _IMAGE_COLUMNS if columns.get(column) is not None), None)
    values = {key: _as_json(value) for key, value in columns.items() if value is not None and key not in _IMAGE_COLUMNS}
    if column is not None:
        images = columns[column] if isinstance(columns[column], list) else [columns[column]]
        values["images"] = [_address(image, f"{name}:{number}", contents) for image in images]
    text = ", ".join(f"{key}: {value!r}"[:_SHOWN_CHARS] for key, value in values.items())
    return RawRow(line=number, text=text, values=values, num_bytes=sum(map(len, contents.values())), contents=contents)


def _address(image: Any, name: str, contents: dict[str, bytes]) -> Any:
    """What stands for an image in a record; its bytes go to `contents`."""
    data, address = image, image
    if isinstance(image, Mapping):
        data, address = image.get("bytes"), image.get("path")
    if not isinstance(data, bytes):
        return address
    if not isinstance(address, str) or address in contents:
        address = name if name not in contents else f"{name}#{len(contents) + 1}"
    contents[address] = data
    return address


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
