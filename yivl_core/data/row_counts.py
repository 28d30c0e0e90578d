"""Dataset files -> how many rows each has, as its reader counts them: defective rows too, blank lines not.

Lines of jsonl are counted by the block, without being told apart; a csv file or json list is read, but its rows are not parsed.
"""

import re
from collections.abc import Iterator
from typing import IO

from yivl_core.data.coco import is_coco, read_coco
from yivl_core.data.compression import data_suffix, open_uncompressed
from yivl_core.data.configuration import Purpose
from yivl_core.data.json_items import list_items
from yivl_core.data.parquet_rows import count_parquet_rows
from yivl_core.data.raw_rows import RawRow, split_raw_rows
from yivl_core.storage import open_binary

_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 10
_BOM = b"\xef\xbb\xbf"
_REST_OF_LINE = re.compile(rb"\S[^\n]*")  # from what makes it a line that is not blank


def count_rows(url: str, max_line_bytes: int, purpose: Purpose) -> int:
    """The rows of a jsonl, json, csv or parquet file, compressed or not, and of COCO annotations.

    A line of jsonl that is blank and longer than the limit is not counted, though its reader reports it.

    Args:
        url: the file.
        max_line_bytes: as for its reader.
        purpose: COCO annotations have a row for each caption to train on, for each image otherwise.

    Raises:
        ConfigurationError: the name ends otherwise.
        DatasetError: a compressed or parquet file is damaged.
        StorageError: the file cannot be read.
    """
    suffix = data_suffix(url)
    if suffix == ".parquet":
        return count_parquet_rows(url)
    if suffix not in (".jsonl", ".json"):
        return _num_with_line(split_raw_rows(url, max_line_bytes))
    with open_binary(url) as opened, open_uncompressed(opened, url) as file:
        if file.peek(len(_BOM)).startswith(_BOM):
            file.read(len(_BOM))
        if suffix == ".jsonl":
            return count_lines(file)
        is_annotations = is_coco(file.peek(_HEAD_BYTES))
        return _num_with_line(read_coco(file, max_line_bytes, purpose) if is_annotations else list_items(file, max_line_bytes))


def count_lines(file: IO[bytes]) -> int:
    """The lines of a file that are not blank."""
    num_lines = 0
    is_counted = False  # the line in which a block begins
    while block := file.read(_BLOCK_BYTES):
        if is_counted:
            end = block.find(b"\n")
            if end < 0:
                continue
            block = block[end:]
        num_lines += sum(1 for _ in _REST_OF_LINE.finditer(block))
        is_counted = not block.endswith(b"\n") and bool(block[block.rfind(b"\n") + 1 :].strip())
    return num_lines


def _num_with_line(rows: Iterator[RawRow]) -> int:
    return sum(row.line is not None for row in rows)
