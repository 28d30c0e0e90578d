"""Image addresses -> pixels: what may be opened, what it has to be, and how it is read.

An address is relative to its root: a folder of this machine, or one on an object store (an fsspec URL) that the user has named
himself; other URLs are refused: who may fetch them gives the place in the cache. A path may not leave its root, which on this
machine is checked on the resolved path before anything is opened.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.decoding import DecodedImage, Depth, ImageError, decode_image, inspect_image
from yivl_core.data.findings import shown
from yivl_core.data.image_errors import (
    MISSING_REMEDY,
    denied,
    disk_errors,
    empty,
    file_type,
    missing_told,
    refuse_change,
    refuse_vanished_root,
    too_large,
)
from yivl_core.data.kept_images import find_kept
from yivl_core.data.public_urls import public_url
from yivl_core.data.references import EXTENSIONS, Folder, ImageInfo, ImageReference, is_text, path_escape, refuse_address
from yivl_core.errors import FileTooLargeError
from yivl_core.listing import StoredFile, file_on_disk, file_state
from yivl_core.storage import describe_os_error, join, read_limited
from yivl_core.url_variables import is_web, literally

__all__ = [
    "EXTENSIONS",
    "DecodedImage",
    "Folder",
    "ImageError",
    "ImageInfo",
    "ImageReference",
    "ImageStore",
    "LoadedImage",
    "decode_image",
]

Content = io.BytesIO | io.BufferedReader

_MIN_SIDE_PX = 8  # below, nobody could read or describe it
_MAX_BYTES_IN_MEMORY = 1 << 20  # a larger file is read in blocks, and twice
_NUM_ROOTS_REMEMBERED = 4096


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
        max_bytes: most bytes of a file; a larger one is refused before it is read.
        cache: where images of known content that had been fetched are, if they are not where they were; None: nowhere.
    """

    def __init__(self, max_pixels: int = 64_000_000, max_bytes: int = 1 << 29, cache: ImageCache | None = None) -> None:
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self._cache = cache
        self._real_roots: dict[Path, str] = {}

    def resolve(self, image: ImageReference) -> Path:
        """The file of an image of this machine, which is there, is a plain file, and lies under the root; nothing is opened.

        Raises:
            ImageError: of kind `image_missing`, `path_escape`, `url_not_allowed`, `control_char`, `bad_unicode`, `not_a_file` or
                `empty`.
        """
        return Path(self._real_path(image))

    def find(self, image: ImageReference) -> StoredFile:
        """Size and state of an image's file, as a listing has told them or as they are now; nothing is read.

        Raises:
            ImageError: as `resolve`.
            StorageError: the store failed.
        """
        if image.listed is not None:
            return image.listed
        image = find_kept(image, self._cache)
        if image.data is not None:
            self._refuse_size(image, len(image.data))
            return StoredFile(image.address, len(image.data), self.digest(image), None)
        if not isinstance(image.root, Path):
            with missing_told(image):
                return replace(file_state(self._url(image)), name=image.address)
        path = self._real_path(image)
        status = os.stat(path)  # noqa: PTH116
        if not os.access(path, os.R_OK):
            raise denied(image, path)
        return file_on_disk(image.address, status)

    def digest(self, image: ImageReference) -> str:
        """sha256 (hex) of an image's bytes, decodable or not.

        Raises:
            ImageError: as `load`, where there are no bytes to be had.
            StorageError: the disk or network failed.
        """
        if image.sha256 is not None:
            return image.sha256
        with self._opened(image) as (content, *_):
            return hashlib.file_digest(content, "sha256").hexdigest()

    def sample(self, image: ImageReference, num_bytes: int = 4096) -> bytes:
        """The first and the last bytes of an image's file, which tell nearly all images apart.

        Raises:
            ImageError, StorageError: as `digest`.
        """
        if image.data is not None or not isinstance(image.root, Path):
            with self._opened(image) as (content, *_):
                data = content.read()
            return data[:num_bytes] + data[max(num_bytes, len(data) - num_bytes) :]
        path = self._real_path(image)
        with disk_errors(image, path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                head = os.pread(descriptor, num_bytes, 0)
                size = os.fstat(descriptor).st_size
                return head + os.pread(descriptor, num_bytes, max(len(head), size - num_bytes))
            finally:
                os.close(descriptor)

    def fetch(self, image: ImageReference) -> ImageReference:
        """An image of an object store with its bytes; one that cannot be had as it was: `load` will say why.

        Raises:
            StorageError: the store failed.
        """
        if not image.is_remote:
            return image
        try:
            return replace(image, data=self._read_remote(image))
        except ImageError:
            return image

    def load(self, image: ImageReference) -> LoadedImage:
        """The pixels of an image, decoded in full.

        Raises:
            ImageError: as `resolve` and `decode_image`; also `permission_denied`, `too_many_bytes`, and `image_changed` if it is
                not the image that an earlier validation or the listing saw.
            StorageError: the disk or network failed.
        """
        with self._verified(image) as (content, path, sha256):
            decoded = decode_image(content, self.max_pixels)
            info = ImageInfo(
                uri=image.uri,
                path=path,
                sha256=sha256,
                width=decoded.image.width,
                height=decoded.image.height,
                mode=decoded.mode,
                num_bytes=content.seek(0, io.SEEK_END),
            )
        warnings = _warnings(Path(image.address), decoded.format, info, is_animated=decoded.is_animated)
        return LoadedImage(info=info, image=decoded.image, warnings=warnings)

    def inspect(
        self, image: ImageReference, depth: Depth = "full", path: Path | None = None
    ) -> tuple[ImageInfo, tuple[str, ...]]:
        """What `load` tells of an image, and its warnings, without pixels: three times as fast.

        Args:
            image: where it is.
            depth: whether it is decoded in `full` like there, or only its `header` is read.
            path: what `resolve` has given of it just now, which takes its time; None: it is resolved here.

        Raises:
            ImageError, StorageError: as `load`.
        """
        with self._verified(image, path) as (content, place, sha256):
            inspected = inspect_image(content, self.max_pixels, depth)
            info = ImageInfo(
                uri=image.uri,
                path=place,
                sha256=sha256,
                width=inspected.width,
                height=inspected.height,
                mode=inspected.mode,
                num_bytes=content.seek(0, io.SEEK_END),
            )
        return info, _warnings(Path(image.address), inspected.format, info, is_animated=inspected.is_animated)

    @contextmanager
    def _verified(self, image: ImageReference, resolved: Path | None = None) -> Iterator[tuple[Content, str, str]]:
        """An image's bytes, which are those that it has to have, where they are from, and their sha256 (hex)."""
        with self._opened(image, resolved) as (content, path, state):
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            if image.sha256 not in (None, sha256):
                message = f"{path} is not the image that was validated: its sha256 is not {image.sha256}"
                raise ImageError("image_changed", message, "bring the image back, or validate the dataset again")
            refuse_change(image, content.seek(0, io.SEEK_END), state)
            try:
                yield content, path, sha256
            except ImageError as cause:
                raise ImageError(cause.kind, f"image {shown(image.uri)}: {cause.message}", cause.remedy) from cause

    @contextmanager
    def _opened(self, image: ImageReference, resolved: Path | None = None) -> Iterator[tuple[Content, str, str | None]]:
        """An image's bytes, for reading at any place, where they are from, and the state of the file on this machine."""
        image = find_kept(image, self._cache)
        if image.data is not None:
            self._refuse_size(image, len(image.data))
            yield io.BytesIO(image.data), image.address, None
            return
        if not isinstance(image.root, Path):
            yield io.BytesIO(self._read_remote(image)), self._url(image), None
            return
        path = self._real_path(image) if resolved is None else str(resolved)
        with disk_errors(image, path), open(path, "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            self._refuse_size(image, status.st_size)
            yield _in_memory(file, status.st_size), path, file_on_disk(image.address, status).state

    def _read_remote(self, image: ImageReference) -> bytes:
        try:
            with missing_told(image):
                data = read_limited(self._url(image), self.max_bytes)
        except FileTooLargeError as cause:
            raise too_large(image, self.max_bytes) from cause
        if not data:
            raise empty(image)
        return data

    def _refuse_size(self, image: ImageReference, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise too_large(image, self.max_bytes)
        if not num_bytes:
            raise empty(image)

    def _url(self, image: ImageReference) -> str:
        assert isinstance(image.root, str)
        address = _below(image.root, image.address)
        refuse_address(address)
        if address.startswith("/"):
            raise path_escape(image.address, f"leads out of {public_url(image.root)}")
        if "?versionId=" in address:  # which the client of S3 takes for a part of the request
            message = f"image {shown(image.uri)} has ?versionId= in its name"
            raise ImageError("image_missing", message, "give the file another name")
        return join(image.root, literally(address) if is_web(image.root) else address)

    def _real_path(self, image: ImageReference) -> str:
        """As `resolve`, for each image of a training: a `Path` is dearer than what is done with it."""
        refuse_address(image.address)
        assert isinstance(image.root, Path)
        real_path = os.path.realpath(os.path.join(image.root, image.address))  # noqa: PTH118
        root = self._real_root(image.root)
        if real_path != root and not real_path.startswith(root.rstrip("/") + "/"):
            raise path_escape(image.address, f"leads out of {root}")
        if not is_text(real_path):
            raise ImageError("bad_unicode", f"the path {real_path!a} is not UTF-8", "rename the file or folder")
        try:
            status = os.stat(real_path)  # noqa: PTH116
        except OSError as cause:  # not there, no folder on the way, symbolic links in a circle, name too long
            refuse_vanished_root(image, cause)
            is_denied = isinstance(cause, PermissionError)
            reason = describe_os_error(cause, real_path) if is_denied else f"{cause.strerror}: {real_path}"
            kind = "permission_denied" if is_denied else "image_missing"
            raise ImageError(kind, f"image {shown(image.uri)} is not there ({reason})", MISSING_REMEDY) from cause
        if not stat.S_ISREG(status.st_mode):
            message = f"image {shown(image.uri)} is a {file_type(status.st_mode)}, not a file"
            raise ImageError("not_a_file", message, "give the address of an image file")
        if status.st_size == 0:
            raise empty(image)
        return real_path

    def _real_root(self, root: Path) -> str:
        """Where a root leads. Looked up once: a link that is turned later opens no other place, its images are refused."""
        real_root = self._real_roots.get(root)
        if real_root is None:
            if len(self._real_roots) >= _NUM_ROOTS_REMEMBERED:
                self._real_roots.clear()
            real_root = self._real_roots[root] = os.path.realpath(root)
        return real_root


def _in_memory(file: io.BufferedReader, num_bytes: int) -> Content:
    """The same file in memory, unless it is large, or has grown."""
    if num_bytes < _MAX_BYTES_IN_MEMORY:
        data = file.read(num_bytes + 1)  # not more: memory that is asked for and given back costs a small file its time
        if len(data) <= num_bytes:
            return io.BytesIO(data)
        file.seek(0)
    return file


def _below(root: str, address: str) -> str:
    """A URL below a root as its address relative to that; any other address as it is."""
    start = root.rstrip("/") + "/"
    return address.removeprefix(start) if "://" in address else address


def _warnings(address: Path, image_format: str, info: ImageInfo, *, is_animated: bool) -> tuple[str, ...]:
    kinds = []
    if is_animated:
        kinds.append("animated")
    promised = EXTENSIONS.get(address.suffix.lower())
    if promised not in (None, "JPEG" if image_format == "MPO" else image_format):
        kinds.append("extension_mismatch")
    if min(info.width, info.height) < _MIN_SIDE_PX:
        kinds.append("tiny")
    return tuple(kinds)
