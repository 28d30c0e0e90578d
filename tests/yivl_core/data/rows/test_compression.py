import errno
import gzip
import io
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.findings import UnreadableFileError
from yivl_core.data.rows.compression import data_suffix, is_compressed, open_uncompressed
from yivl_core.errors import DatasetError, StorageError
from yivl_core.storage import open_binary, storage_errors

NAMES = {"a.jsonl.gz": gzip.compress, "a.jsonl.zst": lambda data: pa.compress(data, "zstd", asbytes=True)}


def content(data: bytes, name: str) -> bytes:
    with open_uncompressed(io.BytesIO(data), name) as file:
        return file.read()


@pytest.mark.parametrize("name", NAMES)
@given(parts=st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_files_of_several_members_are_read_to_their_end(name: str, parts: list[bytes]) -> None:
    compressed = b"".join(NAMES[name](part) for part in parts)
    assert content(compressed, name) == b"".join(parts)
    with open_uncompressed(io.BytesIO(compressed), name) as file:
        assert list(file) == list(io.BytesIO(b"".join(parts)))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_off_anywhere_is_told_with_its_name_and_place(name: str) -> None:
    first, second = NAMES[name](b"first\n" * 50_000), NAMES[name](b"second\n" * 50_000)
    whole = first + second
    num_checked = 0
    for end in [*range(4, len(whole), 3), len(whole) - 1]:
        if end == len(first):  # a whole file
            continue
        with pytest.raises(UnreadableFileError) as caught:
            content(whole[:end], name)
        num_checked += 1
        assert str(caught.value).startswith(f"{name}: the compressed file is damaged or cut off behind ")
        assert str(caught.value).endswith("); fetch or write it again")
        num_read = int(caught.value.message.partition("behind ")[2].partition(" ")[0].replace(",", ""))
        assert num_read <= 300_000 if end < len(first) else 300_000 <= num_read <= 650_000
    assert num_checked > 20


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=80), keeps_start=st.booleans())
def test_bytes_of_any_kind_are_content_or_a_dataset_error(name: str, data: bytes, keeps_start: bool) -> None:
    start = NAMES[name](b"abc")[: 12 if keeps_start else 4]
    for hostile in (data, start + data, NAMES[name](b"abc") + data):
        try:
            content(hostile, name)
        except DatasetError as cause:
            assert str(cause).startswith(name)  # noqa: PT017  (either outcome is right)


def test_damage_that_gzips_sum_tells_is_not_passed_over() -> None:
    damaged = bytearray(gzip.compress(b"abc" * 100))
    damaged[-6] ^= 1
    with pytest.raises(DatasetError, match="incorrect data check"):
        content(bytes(damaged), "a.jsonl.gz")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_bytes", [100, 1 << 17, 1 << 20])
def test_what_comes_before_the_damage_is_read_and_then_each_reading_tells_it(name: str, num_bytes: int) -> None:
    whole = b"first\n" * 50_000 + b"last"
    damaged = NAMES[name](whole) + NAMES[name](b"second\n")[:3]
    buffer = bytearray(num_bytes)
    readings: dict[str, Callable[[io.BufferedReader], bytes]] = {
        "read": lambda file: file.read(num_bytes),
        "read1": lambda file: file.read1(num_bytes),
        "readline": lambda file: file.readline(num_bytes),
        "peek": lambda file: file.read(len(file.peek(num_bytes))),
        "readinto": lambda file: buffer[: file.readinto(buffer)],
        "readinto1": lambda file: buffer[: file.readinto1(buffer)],
    }
    for reading in readings.values():
        with open_uncompressed(io.BytesIO(damaged), name) as file:
            parts: list[bytes] = []
            with pytest.raises(UnreadableFileError) as caught:  # noqa: PT012
                while True:
                    parts.append(bytes(reading(file)))
            assert b"".join(parts) == whole
            assert "behind 300,004 bytes of its content (" in caught.value.message
            for again in readings.values():
                with pytest.raises(UnreadableFileError) as caught_again:
                    again(file)
                assert str(caught_again.value) == str(caught.value)


def test_an_unreadable_file_comes_whole_from_another_process() -> None:
    cause = UnreadableFileError("a.gz", "it is damaged", "write it again")
    assert str(pickle.loads(pickle.dumps(cause))) == str(cause) == "a.gz: it is damaged; write it again"


def test_name_and_content_have_to_agree() -> None:
    gz, zst = (compress(b"abc") for compress in NAMES.values())
    with pytest.raises(DatasetError) as caught:
        content(zst, "s3://user:secret@bucket/a.csv.gz")
    assert str(caught.value) == (
        "s3://bucket/a.csv.gz: by its name it is compressed with gzip, by its content it is compressed with zstd; rename it"
    )
    with pytest.raises(DatasetError, match="with zstd, by its content it is not compressed, or in another way; rename it"):
        content(b'{"query": "a"}', "a.jsonl.ZST")
    assert content(gz, "a.jsonl") == gz  # for `split_raw_rows` to tell
    assert content(b"", "a.jsonl.gz") == content(b"", "a.jsonl") == b""


def test_a_skippable_frame_may_come_first() -> None:
    frame = bytes([0x53, 0x2A, 0x4D, 0x18, 3, 0, 0, 0]) + b"pad"
    assert content(frame + NAMES["a.jsonl.zst"](b"abc"), "a.jsonl.zst") == b"abc"


@pytest.mark.parametrize("name", NAMES)
def test_what_unfolds_a_thousandfold_is_never_held_as_a_whole(name: str) -> None:
    bomb = NAMES[name](bytes(50_000_000))
    assert len(bomb) < 100_000
    tracemalloc.start()
    num_bytes = 0
    with open_uncompressed(io.BytesIO(bomb), name) as file:
        while data := file.readline(1 << 16):
            num_bytes += len(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_bytes == 50_000_000
    assert peak_bytes < 2_000_000


class _Broken(io.RawIOBase):
    """A disk that fails behind the first bytes."""

    def __init__(self, head: bytes) -> None:
        self._head = head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            raise OSError(errno.EIO, "the disk fails")
        num_bytes = len(self._head)
        buffer[:num_bytes], self._head = self._head, b""
        return num_bytes


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fails_is_no_damaged_file(name: str) -> None:
    disk: Any = _Broken(NAMES[name](b"abc" * 100)[:12])
    with open_uncompressed(disk, name) as file:
        for _ in range(2):
            with pytest.raises(StorageError), storage_errors(name):
                file.read()


def test_remote_files_are_read_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"abc\n" * 10))
    for url in (str(path), f"file://{path}"):
        with open_binary(url) as opened, open_uncompressed(opened, url) as file:
            assert file.readlines() == [b"abc\n"] * 10


def test_the_ending_of_a_name_tells_what_is_in_it() -> None:
    assert data_suffix("s3://bucket/a.b/X.JSONL.GZ") == data_suffix("x.jsonl.zst") == data_suffix("x.jsonl") == ".jsonl"
    assert data_suffix("x.gz") == data_suffix("folder.jsonl/x") == data_suffix("") == ""
    assert is_compressed("a.csv.gz")
    assert not is_compressed("a.csv")
