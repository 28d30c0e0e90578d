"""Locks: one process at a time works in a folder, and a lock ends with its process, however that ends."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from yivl_core.errors import BusyError
from yivl_core.storage import remove_unfinished, storage_errors

LOCK_NAME = ".lock"  # of a lock in the folder that is worked on
_LOCK_TIMEOUT_S = 15.0  # a child whose parent was killed may take some seconds to end


@contextmanager
def sole_user(place: Path, lock_path: Path) -> Iterator[None]:
    """Within this block no other process that asks for the same lock works here. It ends with the process, however that ends.

    Args:
        place: what is worked on, for the message.
        lock_path: an empty file, there as long as the block lasts.

    Raises:
        BusyError: another process holds the lock, and did not end within a few seconds.
        StorageError: the lock file cannot be written.
    """
    lock = _lock(place, lock_path)
    try:
        yield
    finally:
        with suppress(OSError):
            lock_path.unlink()
        lock.release()


@contextmanager
def sole_publisher(path: Path) -> Iterator[None]:
    """As `sole_user`, for who publishes a folder as a whole. What killed processes left half-written of it is removed."""
    path = path.resolve()
    with sole_user(path, path.with_name(f".{path.name}.lock")):
        remove_unfinished(path.parent, glob.escape(path.name))
        yield


def move_aside(folder: Path, aside: Path) -> None:
    """Rename a folder in which nobody works.

    Raises:
        BusyError: somebody does, who has locked it by `LOCK_NAME` in it.
        StorageError: it cannot be renamed.
    """
    lock = _lock(folder, folder / LOCK_NAME)
    try:
        with storage_errors(str(folder)):
            folder.rename(aside)
            (aside / LOCK_NAME).unlink()  # at the old place somebody else's may be by now
    finally:
        lock.release()


def _lock(place: Path, lock_path: Path) -> BaseFileLock:
    lock = FileLock(lock_path, timeout=_LOCK_TIMEOUT_S)
    with storage_errors(str(lock_path)):
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock_path.touch()  # where it cannot be, the next line would wait for it
        try:
            lock.acquire()
        except Timeout as error:
            raise BusyError(f"{place}: another process works in this folder; wait for it, or choose another folder") from error
    return lock
