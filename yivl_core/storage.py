"""Files by their addresses: read, list, and publish in one step.

Only this module, `listing.py` and `filesystems.py` deal with fsspec.

A `*_url` is an fsspec address (`s3://bucket/key`, `memory://x`) or a plain local path; a `*_path` is a local `Path`.
What is published appears complete or not at all: a temporary name and one rename on a local disk, one put on an object store.
A process killed in between leaves a file named `.NAME.tmp-*` that nothing reads; the next process that locks the place
removes it (`locks.py`).
"""

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from yivl_core.errors import ConfigurationError, FileTooLargeError, StorageError
from yivl_core.filesystems import filesystem_of, is_s3, within_patience
from yivl_core.object_stores import answer_code, explain, without_secrets
from yivl_core.url_variables import is_web, without_values

_NUM_CREATE_TRIES = 6  # while another process creates the same file


def is_local(url: str) -> bool:
    """Whether an address is a path on this machine."""
    return "://" not in url


def local_path(url: str, purpose: str) -> Path:
    """The address as a local path.

    Raises:
        ConfigurationError: it is remote, and `purpose` (said in the message) needs a local folder.
    """
    if not is_local(url):
        raise ConfigurationError(f"{without_secrets(url)}: {purpose} has to be a folder on this machine")
    return Path(url)


def join(url: str, *parts: str) -> str:
    """The address of something below `url`."""
    return (url if url.endswith("/") else url + "/") + "/".join(parts)


def parent(url: str) -> str:
    """The folder that a file is in."""
    if is_local(url):
        return str(Path(url).parent)
    return url.rpartition("/")[0]


def is_file(url: str) -> bool:
    """Whether a file, not a folder, is there."""
    return _type_of(url) == "file"


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    return _type_of(url) is not None


def _type_of(url: str) -> str | None:
    """`file`, `directory` or another; None where nothing is there. A store that cannot tell is an error."""
    with storage_errors(url):
        filesystem, path = filesystem_of(url)
        try:
            return str(filesystem.info(path, **within_patience(filesystem))["type"])
        except (FileNotFoundError, NotADirectoryError) as error:
            if explain(error) is not None:  # the bucket is not there
                raise
            cause = error.__cause__  # a web server that does not answer is told as a file that is not there
            if isinstance(cause, Exception) and explain(cause) is not None:
                raise cause from None
            return None


def list_files(url: str) -> list[str]:
    """The names of the files directly in a folder, sorted; empty where there is no such folder. Temporary files are left out."""
    with storage_errors(url):
        filesystem, path = filesystem_of(url)
        if not filesystem.isdir(path):
            return []
        names = (entry["name"].rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=True) if entry["type"] == "file")
        return sorted(name for name in names if name and not is_temporary(name))  # no name: the mark of a folder


def read_bytes(url: str) -> bytes:
    """A whole file."""
    with open_binary(url) as file:
        return bytes(file.read())


def read_limited(url: str, max_bytes: int) -> bytes:
    """A whole file that is not larger than allowed, with one request where it lies on an object store.

    Raises:
        FileTooLargeError: it is larger; no more than `max_bytes` and one were read to know that.
        StorageError: there is no such file, or it cannot be read.
    """
    with storage_errors(url):
        data = _read_start(url, max_bytes + 1)
    if len(data) > max_bytes:
        raise FileTooLargeError(f"{without_secrets(url)}: the file is larger than {max_bytes} bytes")
    return data


def _read_start(url: str, num_bytes: int) -> bytes:
    filesystem, path = filesystem_of(url)
    try:
        return bytes(filesystem.cat_file(path, start=0, end=num_bytes, **within_patience(filesystem, num_bytes)))
    except OSError as error:
        if answer_code(error) not in ("InvalidRange", "416"):
            raise
        return b""  # an empty file has no first byte to begin with


@contextmanager
def open_binary(url: str) -> Iterator[IO[bytes]]:
    """A file opened for reading.

    Raises:
        StorageError: there is no such file, or it cannot be read.
    """
    with storage_errors(url):
        filesystem, path = filesystem_of(url)
        with filesystem.open(path, "rb") as file:
            yield file


def publish_bytes(url: str, data: bytes) -> None:
    """Write a file in one step, replacing what was there."""
    if is_local(url):
        with publish_file(Path(url)) as temporary_path:
            temporary_path.write_bytes(data)
        return
    with storage_errors(url):
        filesystem, path = filesystem_of(url)
        _make_parent(filesystem, path)
        filesystem.pipe_file(path, data, **within_patience(filesystem, len(data)))


def publish_new(url: str, data: bytes) -> bool:
    """Write a file in one step unless there is one; of processes that do so at the same time one alone succeeds.

    Object stores have to know conditional writes (`If-None-Match`); Amazon's and MinIO's do. When the answer to a successful
    write is lost on the way and the write is tried again, the own file counts as one that was there.

    Returns:
        Whether the file was created; False where one of this name was there, which stays as it is.
    """
    with storage_errors(url):
        return _link_new(Path(url), data) if is_local(url) else _put_new(url, data)


def _link_new(path: Path, data: bytes) -> bool:
    temporary_path = _temporary_sibling(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary_path.write_bytes(data)
        _flush_to_disk(temporary_path)
        try:
            path.hardlink_to(temporary_path)  # a rename would replace what is there
        except FileExistsError:
            return False
        return True
    finally:
        with suppress(OSError):
            temporary_path.unlink()


def _put_new(url: str, data: bytes) -> bool:
    filesystem, path = filesystem_of(url)
    _make_parent(filesystem, path)
    for number in range(1, _NUM_CREATE_TRIES + 1):
        try:
            filesystem.pipe_file(path, data, mode="create", **within_patience(filesystem, len(data)))
        except OSError as error:
            code = answer_code(error)
            if isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412"):
                return False
            if code != "ConditionalRequestConflict" or number == _NUM_CREATE_TRIES:
                raise
            time.sleep(0.1 * 2**number)  # the other process may fail yet
        else:
            return True
    raise AssertionError("the last try returns or raises")


@contextmanager
def publish_from_file(url: str) -> Iterator[Path]:
    """A temporary local path to write to; on success published in one step, replacing what was there; removed in any case.

    On this machine it is a sibling of the file, as of `publish_file`; for other addresses it lies in the system's folder for
    temporary files (TMPDIR), which needs room for it.
    """
    if is_local(url):
        with publish_file(Path(url)) as temporary_path:
            yield temporary_path
        return
    with storage_errors(url), tempfile.TemporaryDirectory(prefix="yivl-") as folder:
        filesystem, path = filesystem_of(url)
        temporary_path = Path(folder) / "file"
        yield temporary_path
        _make_parent(filesystem, path)
        num_bytes = temporary_path.stat().st_size
        filesystem.put_file(str(temporary_path), path, **within_patience(filesystem, num_bytes))


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


def _make_parent(filesystem: Any, path: str) -> None:
    if not is_s3(filesystem):  # it has no folders, and s3fs would create a bucket that is not there
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)


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
    errno.EISDIR: "this is a folder, where a file belongs; check the path",
    errno.EEXIST: "a file of this name is there already, where a folder belongs; choose another path",
    errno.EBUSY: "a mounted folder cannot be replaced as a whole; name a folder below it",
    errno.ENOTDIR: "a part of this path is a file, not a folder; check the path",
}


# Of errors that s3fs and other filesystems raise without a number.
_NUMBERS = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turns errors of disks and object stores into errors that name the place and the remedy, without secrets.

    The cause of a `StorageError` is an `OSError` with the number ENOENT where a file or folder is not there (`is_missing`), and
    else not: then the disk or the store fails.
    """
    try:
        yield
    except Exception as error:
        explained = explain(error)
        if explained is not None:
            kind, message = explained
            raise kind(f"{without_secrets(url)}: {without_values(message, url)}") from _loggable(error, url)
        if not isinstance(error, OSError):
            raise
        if error.errno is None:
            error.errno = _NUMBERS.get(type(error))
        message = describe_os_error(error, without_secrets(url))
        raise StorageError(without_secrets(without_values(message, url)) if is_web(url) else message) from _loggable(error, url)


def _loggable(error: Exception, url: str) -> Exception:
    """An error as it may stand in a log. That of a web client tells the address that was asked, secrets included."""
    if not is_web(url):
        return error
    number = error.errno if isinstance(error, OSError) else None
    return OSError(number, f"{type(error).__name__} {answer_code(error) or ''}".rstrip())


def is_missing(error: StorageError) -> bool:
    """Whether the reason is that a file or folder is not there."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOENT


def describe_os_error(error: OSError, place: Any) -> str:
    """What an operating system error means for the user, with the place (of a copy: its target) and the remedy."""
    return f"{error.filename2 or error.filename or place}: {_REMEDIES.get(error.errno) or error.strerror or error}"
