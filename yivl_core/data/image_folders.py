"""A folder or glob pattern -> the files in it of some kinds, in an order that does not depend on the machine.

Local or on an object store, and however many there are: they are put in order on disk, so memory does not grow with their number.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from yivl_core.data.images import Folder
from yivl_core.errors import ConfigurationError, DatasetError, StorageError
from yivl_core.listing import StoredFile, file_on_disk, list_tree
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import describe_os_error, is_file, is_local
from yivl_core.temporary_tables import temporary_database

_ROWS_PER_INSERT = 10_000
_READABLE_BY_ALL = 0o444


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageListing:
    """The images that a user's folder, pattern or file name stands for.

    Attributes:
        root: folder that their names are relative to.
        files: sorted by the bytes of their names (capitals first, accents last, in every locale). Each can be taken once.
    """

    root: Folder
    files: Iterator[StoredFile]


def find_files(pattern: str, extensions: frozenset[str], on_progress: OnProgress = ignore_progress) -> ImageListing:
    """The files with one of these extensions.

    Dot files and dot folders are left out. Folders are searched through;
    symbolic links to folders are not followed, since what they lead to lies in the folder anyway, or outside, where nothing
    is read. Of images, formats that are not read (SVG, HEIC ...) are listed, so that each is reported and none lost.

    Args:
        pattern: a folder, a single file, or a glob pattern (`**` for any number of folders), local or an fsspec URL.
        extensions: in lower case, with their dots.
        on_progress: hears of each 10,000 files.

    Raises:
        ConfigurationError: there is no such folder or file.
        DatasetError: no file in it has such an extension.
        StorageError: a folder cannot be listed.
    """
    if is_local(pattern) and (path := Path(pattern)).exists() and not path.is_dir():
        return ImageListing(root=path.parent, files=iter((state_of_file(str(path), path.name),)))
    root, parts = _split(pattern)
    is_wanted = _Filter(parts, extensions)
    found: Iterator[StoredFile]
    if isinstance(root, str):
        found = (file for file in list_tree(root) if is_wanted.is_file(file.name))
    elif root.is_dir():
        found = _walk(root, is_wanted)
    else:  # a glob below a folder that is not there
        found = iter(())
    files = _sorted(found, on_progress)
    first = next(files, None)
    if first is None:
        raise DatasetError(
            f"{pattern}: no file there has the extension of {_kind(extensions)}; looked for {', '.join(sorted(extensions))}"
        )
    return ImageListing(root=root, files=chain((first,), files))


def find_root(pattern: str) -> Folder:
    """The folder that the names of `find_files` are relative to; nothing is listed.

    Raises:
        ConfigurationError: there is no such folder or file.
    """
    return _split(pattern)[0]


def state_of_file(path: str, name: str) -> StoredFile:
    """What is known of a file of this machine without opening it; where it cannot be used, its state is the reason."""
    try:
        status = os.stat(path)  # noqa: PTH116  (a `Path` for each of a million files is dear)
    except OSError:
        return StoredFile(name, 0, "image_missing", None)
    is_readable = status.st_mode & _READABLE_BY_ALL == _READABLE_BY_ALL or os.access(path, os.R_OK)
    return file_on_disk(name, status) if is_readable else StoredFile(name, status.st_size, "permission_denied", None)


def _split(pattern: str) -> tuple[Folder, tuple[str, ...]]:
    """The folder to search, and what the parts of a name below it have to look like; `**` alone means anything."""
    if not is_local(pattern):
        return _split_remote(pattern)
    path = Path(pattern)
    if path.is_dir():
        return path, ("**", "*")
    if path.exists():
        return path.parent, ()
    if not has_magic(pattern):
        raise ConfigurationError(f"{pattern}: there is no such folder of images; check the path")
    first = next(index for index, part in enumerate(path.parts) if has_magic(part))
    return Path(*path.parts[:first]), path.parts[first:]


def _split_remote(pattern: str) -> tuple[Folder, tuple[str, ...]]:
    protocol, _, rest = pattern.partition("://")
    parts = rest.rstrip("/").split("/")
    first = next((index for index, part in enumerate(parts) if has_magic(part)), None)
    if first is not None:
        return f"{protocol}://{'/'.join(parts[:first])}", tuple(parts[first:])
    if len(parts) > 1 and PurePosixPath(parts[-1]).suffix and is_file(pattern):
        return f"{protocol}://{'/'.join(parts[:-1])}", (_literally(parts[-1]),)
    return pattern.rstrip("/"), ("**", "*")


def _literally(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


class _Filter:
    """Which files and folders are looked at.

    Args:
        parts: patterns of the parts of a name; `**` stands for any number of folders.
        extensions: of wanted files.
    """

    def __init__(self, parts: tuple[str, ...], extensions: frozenset[str]) -> None:
        self._parts, self._extensions = parts, extensions
        self._takes_all = parts == ("**", "*")

    def is_file(self, name: str) -> bool:
        """Whether a file is wanted."""
        return self._has_name(name) and (self._takes_all or _fits(tuple(name.split("/")), self._parts))

    def _has_name(self, name: str) -> bool:
        extension = os.path.splitext(name)[1]  # noqa: PTH122  (a `Path` for each of a million names is dear)
        return extension.lower() in self._extensions and not name.startswith(".") and "/." not in name

    def is_folder(self, name: str) -> bool:
        """Whether wanted files may lie below a folder."""
        return self._takes_all or _leads_on(tuple(name.split("/")), self._parts)


def _fits(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_fits(names[start:], parts[1:]) for start in range(len(names)))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _leads_on(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not names or parts[0] == "**":
        return True
    return len(parts) > 1 and fnmatchcase(names[0], parts[0]) and _leads_on(names[1:], parts[1:])


def _walk(root: Path, is_wanted: _Filter) -> Iterator[StoredFile]:
    """The files below a local folder, without a list of them anywhere."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith(".") and is_wanted.is_folder(name):
                            folders.append(name)
                    elif is_wanted.is_file(name) and not (entry.is_symlink() and os.path.isdir(entry.path)):  # noqa: PTH112
                        yield state_of_file(entry.path, name)
        except OSError as cause:
            raise StorageError(describe_os_error(cause, root / folder)) from cause


def _kind(extensions: frozenset[str]) -> str:
    return "a parquet file" if ".parquet" in extensions else "an image"


def _sorted(files: Iterable[StoredFile], on_progress: OnProgress) -> Iterator[StoredFile]:
    """Files in the order of their names, by SQLite's sorter, which goes to disk."""
    num_files = 0
    with temporary_database() as database:
        database.execute("CREATE TABLE files (name BLOB, num_bytes INTEGER, state TEXT, content_key TEXT)")
        source = iter(files)
        while batch := [
            (os.fsencode(file.name), file.num_bytes, file.state, file.content_key) for file in islice(source, _ROWS_PER_INSERT)
        ]:
            database.execute("BEGIN")
            database.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", batch)
            database.execute("COMMIT")
            num_files += len(batch)
            if len(batch) == _ROWS_PER_INSERT:
                on_progress(Progress(stage="list", done=num_files, total=None, unit="file"))
        for name, num_bytes, state, content_key in database.execute("SELECT * FROM files ORDER BY name"):
            yield StoredFile(os.fsdecode(name), num_bytes, state, content_key)
