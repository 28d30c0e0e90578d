"""Images that came from elsewhere, kept by their content: written once, verified whenever they are read, usable without network.

```
FOLDER/blobs/ab/<sha256>                    the bytes
FOLDER/urls/ab/<sha256 of the URL>.json     what a URL led to: `UrlEntry`
FOLDER/unfinished/                          files that are being written (`cache_files.py`)
```

Any number of processes may use one folder. Since content is verified when it is read, what a power cut leaves of a file is found,
and counts as missing. No connection is opened here; who fetches a URL holds its claim meanwhile (`ImageCache.claim`), so that
others wait for it.

The last use of a blob is noted as its time of access, which is set here and does not depend on how the disk is mounted; its time
of change stays.
"""

import hashlib
import os
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from yivl_core.data.cache.cache_files import SharedFolder, UnfinishedFile
from yivl_core.data.public_urls import public_url
from yivl_core.storage import storage_errors

BLOBS, URLS = "blobs", "urls"

_SHA256 = r"^[0-9a-f]{64}$"
_NOTE_USE_EVERY_NS = 60 * 10**9
_MAX_VALIDATOR_CHARS = 1000  # of an ETag or a date that a server sends
_MAX_ENTRY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """A file of the cache.

    Attributes:
        path: where its bytes are; not to be written to.
        sha256: of its bytes (hex).
        num_bytes: its size.
        url: where it came from, as it may be shown; None for bytes that came with a dataset.
    """

    path: Path
    sha256: str
    num_bytes: int
    url: str | None


class UrlEntry(BaseModel):
    """What a URL led to when it was asked for last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="the URL as it may be shown")
    sha256: str = Field(pattern=_SHA256, description="of the content")
    num_bytes: int = Field(ge=0, description="size of the content")
    etag: str | None = Field(default=None, description="what the server calls this content, for asking whether it has changed")
    last_modified: str | None = Field(default=None, description="when it changed last, as the server has written it")
    fetched_at: float = Field(description="when the server was asked, in seconds since 1970")


class ImageCache:
    """A folder of images by content, and of what URLs led to. Safe to share between threads and processes.

    Args:
        folder: where it is, or will be made when the first image comes.
    """

    def __init__(self, folder: Path) -> None:
        self.files = SharedFolder(folder)

    def find(self, url: str) -> CachedImage | None:
        """What a URL led to, verified; None where it is not in the cache, or no longer whole.

        Raises:
            StorageError: the disk failed.
        """
        entry = self.entry(url)
        path = None if entry is None else self.find_content(entry.sha256)
        if entry is None or path is None:
            return None
        return CachedImage(path=path, sha256=entry.sha256, num_bytes=entry.num_bytes, url=entry.url)

    def entry(self, url: str) -> UrlEntry | None:
        """What is noted of a URL; its content may be gone. A damaged note is none.

        Raises:
            StorageError: the disk failed.
        """
        return read_entry(self.files, self.files.place(URLS, _entry_name(url)))

    def find_content(self, sha256: str) -> Path | None:
        """The file of this content, verified, and its use noted; None where there is none. A damaged one is removed.

        Raises:
            StorageError: the disk failed.
        """
        if not re.fullmatch(_SHA256, sha256):
            return None
        place = self.files.place(BLOBS, sha256)
        with storage_errors(place):
            try:
                with self.files.open(place) as file:
                    if digest_of(file) == sha256:
                        _note_use(file.fileno())
                        return Path(place)
            except FileNotFoundError:
                return None
            with suppress(FileNotFoundError):
                os.unlink(place)  # noqa: PTH108
            return None

    def add_bytes(self, data: bytes) -> CachedImage:
        """Keep bytes that came with a dataset.

        Raises:
            StorageError: the disk is full, or failed.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.find_content(sha256)
        if path is not None:
            return CachedImage(path=path, sha256=sha256, num_bytes=len(data), url=None)
        file = self.files.begin(f"bytes-{uuid.uuid4().hex}")
        assert file is not None  # nobody else knows its name
        with file:
            file.write(data)
            return self.publish(file)

    def publish(self, file: UnfinishedFile) -> CachedImage:
        """A file that was written as a blob. One of this content that is there, and whole, stays."""
        sha256 = file.sha256
        is_there = os.path.lexists(self.files.place(BLOBS, sha256))
        path = self.find_content(sha256) if is_there else None
        return CachedImage(path=path or Path(file.move(BLOBS, sha256)), sha256=sha256, num_bytes=file.num_bytes, url=None)

    def claim(self, url: str) -> "UrlClaim | None":
        """The sole right to fetch a URL, until it is closed; None while another thread or process has it.

        Who gets it looks into the cache once more: the other one may have finished in between.

        Raises:
            StorageError: the disk failed.
        """
        name = _entry_name(url)
        file = self.files.begin(name)
        return None if file is None else UrlClaim(self, file, url, name)


class UrlClaim:
    """The sole right to fetch a URL, and the file that its bytes go to. Use it as a context manager."""

    def __init__(self, cache: ImageCache, file: UnfinishedFile, url: str, name: str) -> None:
        self.file = file
        self._cache = cache
        self._url = url
        self._name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None) -> None:
        self.file.__exit__(kind, cause, trace)

    def keep(self, etag: str | None = None, last_modified: str | None = None) -> CachedImage:
        """Publish the file that was written, as what the URL leads to.

        The note comes first: the claim ends when the file is moved, and who gets it then has to find both.

        Raises:
            StorageError: the disk is full, or failed.
        """
        entry = UrlEntry(
            url=public_url(self._url),
            sha256=self.file.sha256,
            num_bytes=self.file.num_bytes,
            etag=_bounded(etag),
            last_modified=_bounded(last_modified),
            fetched_at=time.time(),
        )
        self._note(entry)
        return replace(self._cache.publish(self.file), url=entry.url)

    def confirm(self, entry: UrlEntry, etag: str | None = None) -> None:
        """Note that the URL was asked for again and leads to what it did; perhaps under another ETag.

        Raises:
            StorageError: the disk is full, or failed.
        """
        self._note(entry.model_copy(update={"fetched_at": time.time(), "etag": _bounded(etag) or entry.etag}))

    def _note(self, entry: UrlEntry) -> None:
        self._cache.files.write(entry.model_dump_json().encode(), URLS, self._name)


def is_blob(path: str, sha256: str) -> bool:
    """Whether this is where a cache, wherever it is, keeps this content."""
    return path.startswith("/") and path.endswith(f"/{BLOBS}/{sha256[:2]}/{sha256}")


def read_entry(files: SharedFolder, place: str) -> UrlEntry | None:
    """What is noted of a URL, by the place of the note; None where there is none, or a damaged one.

    Raises:
        StorageError: the disk failed.
    """
    with storage_errors(place):
        try:
            with files.open(place) as file:
                return UrlEntry.model_validate_json(file.read(_MAX_ENTRY_BYTES))
        except (FileNotFoundError, ValidationError):
            return None


def digest_of(file: BufferedReader) -> str:
    """sha256 (hex) of an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def _entry_name(url: str) -> str:
    """The name under which a URL is noted, which tells nothing of it."""
    return f"{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()}.json"


def _note_use(descriptor: int) -> None:
    status = os.fstat(descriptor)
    now = time.time_ns()
    if now - status.st_atime_ns > _NOTE_USE_EVERY_NS:
        with suppress(PermissionError):  # another user's file
            os.utime(descriptor, ns=(now, status.st_mtime_ns))


def _bounded(text: str | None) -> str | None:
    return text if text is not None and len(text) <= _MAX_VALIDATOR_CHARS else None
