"""Publishing: complete or not at all, whatever happens in between."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from yivl_core.errors import ConfigurationError, FileTooLargeError, StorageError
from yivl_core.model.tensors import save_tensors
from yivl_core.storage import (
    exists,
    is_local,
    is_missing,
    is_temporary,
    join,
    list_files,
    local_path,
    open_binary,
    publish_bytes,
    publish_file,
    publish_folder,
    publish_from_file,
    publish_new,
    read_bytes,
    read_limited,
    remove_unfinished,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Trouble(Exception):
    """Something that storage knows nothing of."""


# Files


def test_a_published_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    with publish_file(tmp_path / "deep" / "er" / "a.txt") as temporary:
        temporary.write_text("new")
        assert names(tmp_path / "deep" / "er") == [temporary.name]
        assert is_temporary(temporary.name)
    assert names(tmp_path / "deep" / "er") == ["a.txt"]
    assert (tmp_path / "deep" / "er" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [Trouble, KeyboardInterrupt, SystemExit])
def test_a_file_that_fails_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with publish_file(path) as temporary:
            temporary.write_text("half of the ne")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"


def test_a_file_that_is_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no such file or folder"), publish_file(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    publish_bytes(str(path), b"old")
    with path.open("rb") as reader:
        publish_bytes(str(path), b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


# Folders


def test_a_published_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in ("one", "two"):
        with publish_folder(path) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / f"{content}.txt").write_text(content)
            assert temporary.parent == path.parent, "a rename needs the same disk"
    assert names(tmp_path) == ["a"]
    assert [str(file.relative_to(path)) for file in path.rglob("*.txt")] == ["sub/two.txt"]


@pytest.mark.parametrize("error", [Trouble, KeyboardInterrupt])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_fails_leaves_what_was_there(is_there: bool, error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a"
    if is_there:
        path.mkdir()
        (path / "old.txt").write_text("old")

    def fail() -> None:
        with publish_folder(path) as temporary:
            (temporary / "new.txt").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["a"] if is_there else [])
    assert not is_there or names(path) == ["old.txt"]


def test_a_file_in_the_place_of_a_folder_is_refused_before_the_work_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("...")
    message = r"thesis: a file of this name is there already, where a folder belongs; choose another path"
    with pytest.raises(StorageError, match=message), publish_folder(tmp_path / "thesis"):
        pytest.fail("work")
    assert names(tmp_path) == ["thesis"]
    assert (tmp_path / "thesis").read_text() == "..."


def test_a_mounted_folder_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "mounted")
    (tmp_path / "mounted").mkdir()
    message = r"mounted: a mounted folder cannot be replaced as a whole; name a folder below it"
    with pytest.raises(StorageError, match=message), publish_folder(tmp_path / "mounted"):
        pytest.fail("work")
    with publish_folder(tmp_path / "mounted" / "below") as temporary:
        (temporary / "a").touch()
    assert names(tmp_path / "mounted") == ["below"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "large disk" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "large disk" / "folder")
    with publish_folder(tmp_path / "link") as temporary:
        assert temporary.parent == tmp_path / "large disk"
        (temporary / "new.txt").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "link") == ["new.txt"]
    assert names(tmp_path) == ["large disk", "link"]


def test_the_current_folder_can_be_published_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with publish_folder(Path()) as temporary:
        (temporary / "new.txt").write_text("new")
    assert names(tmp_path / "here") == ["new.txt"]


# What goes wrong


def write_file(folder: Path) -> None:
    with publish_file(folder / "a.bin") as temporary:
        temporary.write_bytes(bytes(3_000_000))


def write_bytes(folder: Path) -> None:
    publish_bytes(str(folder / "a.bin"), bytes(3_000_000))


def write_folder(folder: Path) -> None:
    with publish_folder(folder / "a") as temporary:
        (temporary / "a.bin").write_bytes(bytes(3_000_000))


def write_tensors(folder: Path) -> None:
    import torch

    with publish_folder(folder / "a") as temporary:
        save_tensors(temporary / "a.safetensors", {"a": torch.zeros(1_000_000)})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root; run the tests as root to have this one too")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("write", [write_file, write_bytes, write_folder, write_tensors])
def test_a_full_disk_is_named_with_a_remedy_and_loses_nothing(write: Callable[[Path], None], small_disk: Path) -> None:
    (small_disk / "old").write_text("old")
    with pytest.raises(StorageError, match=rf"{small_disk}/\S+: the disk is full; free some space and run it again"):
        write(small_disk)
    assert names(small_disk) == ["old"]
    assert (small_disk / "old").read_text() == "old"


@pytest.mark.parametrize("write", [write_file, write_bytes, write_folder])
def test_a_file_in_the_place_of_a_folder_is_named(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("...")
    with pytest.raises(
        StorageError, match=r"file\S*: a (part of this path is a file, not a folder; check|file of this name is there)"
    ):
        write(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_a_copy_onto_a_full_disk_names_the_target(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "source.bin").write_bytes(bytes(3_000_000))
    with (
        pytest.raises(StorageError, match=rf"{small_disk}/\S*copy.bin: the disk is full"),
        publish_folder(small_disk / "a") as temporary,
    ):
        shutil.copyfile(tmp_path / "source.bin", temporary / "copy.bin")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space and run it again"),
        (errno.EDQUOT, "the disk quota is used up; free some space and run it again"),
        (errno.EACCES, "permission denied; check who owns the folder"),
        (errno.EROFS, "the disk is read-only; choose another folder"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("publish", [publish_file, publish_folder])
def test_an_error_of_the_system_says_where_and_what_to_do(
    number: int, message: str, publish: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    with pytest.raises(StorageError) as error, publish(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert str(error.value) == f"{tmp_path / 'a'}: {message}"
    assert isinstance(error.value.__cause__, OSError)
    assert names(tmp_path) == []


# Reading, and addresses of all kinds


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_what_was_published_can_be_read_and_listed(root: str) -> None:
    url = join(root, "sub", "a.bin")
    assert not exists(url)
    assert list_files(join(root, "sub")) == []
    publish_bytes(url, b"one")
    publish_bytes(url, b"two")
    publish_bytes(join(root, "sub", "B.bin"), b"")
    publish_bytes(join(root, "sub", "deeper", "c.bin"), b"")
    publish_bytes(join(root, "sub", ".d.bin.tmp-0123456789ab"), b"half")
    assert exists(url)
    assert read_bytes(url) == b"two"
    with open_binary(url) as file:
        assert file.seek(1) == 1
        assert file.read() == b"wo"
    assert list_files(join(root, "sub")) == ["B.bin", "a.bin"]


def test_a_file_that_is_not_there_is_named(root: str) -> None:
    with pytest.raises(StorageError, match=r"gone.bin: there is no such file or folder; check the path"):
        read_bytes(join(root, "gone.bin"))


def test_an_address_that_nothing_here_can_open_is_refused() -> None:
    for use in (exists, list_files, read_bytes, lambda url: publish_bytes(url, b"")):
        with pytest.raises(
            ConfigurationError, match=r"nope://bucket/key: addresses of this kind cannot be used \(.+\); give a path of this"
        ):
            use("nope://bucket/key")


def test_a_package_that_is_not_installed_is_named_with_the_command(repository: Path) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from yivl_core.storage import exists; exists('s3://bucket/key')"
    process = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert process.stderr.splitlines()[-1] == (
        "yivl_core.errors.ConfigurationError: s3://bucket/key: addresses of this kind cannot be used "
        "(Install s3fs to access S3); pip install 'yivl[s3]'"
    )


# Limits


def test_a_file_is_read_up_to_the_limit_and_a_larger_one_is_an_error(root: str) -> None:
    url = join(root, "a.bin")
    for content in (b"", b"1234"):
        publish_bytes(url, content)
        assert read_limited(url, 4) == content
    publish_bytes(url, b"12345")
    with pytest.raises(FileTooLargeError, match=r"a.bin: the file is larger than 4 bytes"):
        read_limited(url, 4)
    with pytest.raises(StorageError, match=r"gone: there is no such file or folder; check the path") as error:
        read_limited(join(root, "gone"), 4)
    assert is_missing(error.value)


# The first one wins


def test_a_new_file_is_created_once(root: str) -> None:
    url = join(root, "deep", "plan.json")
    assert publish_new(url, b"first")
    assert not publish_new(url, b"second")
    assert read_bytes(url) == b"first"
    assert list_files(join(root, "deep")) == ["plan.json"]


def test_a_new_file_that_fails_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(StorageError, match=r"the disk is full"):
        publish_new(str(small_disk / "a"), bytes(3_000_000))
    assert names(small_disk) == []


RACE = """
import sys, time
from pathlib import Path
from yivl_core.storage import publish_new
folder, name = Path(sys.argv[1]), sys.argv[2].encode()
print("ready", flush=True)
start, num_wins = float(sys.stdin.readline()), 0
for number in range(50):
    while time.time() < start + 0.02 * number:  # both at the same moment
        pass
    num_wins += publish_new(str(folder / str(number)), name * 100_000)
print(num_wins)
"""


def test_of_processes_that_create_the_same_files_one_wins_each(tmp_path: Path, repository: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path / "race"), name],
            cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in "ab"
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start = time.time() + 0.2
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    wins = [int(process.communicate()[0]) for process in processes]
    assert sum(wins) == 50
    contents = [path.read_bytes() for path in (tmp_path / "race").iterdir()]
    assert [contents.count(name * 100_000) for name in (b"a", b"b")] == wins


def test_a_file_that_appears_at_the_last_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    monkeypatch.setattr(os, "fsync", lambda descriptor: path.write_bytes(b"of another process"))
    assert not publish_new(str(path), b"own")
    assert path.read_bytes() == b"of another process"
    assert names(tmp_path) == ["plan.json"]


# From a local file


def test_what_was_written_to_a_file_is_published(root: str) -> None:
    url = join(root, "deep", "a.parquet")
    for content in (b"one", b"two"):
        with publish_from_file(url) as path:
            path.write_bytes(content)
            assert list_files(join(root, "deep")) == ([] if content == b"one" else ["a.parquet"])
        assert read_bytes(url) == content
        assert not path.exists()


@pytest.mark.parametrize("error", [Trouble, KeyboardInterrupt])
def test_a_file_that_was_not_finished_is_not_published(root: str, error: type[BaseException]) -> None:
    paths = []

    def fail() -> None:
        with publish_from_file(join(root, "a.parquet")) as path:
            paths.append(path)
            path.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert not exists(join(root, "a.parquet"))
    assert not paths[0].exists()


# Addresses


def test_only_a_local_address_is_a_path() -> None:
    assert is_local("/a/b")
    assert is_local("a/b")
    assert not is_local("memory://a")
    assert local_path("a/b", "the adapter") == Path("a/b")
    with pytest.raises(ConfigurationError, match=r"memory://a: the adapter has to be a folder on this machine"):
        local_path("memory://a", "the adapter")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("a", "b", "c"), "a/b/c"),
        (("a/", "b"), "a/b"),
        (("/", "b"), "/b"),
        (("s3://bucket", "b"), "s3://bucket/b"),
        (("memory://", "b"), "memory://b"),
    ],
)
def test_addresses_are_joined_by_one_slash(parts: tuple[str, ...], expected: str) -> None:
    assert join(*parts) == expected


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = [".model.tmp-0123456789ab", ".model.tmp-ba9876543210"]
    kept = ["model", ".modelling.tmp-0123456789ab", ".model", "model.tmp-0123456789ab"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("...")
    (tmp_path / ".model.tmp-file").write_text("...")
    remove_unfinished(tmp_path, "model")
    assert names(tmp_path) == sorted(kept)
    remove_unfinished(tmp_path)
    assert names(tmp_path) == sorted(set(kept) - {".modelling.tmp-0123456789ab"})
    remove_unfinished(tmp_path / "not there")
