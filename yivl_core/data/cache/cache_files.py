"""Files in a folder that many processes write to: locked while they are written, complete or not there, never through a link.

```
FOLDER/KIND/ab/abcdef...      by the first two characters of their names
FOLDER/unfinished/NAME        being written; locked by its writer, and left over where nobody has it locked
```

Nothing is flushed to disk: who reads has to verify what he reads. The lock of a file is the system's (`flock`), since that ends
with its process, however it ends, and needs no file beside the one that is written.
"""

import errno
import fcntl
import hashlib
import os
import stat
import uuid
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from yivl_core.errors import StorageError
from yivl_core.storage import storage_errors

UNFINISHED = "unfinished"


class SharedFolder:
    """A folder whose files are reached by their kinds and names.

    Args:
        folder: where it is, or will be made when the first file is written; it may be a link itself.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(os.path.realpath(folder))
        self._root = str(self.path)
        self._checked: set[str] = set()  # folders that are there, and no links

    def place(self, kind: str, name: str) -> str:
        """Where a file of this kind and name is, or will be.

        Raises:
            StorageError: a folder on the way is a link.
        """
        return f"{self._folder(kind, name)}/{name}"

    def unfinished_place(self, name: str) -> str:
        """Where a file of this name is while it is written."""
        return f"{self._folder(UNFINISHED)}/{name}"

    def open(self, place: str) -> BufferedReader:
        """A file opened for reading.

        Raises:
            FileNotFoundError: there is none, or a link or a pipe in its place.
        """
        return open(place, "rb", opener=_open_plain)

    def begin(self, name: str) -> "UnfinishedFile | None":
        """A file to write to; None while another thread or process writes one of this name."""
        folder = self._make(UNFINISHED)
        with storage_errors(folder):
            descriptor = lock_file(f"{folder}/{name}", create=True)
        return None if descriptor is None else UnfinishedFile(self, f"{folder}/{name}", descriptor)

    def write(self, data: bytes, kind: str, name: str) -> None:
        """Write a small file in one go; of writers at the same time the last one wins.

        Raises:
            StorageError: the disk is full, or failed.
        """
        path = f"{self._make(UNFINISHED)}/{name}-{uuid.uuid4().hex}"
        with storage_errors(path), open(path, "xb", buffering=0) as file:  # noqa: PTH123
            file.write(data)
        self.move(path, kind, name)

    def move(self, path: str, kind: str, name: str) -> str:
        """Put a file in its place, where it takes the place of another one. Returns where that is."""
        place = f"{self._make(kind, name)}/{name}"
        with storage_errors(place):
            os.rename(path, place)  # noqa: PTH104
        return place

    def _make(self, kind: str, name: str = "") -> str:
        folder = self._folder(kind, name)
        if folder not in self._checked:
            with storage_errors(folder):
                os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        return folder

    def _folder(self, kind: str, name: str = "") -> str:
        folder = f"{self._root}/{kind}"
        self._refuse_link(folder)
        if name:
            folder = f"{folder}/{name[:2]}"
            self._refuse_link(folder)
        return folder

    def _refuse_link(self, folder: str) -> None:
        """Looked at until there is a folder."""
        if folder in self._checked:
            return
        with suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(folder).st_mode):
                remedy = "remove it, or choose another folder"
                raise StorageError(f"{folder}: this is a symbolic link, and a cache has none; {remedy}")
            self._checked.add(folder)


class UnfinishedFile:
    """A file that is being written, locked; what was not moved to its place is removed when it is closed.

    A write waits for the memory that the system keeps of the disk, as a rule: an event loop may do that, and a thread for it
    would cost more than it takes.

    Attributes:
        path: where it is until it is moved.
        num_bytes: what was written so far.
    """

    def __init__(self, folder: SharedFolder, path: str, descriptor: int) -> None:
        self.path = path
        self.num_bytes = 0
        self._folder = folder
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        if os.fstat(descriptor).st_size:  # a killed process has left something in it
            self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self.path:
            with suppress(OSError):
                os.unlink(self.path)  # noqa: PTH108
        os.close(self._descriptor)

    @property
    def sha256(self) -> str:
        """Of what was written so far (hex)."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Drop what was written."""
        with storage_errors(self.path):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        """Add bytes at the end.

        Raises:
            StorageError: the disk is full, or failed.
        """
        self._digest.update(data)
        self.num_bytes += len(data)
        rest = memoryview(data)
        with storage_errors(self.path):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def move(self, kind: str, name: str) -> str:
        """Put the file in its place. Returns where that is."""
        place = self._folder.move(self.path, kind, name)
        self.path = ""
        return place


def lock_file(path: str, *, create: bool = False) -> int | None:
    """The descriptor of a file that nobody else has locked, open for writing; None where somebody has.

    The lock ends when the descriptor is closed. A file that was moved or removed while we came is not ours to lock: its name is
    tried again.

    Raises:
        FileNotFoundError: there is none, and it is not to be created.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
        is_ours = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(descriptor), os.lstat(path))
        except BlockingIOError:
            return None
        except FileNotFoundError:
            continue
        finally:
            if not is_ours:
                os.close(descriptor)
        if is_ours:
            return descriptor


def _open_plain(path: str, flags: int) -> int:
    """The descriptor of a plain file; a link, or what an open file could wait for, is none."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileNotFoundError(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    return descriptor
