"""Where an image is and what it has to be, what validation knows of it, and which addresses are refused. Nothing is opened."""

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from yivl_core.data.data_uris import is_data_uri
from yivl_core.data.decoding import ImageError
from yivl_core.data.findings import shown
from yivl_core.data.public_urls import public_url
from yivl_core.listing import StoredFile
from yivl_core.url_variables import with_user

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

Folder = Path | str  # of this machine, or an fsspec URL

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|file:/", re.IGNORECASE)
_WEB_SCHEMES = ("http://", "https://")
_FETCHED_SCHEMES = (*_WEB_SCHEMES, "s3://")
_FETCH_REMEDY = "fetch the image and give the path of the file"
_DRIVE = re.compile(r"[A-Za-z]:(?:/|$)")
_NUM_FOLDERS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """Where an image of a record is, and what it has to be.

    Attributes:
        uri: its address as the user wrote it.
        address: its address as it is looked up: relative to `root`, or absolute and below it.
        root: folder that it may not leave: a path of this machine, or an fsspec URL.
        sha256: content (hex) that it must have, as an earlier validation saw it; None: any.
        listed: what a listing of the folder has told of it; None: nobody has looked.
        data: its bytes, where the input holds them or they have been fetched.
    """

    uri: str
    address: str
    root: Folder
    sha256: str | None = None
    listed: StoredFile | None = None
    data: bytes | None = field(default=None, repr=False)

    @property
    def url(self) -> str | None:
        """The URL that it has to be fetched from; None for an image of this machine, or one that is here already.

        Raises:
            ImageError: its address leads away from its root.
            ConfigurationError: a variable in its root is not set.
        """
        if self.data is not None:
            return None
        if self.address.lower().startswith(_FETCHED_SCHEMES):
            return self.address
        if not isinstance(self.root, str):
            return None
        refuse_address(self.address)
        if self.address.startswith("/"):
            raise path_escape(self.address, f"leads out of {public_url(self.root)}")
        return f"{with_user(self.root).rstrip('/')}/{self.address}"

    @property
    def fetched_url(self) -> str | None:
        """The same, of an image that `ImageStore` does not read by itself, as it does below a root on an object store.

        None for an address that is refused by its form: `ImageStore` will say why.
        """
        try:
            url = self.url if self.listed is None else None
        except ImageError:
            return None
        if url is None or isinstance(self.root, Path) or self.root.lower().startswith(_WEB_SCHEMES):
            return url
        return None if url.startswith(self.root.rstrip("/") + "/") else url

    @property
    def public_name(self) -> str | None:
        """What stands for the content where that is behind a URL and not known: the URL as it may be stored."""
        url = self.fetched_url if self.sha256 is None else None
        return None if url is None else public_url(url)

    @property
    def is_remote(self) -> bool:
        """Whether its bytes have to come from an object store."""
        return self.data is None and isinstance(self.root, str)

    @property
    def num_bytes(self) -> int:
        """Memory that its file takes while it is worked on: what is held, or will be fetched as far as a listing has told."""
        if self.data is not None:
            return len(self.data)
        return self.listed.num_bytes if self.is_remote and self.listed is not None else 0


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

    def reference_under(self, root: Folder) -> ImageReference:
        """The same image below another root, for files that were moved. One of the cache stays where it is."""
        if is_data_uri(self.uri) or _URL.match(self.uri):
            return self.reference
        return ImageReference(uri=self.uri, address=self.uri, root=root, sha256=self.sha256)


def refuse_address(address: str) -> None:
    """Refuse what no path can be, or what leads away from the root by its form.

    Raises:
        ImageError: of kind `image_missing`, `control_char`, `bad_unicode`, `url_not_allowed` or `path_escape`.
    """
    if not address:
        raise ImageError("image_missing", "an image address is empty", "give the address, or null for a round without image")
    if "\x00" in address:
        raise ImageError("control_char", f"image address {shown(address)} holds a NUL character", "remove it")
    if not is_text(address):
        raise ImageError("bad_unicode", f"image address {address!a} is not UTF-8", "rename the file or folder")
    if is_data_uri(address):
        raise ImageError("corrupt", f"image {shown(address)} is no whole data: URI", "write data:image/png;base64, and base64")
    if _URL.match(address):
        message = f"image {shown(public_url(address))} is a URL, and none are allowed"
        may_be_allowed = address.lower().startswith(_FETCHED_SCHEMES)
        remedy = "allow it (allow_url), or fetch it and give the path of the file" if may_be_allowed else _FETCH_REMEDY
        raise ImageError("url_not_allowed", message, remedy)
    if "\\" in address:
        raise path_escape(address, "holds a backslash", "write / between folders")
    if _DRIVE.match(address):
        raise path_escape(address, "starts with a drive letter")
    if address == "~" or (address.startswith("~") and "/" in address):
        raise path_escape(address, "starts in a home folder")
    if ".." in address.split("/"):
        raise path_escape(address, "holds ..")


def path_escape(address: str, reason: str, remedy: str = "give a path below the image root, relative to it") -> ImageError:
    """The error for an address that leads away from its root."""
    return ImageError("path_escape", f"image {shown(address)} {reason}", remedy)


def is_text(path: str) -> bool:
    """Whether a path can be written as UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=_NUM_FOLDERS_REMEMBERED)
def _folder(path: str) -> Path:
    """One `Path` for all images of a folder: it is made, and written out, once."""
    return Path(path)
