"""Gzip and Zstandard -> their content in pieces; of a damaged file all that can be unpacked, and then the error.

Decompressors keep to themselves what they had unpacked when they meet damage. So of gzip the last piece is unpacked again from
a copy of the state before it, a byte at a time; of Zstandard, whose state cannot be copied, the file, a block at a time.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa

_PIECE_BYTES = 1 << 17
_GZIP = 16 + zlib.MAX_WBITS
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_FRAME = (b"\x2a\x4d\x18", range(0x50, 0x60))  # RFC 8878 3.1.2: its last three bytes, and the first
_DICTIONARY_BYTES = (0, 1, 2, 4)  # RFC 8878 3.1.1.1.1: lengths of fields of a frame's header
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_RLE_BLOCK = 1


def is_zstd(head: bytes) -> bool:
    """Whether a file with these first four bytes is Zstandard."""
    return head == _ZSTD_MAGIC or _is_skippable(head)


def is_failure(cause: Exception) -> bool:
    """Whether the disk or the network is to blame, not the content."""
    return isinstance(cause, OSError) and cause.errno is not None


def unpack_gzip(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a gzip file of any number of members, with zeros between them.

    Args:
        file: at its start, and not at its end.

    Raises:
        EOFError: the file is cut off.
        zlib.error: it is damaged, or another sum or length is told than the content has.
    """
    data = b""
    while data := (data or file.read(_PIECE_BYTES)):
        inflater = zlib.decompressobj(_GZIP)
        num_bytes = 0
        while not inflater.eof:
            if not data and num_bytes < _PIECE_BYTES and not (data := file.read(_PIECE_BYTES)):
                raise EOFError("its end is missing")
            state = inflater.copy()
            try:
                content = inflater.decompress(data, _PIECE_BYTES)
            except zlib.error as cause:
                yield _inflate_up_to_damage(state, data)
                raise cause from None
            yield content
            num_bytes, data = len(content), inflater.unconsumed_tail
        data = inflater.unused_data.lstrip(b"\0")
        while not data and (data := file.read(_PIECE_BYTES)):
            data = data.lstrip(b"\0")


def _inflate_up_to_damage(inflater: Any, data: bytes) -> bytes:
    content = bytearray()
    try:
        for index in range(len(data)):
            content += inflater.decompress(data[index : index + 1])
    except zlib.error:
        pass
    return bytes(content)


def unpack_zstd(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a Zstandard file of any number of frames.

    Args:
        file: at its start. It is read a second time where it is damaged; if it cannot be, the last piece before the damage is
            lost.

    Raises:
        pyarrow.ArrowException, OSError without a number: the file is damaged or cut off.
    """
    num_bytes = 0
    try:
        for content in _unpack_pieces(file.read, _PIECE_BYTES):
            yield content
            num_bytes += len(content)
    except (OSError, pa.ArrowException) as cause:
        if not is_failure(cause) and file.seekable():
            file.seek(0)
            yield from _unpack_up_to_damage(file, num_bytes)
        raise


def _unpack_pieces(read: Callable[[int], bytes], piece_bytes: int) -> Iterator[bytes]:
    stream = pa.CompressedInputStream(_Source(read), "zstd")
    while content := stream.read(piece_bytes):
        yield content


def _unpack_up_to_damage(file: IO[bytes], first: int) -> Iterator[bytes]:
    """The content from a byte on that was reached before."""
    stream = pa.CompressedInputStream(_Source(_reading_pieces(_zstd_blocks(file))), "zstd")
    content = bytearray()
    try:
        while first and (skipped := stream.read(min(first, _PIECE_BYTES))):
            first -= len(skipped)
        while byte := stream.read(1):  # of more it would lose those in front of the damage
            content += byte
            if len(content) == _PIECE_BYTES:
                yield bytes(content)
                content.clear()
    except (OSError, pa.ArrowException) as cause:
        if is_failure(cause):
            raise
    yield bytes(content)


def _zstd_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """A Zstandard file in pieces, of which none holds more than one block, nor a block beside a sum (RFC 8878 3.1.1)."""
    while magic := file.read(4):
        if _is_skippable(magic):
            size = file.read(4)
            yield magic + size
            num_left = int.from_bytes(size, "little")
            while num_left and (data := file.read(min(num_left, _PIECE_BYTES))):
                yield data
                num_left -= len(data)
            continue
        descriptor = file.read(1)
        flags = int.from_bytes(descriptor)
        is_single_segment = bool(flags & 0x20)
        size_bytes = _CONTENT_SIZE_BYTES[flags >> 6] or is_single_segment
        window_bytes = not is_single_segment
        yield magic + descriptor + file.read(window_bytes + _DICTIONARY_BYTES[flags & 3] + size_bytes)
        is_last = False
        while not is_last and (head := file.read(3)):
            bits = int.from_bytes(head, "little")
            is_last = bool(bits & 1)
            yield head + file.read(1 if bits >> 1 & 3 == _RLE_BLOCK else bits >> 3)
        if flags & 4:
            yield file.read(4)


def _is_skippable(magic: bytes) -> bool:
    return magic[1:] == _SKIPPABLE_FRAME[0] and magic[0] in _SKIPPABLE_FRAME[1]


def _reading_pieces(pieces: Iterator[bytes]) -> Callable[[int], bytes]:
    """Reads pieces without joining any."""
    rest = b""

    def read(num_bytes: int) -> bytes:
        nonlocal rest
        data = rest or next(filter(None, pieces), b"")
        rest = data[num_bytes:]
        return data[:num_bytes]

    return read


class _Source(io.RawIOBase):
    """What pyarrow reads from, and closes.

    Args:
        read: gives so many bytes, or fewer; none at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._read(size)
