"""Dataset files -> how many rows each has, as its reader counts them: defective rows too, blank lines not.

Lines of jsonl are counted by the block, without being told apart; a csv file or json list is read, but its rows are not parsed.
"""

import re
from collections.abc import Iterator
from typing import IO

from yivl_core.data.findings import UnreadableFileError
from yivl_core.data.rows.compression import data_suffix, open_uncompressed, read_up_to_damage
from yivl_core.data.rows.parquet_rows import count_parquet_rows
from yivl_core.data.rows.raw_row import RawRow
from yivl_core.data.rows.raw_rows import RowOptions, split_raw_rows
from yivl_core.storage import open_binary

_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_REST_OF_LINE = re.compile(rb"\S[^\n]*")  # from what makes it a line that is not blank


def count_rows(url: str, max_line_bytes: int, options: RowOptions | None = None) -> int:
    """The rows of a jsonl, json, csv, tsv or parquet file, compressed or not, and of COCO annotations.

    A line of jsonl that is blank and longer than the limit is not counted, though its reader reports it. Of a damaged file those
    count that can be read.

    Args:
        url: the file.
        max_line_bytes: as for `split_raw_rows`.
        options: as there.

    Raises:
        ConfigurationError, StorageError: as there.
        DatasetError: no row can be read.
    """
    suffix = data_suffix(url)
    if suffix == ".parquet":
        return count_parquet_rows(url)
    if suffix != ".jsonl":
        return _count_readable(split_raw_rows(url, max_line_bytes, options))
    with open_binary(url) as opened, open_uncompressed(opened, url) as file:
        if file.peek(len(_BOM)).startswith(_BOM):
            file.read(len(_BOM))
        return count_lines(file)


def _count_readable(rows: Iterator[RawRow]) -> int:
    num_rows = 0
    try:
        for row in rows:
            num_rows += row.line is not None
    except UnreadableFileError:
        if not num_rows:
            raise
    return num_rows


def count_lines(file: IO[bytes]) -> int:
    """The lines of a file that are not blank."""
    num_lines = 0
    is_counted = False  # the line in which a block begins
    while block := read_up_to_damage(file.read, _BLOCK_BYTES):
        if is_counted:
            end = block.find(b"\n")
            if end < 0:
                continue
            block = block[end:]
        num_lines += sum(1 for _ in _REST_OF_LINE.finditer(block))
        is_counted = not block.endswith(b"\n") and bool(block[block.rfind(b"\n") + 1 :].strip())
    return num_lines
