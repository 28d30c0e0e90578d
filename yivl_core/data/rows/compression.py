"""Compressed files -> their content, as a stream. A file is compressed if its name and its first bytes both say so.

Gzip (`.gz`), whose sums are checked, and Zstandard (`.zst`). Files of several members or frames, as `cat` or parallel
compressors make them, are read to their end. However far a file unfolds, blocks are held, no more.
"""

import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from yivl_core.data.findings import UnreadableFileError
from yivl_core.data.rows.unpacking import is_failure, is_zstd, unpack_gzip, unpack_zstd
from yivl_core.object_stores import without_secrets

COMPRESSED_SUFFIXES = (".gz", ".zst")

_BUFFER_BYTES = 1 << 17
_GZIP_MAGIC = b"\x1f\x8b"
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
        UnreadableFileError: the name says that the file is compressed and its content does not. Where the stream is damaged or
            cut off, reading gives what can be unpacked, which may end within a line, and raises one from then on; reading
            everything in one call raises at once.
    """
    with io.BufferedReader(cast(Any, file), _BUFFER_BYTES) as buffered:
        suffix = _path(url).suffix.lower()
        head = buffered.peek(4)[:4]
        if suffix not in COMPRESSED_SUFFIXES or not head:
            yield buffered
            return
        _check_content(head, suffix, url)
        pieces = unpack_gzip(buffered) if suffix == ".gz" else unpack_zstd(buffered)
        with _Content(_Unpacked(pieces), url) as content:
            yield content


def _check_content(head: bytes, suffix: str, url: str) -> None:
    if _fits(head, suffix):
        return
    other = next((_NAMES[other] for other in COMPRESSED_SUFFIXES if _fits(head, other)), None)
    what = "not compressed, or in another way" if other is None else f"compressed with {other}"
    message = f"by its name it is compressed with {_NAMES[suffix]}, by its content it is {what}"
    raise UnreadableFileError(without_secrets(url), message, "rename it")


def _fits(head: bytes, suffix: str) -> bool:
    return is_zstd(head) if suffix == ".zst" else head.startswith(_GZIP_MAGIC)


def read_up_to_damage(read: Callable[[int], bytes], num_bytes: int) -> bytes:
    """What a method of such a stream reads; where the file is damaged none, as at its end. Reading on tells the damage again."""
    try:
        return read(num_bytes)
    except UnreadableFileError:
        return b""


def is_at_damage(file: IO[bytes]) -> bool:
    """Whether a stream that was read to its end was so for being damaged."""
    try:
        file.read(1)
    except UnreadableFileError:
        return True
    return False


class _Unpacked(io.RawIOBase):
    """A stream that ends where it is damaged.

    Attributes:
        num_bytes: how many were given.
        damage: why no more are.

    Args:
        pieces: the content.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._piece = pieces, memoryview(b"")
        self.num_bytes = 0
        self.damage: Exception | None = None
        self._failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view, num_bytes = memoryview(buffer), 0
        while num_bytes < len(view) and (piece := self._piece or self._next_piece()):
            part = piece[: len(view) - num_bytes]
            view[num_bytes : num_bytes + len(part)] = part
            self._piece = piece[len(part) :]
            num_bytes += len(part)
        self.num_bytes += num_bytes
        return num_bytes

    def _next_piece(self) -> memoryview:
        if self._failure is not None:  # the pieces would seem to be at their end
            raise self._failure
        try:
            return memoryview(next(filter(None, self._pieces), b""))
        except (EOFError, zlib.error, OSError, pa.ArrowException) as cause:
            if is_failure(cause):
                self._failure = cause
                raise
            self.damage = cause
            return memoryview(b"")


class _Content(io.BufferedReader):
    """A stream that raises where it is damaged, once all in front of the damage was given.

    `BufferedReader` by itself drops what it holds when the stream below it raises.

    Args:
        unpacked: the stream.
        url: its name.
    """

    def __init__(self, unpacked: _Unpacked, url: str) -> None:
        super().__init__(unpacked, _BUFFER_BYTES)
        self._unpacked, self._url = unpacked, url

    def peek(self, size: int = 0, /) -> bytes:
        return super().peek(size) or self._end()

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        return data if data and size is not None and size >= 0 else data + self._end()

    def read1(self, size: int = -1, /) -> bytes:
        return super().read1(size) or self._end()

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(size) or self._end()

    def readinto(self, buffer: Any, /) -> int:
        return super().readinto(buffer) or len(self._end())

    def readinto1(self, buffer: Any, /) -> int:
        return super().readinto1(buffer) or len(self._end())

    def _end(self) -> bytes:
        if (cause := self._unpacked.damage) is None:
            return b""
        place = f"behind {self._unpacked.num_bytes:,} bytes of its content"
        message = f"the compressed file is damaged or cut off {place} ({cause})"
        raise UnreadableFileError(without_secrets(self._url), message, "fetch or write it again") from cause
