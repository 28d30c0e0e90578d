"""Compressed files -> their content, as a stream. A file is compressed if its name and its first bytes both say so.

Gzip (`.gz`) by Python's own reader, which checks the content's sum; Zstandard (`.zst`) by pyarrow's. Files of several members or
frames, as `cat` or parallel compressors make them, are read to their end. However far a file unfolds, blocks are held, no more.
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from yivl_core.errors import DatasetError
from yivl_core.object_stores import without_secrets

COMPRESSED_SUFFIXES = (".gz", ".zst")

_BUFFER_BYTES = 1 << 17
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
_SKIPPABLE_FRAME = (b"\x2a\x4d\x18", range(0x50, 0x60))  # zstd, RFC 8878 3.1.2: its last three bytes, and the first
_NAMES = {".gz": "gzip", ".zst": "zstd"}


def data_suffix(url: str) -> str:
    """What the name of a file says of its content, in lower case: `.jsonl` for `x.jsonl` and for `x.jsonl.gz`."""
    path = _path(url)
    return PurePosixPath(path.stem if path.suffix.lower() in COMPRESSED_SUFFIXES else path.name).suffix.lower()


def is_compressed(url: str) -> bool:
    """Whether a file is compressed, by its name."""
    return _path(url).suffix.lower() in COMPRESSED_SUFFIXES


def _path(url: str) -> PurePosixPath:
    """Without the query that a web server is asked with; elsewhere `?` is a part of a name."""
    return PurePosixPath(re.split("[?#]", url, maxsplit=1)[0] if url.startswith(("http://", "https://")) else url)


@contextmanager
def open_uncompressed(file: IO[bytes], url: str) -> Iterator[io.BufferedReader]:
    """The content of a file, uncompressed where it is compressed.

    A compressed file whose name does not say so is given as it is: `split_raw_rows` tells the user. An empty file is empty.

    Args:
        file: opened at its start. It is closed in the end.
        url: its name, for the ending and for messages.

    Raises:
        DatasetError: the name says that the file is compressed and its content does not. Reading raises one where the stream is
            damaged or cut off.
    """
    with io.BufferedReader(cast(Any, file), _BUFFER_BYTES) as buffered:
        suffix = _path(url).suffix.lower()
        head = buffered.peek(4)[:4]
        if suffix not in COMPRESSED_SUFFIXES or not head:
            yield buffered
            return
        _check_content(head, suffix, url)
        opened = gzip.GzipFile(fileobj=buffered) if suffix == ".gz" else pa.CompressedInputStream(buffered, "zstd")
        with opened, io.BufferedReader(cast(Any, _Uncompressed(opened, url)), _BUFFER_BYTES) as uncompressed:
            yield uncompressed


def _check_content(head: bytes, suffix: str, url: str) -> None:
    if _fits(head, suffix):
        return
    other = next((_NAMES[other] for other in COMPRESSED_SUFFIXES if _fits(head, other)), None)
    what = "not compressed, or in another way" if other is None else f"compressed with {other}"
    raise DatasetError(
        f"{without_secrets(url)}: by its name it is compressed with {_NAMES[suffix]}, by its content it is {what}; rename it"
    )


def _fits(head: bytes, suffix: str) -> bool:
    if suffix == ".zst" and head[1:] == _SKIPPABLE_FRAME[0] and head[0] in _SKIPPABLE_FRAME[1]:
        return True
    return head.startswith(_MAGIC[suffix])


class _Uncompressed(io.RawIOBase):
    """A stream whose damage is told with the file's name and the place.

    Args:
        opened: gives the content.
        url: its name.
    """

    def __init__(self, opened: Any, url: str) -> None:
        self._opened, self._url = opened, url
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = self._opened.read(len(view))
        except (EOFError, zlib.error, OSError, pa.ArrowException) as cause:
            if isinstance(cause, OSError) and cause.errno is not None:
                raise  # the disk or the network, not the content
            raise DatasetError(
                f"{without_secrets(self._url)}: the compressed file is damaged or cut off ({cause}); {self._num_bytes:,} bytes "
                "of its content were read; fetch or write it again"
            ) from cause
        view[: len(data)] = data
        self._num_bytes += len(data)
        return len(data)
