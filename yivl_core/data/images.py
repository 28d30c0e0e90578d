"""Image addresses -> pixels: what may be opened, what it has to be, and how it is read.

Addresses of local files only; other kinds of addresses are refused. A path may not leave its root, which is checked on the
resolved path before anything is opened. `ImageStore` is the place where fetching and a cache belong.
"""

import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from yivl_core.data.decoding import DecodedImage, ImageError, decode_image
from yivl_core.data.findings import shown
from yivl_core.errors import StorageError
from yivl_core.storage import describe_os_error

__all__ = ["DecodedImage", "ImageError", "ImageInfo", "ImageReference", "ImageStore", "LoadedImage", "decode_image"]

# Extensions that people give to images, with the format they promise (None: one that is not read).
EXTENSIONS: dict[str, str | None] = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".svg": None,
    ".heic": None,
    ".heif": None,
    ".avif": None,
    ".jp2": None,
    ".jxl": None,
    ".psd": None,
}

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|file:/|data:[^,]*,", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:(?:/|$)")
_MIN_SIDE_PX = 8  # below, nobody could read or describe it
_MAX_BYTES_IN_MEMORY = 1 << 20  # a larger file is read in blocks, and twice
_NUM_ROOTS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """Where an image of a record is, and what it has to be.

    Attributes:
        uri: its address as the user wrote it.
        address: its address as it is looked up: relative to `root`, or absolute and below it.
        root: folder that it may not leave.
        sha256: content (hex) that it must have, as an earlier validation saw it; None: any.
    """

    uri: str
    address: str
    root: Path
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What validation found out about an image.

    Attributes:
        uri: its address as the user wrote it.
        path: where it was found, an absolute path.
        sha256: of its bytes (hex).
        width: in pixels, as it is shown (EXIF orientation applied).
        height: likewise.
        mode: how its pixels are stored (`L`, `RGB`, `RGBA`, `P` ...).
        num_bytes: size of the file.
    """

    uri: str
    path: str
    sha256: str
    width: int
    height: int
    mode: str
    num_bytes: int

    @property
    def values(self) -> tuple[Any, ...]:
        """The attributes in their order, as a row of a table."""
        return self.uri, self.path, self.sha256, self.width, self.height, self.mode, self.num_bytes

    @property
    def reference(self) -> ImageReference:
        """The image where it was found, whatever folder that is: its content has to be what validation saw."""
        return ImageReference(uri=self.uri, address=self.path, root=_folder(os.path.dirname(self.path)), sha256=self.sha256)  # noqa: PTH120

    def reference_under(self, root: Path) -> ImageReference:
        """The same image below another root, for files that were moved."""
        return ImageReference(uri=self.uri, address=self.uri, root=root, sha256=self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """An image in memory.

    Attributes:
        info: what there is to know about it.
        image: its pixels: RGB, 8 bit, orientation applied, transparency over white.
        warnings: what a person may want to know: `animated`, `extension_mismatch`, `tiny` (see `IMAGE_WARNINGS`).
    """

    info: ImageInfo
    image: Image.Image
    warnings: tuple[str, ...]


IMAGE_WARNINGS: dict[str, tuple[str, str]] = {
    "animated": ("it has further frames or pages", "only the first one is used; save it alone to be rid of this warning"),
    "extension_mismatch": ("its content is of another format than its name says", "rename it; the content was used"),
    "tiny": (f"it is less than {_MIN_SIDE_PX} pixels wide or high", "check whether it is the image that is meant"),
}


class ImageStore:
    """Finds and reads images. Safe to share between threads.

    Args:
        max_pixels: most pixels (width x height) of an image; a larger one is refused before it is decoded.
    """

    def __init__(self, max_pixels: int = 64_000_000) -> None:
        self.max_pixels = max_pixels
        self._real_roots: dict[Path, str] = {}

    def resolve(self, image: ImageReference) -> Path:
        """The file of an image, which is there, is a plain file, and lies under the root; nothing is opened.

        Raises:
            ImageError: of kind `image_missing`, `path_escape`, `url_not_allowed`, `control_char`, `bad_unicode`, `not_a_file` or
                `empty`.
        """
        return Path(self._real_path(image))

    def _real_path(self, image: ImageReference) -> str:
        """As `resolve`, for each image of a training: a `Path` is dearer than what is done with it."""
        _refuse_address(image.address)
        real_path = os.path.realpath(os.path.join(image.root, image.address))  # noqa: PTH118
        root = self._real_root(image.root)
        if real_path != root and not real_path.startswith(root.rstrip("/") + "/"):
            raise _escape(image.address, f"leads out of {root}")
        if not _is_text(real_path):
            raise ImageError("bad_unicode", f"the path {real_path!a} is not UTF-8", "rename the file or folder")
        try:
            status = os.stat(real_path)  # noqa: PTH116
        except OSError as cause:  # not there, no folder on the way, symbolic links in a circle, name too long
            is_denied = isinstance(cause, PermissionError)
            reason = describe_os_error(cause, real_path) if is_denied else f"{cause.strerror}: {real_path}"
            kind = "permission_denied" if is_denied else "image_missing"
            raise ImageError(kind, f"image {shown(image.uri)} is not there ({reason})", _MISSING_REMEDY) from cause
        if not stat.S_ISREG(status.st_mode):
            message = f"image {shown(image.uri)} is a {_file_type(status.st_mode)}, not a file"
            raise ImageError("not_a_file", message, "give the address of an image file")
        if status.st_size == 0:
            raise ImageError("empty", f"image {shown(image.uri)} has no content", "replace the file")
        return real_path

    def load(self, image: ImageReference) -> LoadedImage:
        """The pixels of an image, decoded in full.

        Raises:
            ImageError: as `resolve` and `decode_image`; also `permission_denied`, and `image_changed` if it is not the image
                that an earlier validation saw.
            StorageError: the disk or network failed.
        """
        path = self._real_path(image)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                content = _in_memory(file)
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                num_bytes = content.seek(0, io.SEEK_END)
                if image.sha256 not in (None, sha256):
                    message = f"{path} is not the image that was validated: its sha256 is {sha256}, not {image.sha256}"
                    raise ImageError("image_changed", message, "bring the image back, or validate the dataset again")
                decoded = decode_image(content, self.max_pixels)
        except PermissionError as cause:
            message = f"image {shown(image.uri)} may not be read ({path})"
            raise ImageError("permission_denied", message, "give this user the right to read it") from cause
        except OSError as cause:
            raise StorageError(describe_os_error(cause, path)) from cause
        except ImageError as cause:
            raise ImageError(cause.kind, f"image {shown(image.uri)}: {cause.message}", cause.remedy) from cause
        info = ImageInfo(
            uri=image.uri,
            path=path,
            sha256=sha256,
            width=decoded.image.width,
            height=decoded.image.height,
            mode=decoded.mode,
            num_bytes=num_bytes,
        )
        return LoadedImage(info=info, image=decoded.image, warnings=_warnings(Path(image.address), decoded))

    def _real_root(self, root: Path) -> str:
        """Where a root leads. Looked up once: a link that is turned later opens no other place, its images are refused."""
        real_root = self._real_roots.get(root)
        if real_root is None:
            if len(self._real_roots) >= _NUM_ROOTS_REMEMBERED:
                self._real_roots.clear()
            real_root = self._real_roots[root] = os.path.realpath(root)
        return real_root


@lru_cache(maxsize=_NUM_ROOTS_REMEMBERED)
def _folder(path: str) -> Path:
    """One `Path` for all images of a folder: it is made, and written out, once."""
    return Path(path)


def _in_memory(file: io.BufferedReader) -> io.BytesIO | io.BufferedReader:
    """The same file in memory, unless it is large."""
    data = file.read(_MAX_BYTES_IN_MEMORY)
    if len(data) < _MAX_BYTES_IN_MEMORY:
        return io.BytesIO(data)
    file.seek(0)
    return file


_MISSING_REMEDY = "correct the address, or name the folder that addresses are relative to as image root"


def _refuse_address(address: str) -> None:
    """Refuse what no local path can be, or what leads away from the root by its form."""
    if not address:
        raise ImageError("image_missing", "an image address is empty", "give the address, or null for a round without image")
    if "\x00" in address:
        raise ImageError("control_char", f"image address {shown(address)} holds a NUL character", "remove it")
    if not _is_text(address):
        raise ImageError("bad_unicode", f"image address {address!a} is not UTF-8", "rename the file or folder")
    if _URL.match(address):
        message = f"image {shown(address)} is a URL, and none are allowed"
        raise ImageError("url_not_allowed", message, "fetch the image and give the path of the file")
    if "\\" in address:
        raise _escape(address, "holds a backslash", "write / between folders")
    if _DRIVE.match(address):
        raise _escape(address, "starts with a drive letter")
    if address == "~" or (address.startswith("~") and "/" in address):
        raise _escape(address, "starts in a home folder")
    if ".." in address.split("/"):
        raise _escape(address, "holds ..")


def _escape(address: str, reason: str, remedy: str = "give a path below the image root, relative to it") -> ImageError:
    return ImageError("path_escape", f"image {shown(address)} {reason}", remedy)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file_type(mode: int) -> str:
    return {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(mode), "device")


def _warnings(address: Path, decoded: DecodedImage) -> tuple[str, ...]:
    kinds = []
    if decoded.is_animated:
        kinds.append("animated")
    promised = EXTENSIONS.get(address.suffix.lower())
    if promised not in (None, "JPEG" if decoded.format == "MPO" else decoded.format):
        kinds.append("extension_mismatch")
    if min(decoded.image.size) < _MIN_SIDE_PX:
        kinds.append("tiny")
    return tuple(kinds)
