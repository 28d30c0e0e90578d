"""The one module that calls fsspec: read, list, and publish in one step.

A `*_url` is an fsspec address (`s3://bucket/key`, `memory://x`) or a plain local path; a `*_path` is a local `Path`.
What is published appears complete or not at all: a temporary name and one rename on a local disk, one put on an object store.
A process killed in between leaves a file named `.NAME.tmp-*` that nothing reads; the next process that locks the place
removes it (`locks.py`).
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs

from yivl_core.errors import ConfigurationError, StorageError


def is_local(url: str) -> bool:
    """Whether an address is a path on this machine."""
    return "://" not in url


def local_path(url: str, purpose: str) -> Path:
    """The address as a local path.

    Raises:
        ConfigurationError: it is remote, and `purpose` (said in the message) needs a local folder.
    """
    if not is_local(url):
        raise ConfigurationError(f"{url}: {purpose} has to be a folder on this machine")
    return Path(url)


def join(url: str, *parts: str) -> str:
    """The address of something below `url`."""
    return (url if url.endswith("/") else url + "/") + "/".join(parts)


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    with storage_errors(url):
        filesystem, path = _filesystem(url)
        return bool(filesystem.exists(path))


def list_files(url: str) -> list[str]:
    """The names of the files directly in a folder, sorted; empty where there is no such folder. Temporary files are left out."""
    with storage_errors(url):
        filesystem, path = _filesystem(url)
        if not filesystem.isdir(path):
            return []
        names = (
            entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=True) if entry["type"] == "file"
        )
        return sorted(name for name in names if not is_temporary(name))


def read_bytes(url: str) -> bytes:
    """A whole file."""
    with open_binary(url) as file:
        return bytes(file.read())


@contextmanager
def open_binary(url: str) -> Iterator[IO[bytes]]:
    """A file opened for reading.

    Raises:
        StorageError: there is no such file, or it cannot be read.
    """
    with storage_errors(url):
        filesystem, path = _filesystem(url)
        with filesystem.open(path, "rb") as file:
            yield file


def publish_bytes(url: str, data: bytes) -> None:
    """Write a file in one step, replacing what was there."""
    with storage_errors(url):
        filesystem, path = _filesystem(url)
        if is_local(url):
            with publish_file(Path(path)) as temporary_path:
                temporary_path.write_bytes(data)
            return
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        filesystem.pipe_file(path, data)


@contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on success it is flushed to disk and renamed to `path`, on failure it is removed."""
    temporary_path = _temporary_sibling(path)
    try:
        with storage_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary_path
            _flush_to_disk(temporary_path)
            temporary_path.replace(path)
    finally:
        with suppress(OSError):
            temporary_path.unlink()


@contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on success it is renamed to `path`, replacing what was there, on failure it is removed."""
    path = path.resolve()  # a link, to a larger disk perhaps, stays: what it leads to is replaced
    temporary_path = _temporary_sibling(path)
    try:
        with storage_errors(str(path)):
            _refuse_irreplaceable(path)
            temporary_path.mkdir(parents=True)
            yield temporary_path
            for file_path in temporary_path.rglob("*"):
                if file_path.is_file():
                    _flush_to_disk(file_path)
            _replace_folder(temporary_path, path)
    finally:
        shutil.rmtree(temporary_path, ignore_errors=True)


def remove_unfinished(folder: Path, pattern: str = "*") -> None:
    """Remove what killed processes left half-written in a folder; only for who alone works on it.

    Args:
        folder: where.
        pattern: glob pattern of what was to be written.
    """
    for unfinished in folder.glob(f".{pattern}.tmp-*"):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def _filesystem(url: str) -> tuple[Any, str]:
    """What fsspec reads and writes an address with, and the address as that takes it.

    Raises:
        ConfigurationError: there is no such kind of address, or the package for it is not installed.
    """
    try:
        filesystem, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"{url}: addresses of this kind cannot be used ({error}); give a path of this machine"
        ) from error
    return filesystem, path


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is a half-written one."""
    return name.startswith(".") and ".tmp-" in name


def _refuse_irreplaceable(path: Path) -> None:
    """Raises an error, before the work and not after it, where a folder could not be renamed to this path."""
    number = errno.EEXIST if path.is_file() else errno.EBUSY if path.is_mount() else None
    if number is not None:
        raise OSError(number, os.strerror(number), str(path))


def _replace_folder(temporary_path: Path, path: Path) -> None:
    """Rename over a folder. A rename cannot replace a filled folder, so the old one steps aside first."""
    if path.exists():
        old_path = _temporary_sibling(path)
        path.rename(old_path)
        temporary_path.rename(path)
        shutil.rmtree(old_path)
    else:
        temporary_path.rename(path)


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "the disk is full; free some space and run it again",
    errno.EDQUOT: "the disk quota is used up; free some space and run it again",
    errno.EACCES: "permission denied; check who owns the folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.EEXIST: "a file of this name is there already, where a folder belongs; choose another path",
    errno.EBUSY: "a mounted folder cannot be replaced as a whole; name a folder below it",
    errno.ENOTDIR: "a part of this path is a file, not a folder; check the path",
}


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turns errors of the operating system into a `StorageError` that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        raise StorageError(describe_os_error(error, url)) from error


def describe_os_error(error: OSError, place: Any) -> str:
    """What an operating system error means for the user, with the place (of a copy: its target) and the remedy."""
    return f"{error.filename2 or error.filename or place}: {_REMEDIES.get(error.errno) or error.strerror or error}"
