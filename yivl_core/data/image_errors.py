"""What it means for an image that a disk or an object store gives no file, or another one: the image's own fault, or not."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from yivl_core.data.decoding import ImageError
from yivl_core.data.findings import shown
from yivl_core.data.references import ImageReference
from yivl_core.errors import StorageError
from yivl_core.object_stores import answer_code
from yivl_core.storage import describe_os_error, is_missing

MISSING_REMEDY = "correct the address, or name the folder that addresses are relative to as image root"


@contextmanager
def disk_errors(image: ImageReference, path: str) -> Iterator[None]:
    """A file that this user may not read is a property of the image; all else is the disk's trouble."""
    try:
        yield
    except PermissionError as cause:
        raise denied(image, path) from cause
    except OSError as cause:
        raise StorageError(describe_os_error(cause, path)) from cause


@contextmanager
def missing_told(image: ImageReference) -> Iterator[None]:
    """A file that an object store does not have is a property of the image; all else is the store's trouble."""
    try:
        yield
    except StorageError as cause:
        kind = "image_missing" if is_missing(cause) else _kind_of(cause.__cause__)
        if kind is None:
            raise
        raise ImageError(kind, f"image {shown(image.uri)} is not to be had ({cause})", MISSING_REMEDY) from cause


def _kind_of(cause: BaseException | None) -> str | None:
    """What is wrong with one object, where it is not the store."""
    if isinstance(cause, OSError) and cause.errno == errno.EISDIR:
        return "not_a_file"
    return None if cause is None else _KINDS_BY_ANSWER.get(answer_code(cause) or "")


_KINDS_BY_ANSWER = {"KeyTooLongError": "image_missing", "InvalidObjectState": "permission_denied"}


def denied(image: ImageReference, path: str) -> ImageError:
    """This user may not read the file."""
    message = f"image {shown(image.uri)} may not be read ({path})"
    return ImageError("permission_denied", message, "give this user the right to read it")


def empty(image: ImageReference) -> ImageError:
    """There is nothing in the file."""
    return ImageError("empty", f"image {shown(image.uri)} has no content", "replace the file")


def refuse_change(image: ImageReference, num_bytes: int, state: str | None) -> None:
    """Nothing, if the file is the one that was listed; of an object store, whose files come without a state, by its size.

    Raises:
        ImageError: it is not.
    """
    listed = image.listed
    if listed is not None and (listed.num_bytes != num_bytes or state not in (None, listed.state)):
        message = f"image {shown(image.uri)} is not the file that was listed: its size or its time of change is another"
        raise ImageError("image_changed", message, "bring the file back, or have it answered with another output folder")


def too_large(image: ImageReference, max_bytes: int) -> ImageError:
    """The file has more bytes than are read."""
    message = f"image {shown(image.uri)} is larger than {max_bytes:,} bytes"
    return ImageError("too_many_bytes", message, "give a smaller file")


def refuse_vanished_root(image: ImageReference, cause: OSError) -> None:
    """A folder that is gone, with a disk that was taken away perhaps, is not a million missing images.

    Raises:
        StorageError: nothing is left of the folder in which the image was found before.
    """
    if image.listed is None or cause.errno != errno.ENOENT:
        return
    try:
        with os.scandir(image.root) as entries:
            is_there = next(entries, None) is not None
    except OSError:
        is_there = False
    if not is_there:
        message = (
            f"{image.root}: the folder of images is gone, or empty, and was not when it was listed; bring it back and resume"
        )
        raise StorageError(message) from cause


def file_type(mode: int) -> str:
    """What there is in place of a file, by `st_mode`."""
    return {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(mode), "device")
