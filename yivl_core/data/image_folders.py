"""A folder or glob pattern -> the image files in it, in an order that does not depend on the machine."""

import os
from collections.abc import Iterable, Iterator
from glob import has_magic
from pathlib import Path

from yivl_core.data.images import EXTENSIONS
from yivl_core.errors import ConfigurationError, DatasetError, StorageError
from yivl_core.storage import describe_os_error


def find_images(pattern: str) -> tuple[Path, list[str]]:
    """The files that look like images by their names, sorted by their names (capitals first, accents last, in every locale).

    Dot files and dot folders are left out, and so are files without an image's extension. Folders are searched through;
    symbolic links to folders are not followed, since what they lead to lies in the folder anyway, or outside, where nothing
    is read. Formats that are not read (SVG, HEIC ...) are listed, so that each is reported and none lost.

    Args:
        pattern: a folder, a single file, or a glob pattern (`**` for any number of folders).

    Returns:
        The folder, and the addresses of the files relative to it.

    Raises:
        ConfigurationError: there is no such folder or file.
        DatasetError: no file in it looks like an image.
    """
    path = Path(pattern)
    names: Iterable[str]
    if path.is_dir():
        root, names = path, _walk(path)
    elif path.exists():
        return path.parent, [path.name]
    elif has_magic(pattern):
        root, rest = _split_at_magic(path)
        names = (found.relative_to(root).as_posix() for found in root.glob(rest) if not found.is_dir())
    else:
        raise ConfigurationError(f"{pattern}: there is no such folder of images; check the path")
    names = sorted(name for name in names if _looks_like_image(name))
    if not names:
        raise DatasetError(f"{pattern}: no file there has the extension of an image; looked for {', '.join(sorted(EXTENSIONS))}")
    return root, names


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root, onerror=_refuse_folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative_folder = Path(folder).relative_to(root)
        yield from ((relative_folder / name).as_posix() for name in files)


def _refuse_folder(cause: OSError) -> None:
    raise StorageError(describe_os_error(cause, cause.filename)) from cause


def _looks_like_image(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in path.parts)


def _split_at_magic(pattern: Path) -> tuple[Path, str]:
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    return Path(*parts[:first]), str(Path(*parts[first:]))
