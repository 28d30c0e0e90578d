"""A folder of any size and anywhere -> its files, one by one."""

import errno
import hashlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from yivl_core.errors import StorageError
from yivl_core.listing import StoredFile, file_on_disk, file_state, list_tree
from yivl_core.storage import join, publish_bytes

# What people name files, and what a listing could take for something else.
NAMES = (
    "a b.png", "a+b.png", "a%20b.png", "a%2Fb.png", "扫描/图 1.png", "é.png", "q?x=1&y.png", "h#1.png", "<&>'\".png", "tab\t.png",
    ".hidden", ".folder/a.png", "deep/er/and/deeper.png", "..a", "A.PNG", "a\\b.png", "cr\r.png",
)  # fmt: skip
NEWLINE = "new\nline.png"


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place with a folder `images`, beside which there is something else."""
    places: dict[str, Callable[[], str]] = {
        "memory": lambda: f"memory://{tmp_path.name}",
        "s3": lambda: str(request.getfixturevalue("bucket")),
    }
    place = places[request.param]()
    publish_bytes(join(place, "images-2", "other.png"), b"other")
    return place


def put_in_store(key: str, content: bytes = b"") -> None:
    """Past the HTTP server, which takes no newlines in addresses, and is slow."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("bucket", key, content)


def test_all_files_come_with_their_names_as_they_are(root: str) -> None:
    folder = join(root, "images")
    for number, name in enumerate(NAMES):
        publish_bytes(join(folder, name), bytes(number))
    files = {file.name: file.num_bytes for file in list_tree(folder)}
    assert files == {name: number for number, name in enumerate(NAMES)}
    assert {file.name for file in list_tree(folder + "/")} == set(NAMES)
    assert "images/a b.png" in {file.name for file in list_tree(root)}


def test_newlines_in_names_come_as_they_are(bucket: str) -> None:
    put_in_store(f"images/{NEWLINE}")
    assert [file.name for file in list_tree(join(bucket, "images"))] == [NEWLINE]


def test_a_file_is_the_same_in_a_listing_and_alone(root: str) -> None:
    folder = join(root, "images")
    for name in ("a.png", "deep/b c+.png"):
        publish_bytes(join(folder, name), name.encode())
    listed = {file.name: file for file in list_tree(folder)}
    for name, file in listed.items():
        alone = file_state(join(folder, name))
        assert alone == StoredFile(name.rsplit("/", 1)[-1], file.num_bytes, file.state, file.content_key)
    assert len(listed) == 2


def test_the_state_changes_with_the_content(root: str) -> None:
    url = join(root, "a.png")
    publish_bytes(url, b"one")
    before = file_state(url)
    assert file_state(url) == before
    publish_bytes(url, b"two")
    assert file_state(url).num_bytes == before.num_bytes
    assert file_state(url).state != before.state


def test_equal_contents_have_equal_keys_where_the_store_knows_them(bucket: str) -> None:
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        publish_bytes(join(bucket, name), content)
    keys = {file.name: file.content_key for file in list_tree(bucket)}
    assert keys == {name: hashlib.md5(content).hexdigest() for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other"))}


def test_a_bucket_with_a_key_for_each_file_tells_nothing_of_contents(bucket: str) -> None:
    filesystem = fsspec.filesystem("s3")
    filesystem.call_s3("create_bucket", Bucket="encrypted")
    for name in ("a", "b"):
        filesystem.call_s3("put_object", Bucket="encrypted", Key=name, Body=b"same", ServerSideEncryption="aws:kms")
    assert [(file.num_bytes, file.content_key) for file in list_tree("s3://encrypted")] == [(4, None)] * 2
    assert file_state("s3://encrypted/a").content_key is None


def test_a_file_sent_in_parts_has_a_state_and_no_key(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    S3FileSystem().pipe_file("bucket/large", bytes(11 << 20), chunksize=5 << 20)
    (file,) = list_tree(bucket)
    assert (file.state[-2:], file.content_key) == ("-3", None)
    assert file_state(join(bucket, "large")) == file


def test_a_folder_that_is_not_there_is_an_error(root: str) -> None:
    message = r"nothing: there is no such file or folder; check the path$"
    with pytest.raises(StorageError, match=message) as error:
        list(list_tree(join(root, "nothing")))
    assert isinstance(error.value.__cause__, OSError)
    assert error.value.__cause__.errno == errno.ENOENT


def test_a_file_is_no_folder(root: str) -> None:
    publish_bytes(join(root, "a.png"), b"")
    with pytest.raises(StorageError, match=r"a\.png: (there is no such file or folder|a part of this path is a file)"):
        list(list_tree(join(root, "a.png")))


def test_a_folder_is_no_file(root: str) -> None:
    with pytest.raises(StorageError, match=r"images-2: this is a folder, where a file belongs; check the path"):
        file_state(join(root, "images-2"))


def test_marks_of_folders_are_no_files(bucket: str) -> None:
    for key in ("images/", "images/deep/", "images/deep/a.png", "empty/"):
        put_in_store(key)
    put_in_store("images/odd/", b"content")
    assert sorted(file.name for file in list_tree(join(bucket, "images"))) == ["deep/a.png", "odd/"]
    assert list(list_tree(join(bucket, "empty"))) == []


def test_an_empty_bucket_is_an_empty_folder(bucket: str) -> None:
    assert list(list_tree(bucket)) == []


def test_a_large_folder_comes_in_pages_of_which_none_is_kept(bucket: str, flaky_s3: Any) -> None:
    names = [f"{number:05}.png" for number in range(2500)]
    for name in names:
        put_in_store(f"images/{name}")
    for _ in range(2):
        assert [file.name for file in list_tree(join(bucket, "images"))] == names
    assert flaky_s3.count("GET", "list-type=2") == 6


def test_a_listing_that_fails_in_the_middle_is_an_error(bucket: str, flaky_s3: Any) -> None:
    for number in range(1001):
        put_in_store(f"images/{number:05}.png")
    files = list_tree(join(bucket, "images"))
    assert next(files).name == "00000.png"
    with (
        flaky_s3.failing("continuation-token", status=403, code="AccessDenied"),
        pytest.raises(StorageError, match=r"^s3://bucket/images: access denied \(403 AccessDenied\)"),
    ):
        list(files)


class EndlessStore:
    """Pages as s3fs gives them, made when they are asked for."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages

    def split_path(self, path: str) -> tuple[str, str, None]:
        return "bucket", "images", None

    def call_s3(self, method: str, **request: Any) -> dict[str, Any]:
        number = int(request.get("ContinuationToken", 0))
        entries = [
            {"Key": f"images/{number:05}/{one:05}.png", "Size": 1, "ETag": f'"{number:016x}{one:016x}"'} for one in range(1000)
        ]
        is_last = number + 1 == self.num_pages
        return {"Contents": entries, "IsTruncated": not is_last, "NextContinuationToken": str(number + 1)}


def peak_of_listing(num_pages: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("yivl_core.listing.filesystem_of", lambda url: (EndlessStore(num_pages), "bucket/images"))
    tracemalloc.start()
    try:
        assert sum(1 for _ in list_tree("s3://bucket/images")) == 1000 * num_pages
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_of_a_listing_does_not_grow_with_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (peak_of_listing(num_pages, monkeypatch) for num_pages in (3, 30))
    assert many < few + 1_000_000, "27,000 more files, kept, would take several times that; other threads' memory is counted too"


def test_the_state_on_a_disk_is_size_and_time_of_change(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    os.utime(tmp_path / "a", ns=(1, 1_700_000_000_123_456_789))
    assert file_on_disk("a", (tmp_path / "a").stat()) == StoredFile("a", 5, "5 1700000000123456789", None)
