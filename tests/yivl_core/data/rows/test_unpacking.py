import gzip
import io
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import pyarrow as pa
import pytest

from yivl_core.data.rows.unpacking import unpack_gzip, unpack_zstd

Unpack = Callable[[IO[bytes]], Iterator[bytes]]

CHANCE = random.Random(7)
CONTENT = b"".join(b'{"query": "%d", "response": "%x"}\n' % (number, CHANCE.getrandbits(200)) for number in range(6000))
GZIP = gzip.compress(CONTENT, 1)
ZSTD = pa.compress(CONTENT, "zstd", asbytes=True)
SKIPPABLE_FRAME = bytes([0x53, 0x2A, 0x4D, 0x18, 3, 0, 0, 0]) + b"pad"
START = b"\x28\xb5\x2f\xfd\x24\xc8"  # of a frame of 200 bytes with a sum
FIRST_BLOCK = (100 << 3).to_bytes(3, "little") + b"a" * 100
LAST_BLOCK = (100 << 3 | 1).to_bytes(3, "little") + b"b" * 100


class ByteByByte(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1)


def unpacked(unpack: Unpack, data: bytes) -> tuple[bytes, Exception | None]:
    content = b""
    try:
        for piece in unpack(io.BytesIO(data)):
            assert len(piece) <= 1 << 18
            content += piece
    except (EOFError, zlib.error, OSError) as cause:
        return content, cause
    return content, None


def by_zlib(data: bytes) -> bytes:
    """What zlib makes of a gzip file that is given to it a byte at a time."""
    content, inflater = bytearray(), zlib.decompressobj(31)
    try:
        for index in range(len(data)):
            inflater = zlib.decompressobj(31) if inflater.eof else inflater
            content += inflater.decompress(data[index : index + 1])
    except zlib.error:
        pass
    return bytes(content)


def by_pyarrow(data: bytes) -> bytes:
    content = bytearray()
    try:
        stream = pa.CompressedInputStream(ByteByByte(data), "zstd")
        while byte := stream.read(1):
            content += byte
    except OSError:
        pass
    return bytes(content)


def with_a_flipped_bit(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


@pytest.mark.parametrize("length", [-4, -20, len(GZIP) // 2, 100_000, 1000, 30])
@pytest.mark.parametrize("start", [b"", gzip.compress(b"first\n" * 30_000) + bytes(9)])
def test_of_gzip_that_is_cut_off_all_is_unpacked_that_zlib_unpacks(start: bytes, length: int) -> None:
    data = start + GZIP[:length]
    content, damage = unpacked(unpack_gzip, data)
    assert content == (by_zlib(gzip.compress(b"first\n" * 30_000)) if start else b"") + by_zlib(GZIP[:length])
    assert isinstance(damage, EOFError)
    assert length != -4 or content.endswith(CONTENT)


def test_of_gzip_with_a_flipped_bit_all_is_unpacked_that_zlib_unpacks() -> None:
    num_whole = 0
    for place in [*range(20, len(GZIP), len(GZIP) // 6), len(GZIP) - 6, len(GZIP) - 2]:
        damaged = with_a_flipped_bit(GZIP, place)
        content, damage = unpacked(unpack_gzip, damaged)
        assert content == by_zlib(damaged), place
        assert isinstance(damage, zlib.error | EOFError), place
        num_whole += content == CONTENT
    assert num_whole >= 2  # where the sum or the length is damaged


def test_what_follows_gzip_and_is_none_takes_nothing_from_it() -> None:
    content, damage = unpacked(unpack_gzip, GZIP + b"more")
    assert (content, str(damage)) == (CONTENT, "Error -3 while decompressing data: incorrect header check")
    assert unpacked(unpack_gzip, GZIP + bytes(300_000) + GZIP) == (CONTENT * 2, None)


@pytest.mark.parametrize("length", [-4, len(ZSTD) // 2, 100_000, 1000, 30])
@pytest.mark.parametrize("start", [b"", SKIPPABLE_FRAME, pa.compress(b"a\n" * 9, "zstd", asbytes=True)])
def test_of_zstd_that_is_cut_off_all_is_unpacked_that_pyarrow_unpacks(start: bytes, length: int) -> None:
    data = start + ZSTD[:length]
    content, damage = unpacked(unpack_zstd, data)
    assert content == by_pyarrow(data)
    assert damage is not None
    assert length < 100_000 or len(content) > 100_000


def test_of_zstd_with_a_flipped_bit_all_is_unpacked_that_pyarrow_unpacks() -> None:
    num_damaged = 0
    for place in range(4, len(ZSTD), len(ZSTD) // 8):
        damaged = with_a_flipped_bit(ZSTD, place)
        content, damage = unpacked(unpack_zstd, damaged)
        assert content == by_pyarrow(damaged), place
        num_damaged += damage is not None
    assert num_damaged


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (FIRST_BLOCK + LAST_BLOCK + b"none", 200),
        (FIRST_BLOCK + b"\x07\x00\x00", 100),  # a block of no known kind
        (FIRST_BLOCK + LAST_BLOCK[:-1], 199),
        (FIRST_BLOCK + LAST_BLOCK + b"no", 200),
        (FIRST_BLOCK, 100),
    ],
    ids=["another sum", "another kind", "a block cut off", "a sum cut off", "no last block"],
)
def test_of_zstd_nothing_before_the_damage_is_lost(rest: bytes, expected: int) -> None:
    for num_frames in (0, 1, 1000):
        frames = pa.compress(b"x" * 300, "zstd", asbytes=True) * num_frames
        content, damage = unpacked(unpack_zstd, frames + START + rest)
        assert content == b"x" * 300 * num_frames + b"a" * 100 + b"b" * (expected - 100)
        assert damage is not None


def test_of_a_file_that_cannot_be_read_again_less_is_unpacked() -> None:
    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pieces = []
    with pytest.raises(OSError, match="checksum"):
        pieces.extend(unpack_zstd(Stream(START + FIRST_BLOCK + LAST_BLOCK + b"none")))
    assert pieces == []


@pytest.mark.parametrize("unpack", [unpack_gzip, unpack_zstd])
def test_what_unfolds_a_thousandfold_is_never_held_as_a_whole_before_damage(unpack: Unpack) -> None:
    zeros = bytes(8_000_000)
    whole = gzip.compress(zeros) if unpack is unpack_gzip else pa.compress(zeros, "zstd", asbytes=True)
    for bomb in (whole[:-5], whole[: len(whole) * 3 // 4] + b"\xff" * 200, whole + b"more"):
        num_bytes = 0
        tracemalloc.start()
        with pytest.raises((EOFError, zlib.error, OSError)):  # noqa: PT012
            for piece in unpack(io.BytesIO(bomb)):
                num_bytes += len(piece)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert num_bytes > 3_000_000
        assert peak_bytes < 2_000_000
