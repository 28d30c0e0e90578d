"""`s3://` URLs under the policy of all others: the bucket has to be allowed, and the address of its store public or named.

The store's client makes its connections itself, so the address of its endpoint, which is a setting of the user, is checked here
and not pinned. What is called here waits for the network. Only `fetch_loop.py` uses this module.
"""

import hashlib
from pathlib import Path

from yivl_core.data.decoding import HEAD_BYTES, ImageError, head_error
from yivl_core.data.findings import shown
from yivl_core.data.network.addresses import is_public
from yivl_core.data.network.host_names import Resolve
from yivl_core.data.network.url_parts import UrlParts, read_url
from yivl_core.data.network.url_policy import UrlPolicy, private_remedy
from yivl_core.errors import ConfigurationError, FileTooLargeError, StorageError, YivlError
from yivl_core.filesystems import s3_endpoint
from yivl_core.listing import file_state
from yivl_core.object_stores import answer_code
from yivl_core.storage import is_missing, read_limited, storage_errors

_KINDS_BY_ANSWER = {
    "AccessDenied": "permission_denied",
    "403": "permission_denied",
    "InvalidObjectState": "permission_denied",
    "NoSuchBucket": "image_missing",
    "InvalidBucketName": "image_missing",
    "KeyTooLongError": "image_missing",
}
_REMEDY = "correct the address, or check who may read it"


class ObjectReader:
    """Reads objects of an object store. Safe to share between threads.

    Args:
        policy: which stores may be asked.
        max_bytes: most bytes of an image.
        resolve: looks up the addresses of a host.
    """

    def __init__(self, policy: UrlPolicy, max_bytes: int, resolve: Resolve) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._is_store_checked = False

    def state(self, parts: UrlParts) -> tuple[str, str | None]:
        """What the store calls an object's content now, and its MD5 (hex) where the store tells that.

        Raises:
            ImageError, ConfigurationError: as `read`.
        """
        self._check_store(parts)
        error: YivlError | None = None
        try:
            found = file_state(parts.url)
        except (StorageError, ConfigurationError) as cause:
            error = _error(parts, cause)
        if error is not None:
            raise error
        return found.state, found.content_key

    def read(self, parts: UrlParts) -> bytes:
        """An object's bytes, with one request.

        Raises:
            ImageError: of kind `url_not_allowed`, `image_missing`, `permission_denied`, `fetch_failed`, `too_many_bytes`,
                `unsupported_format`, `not_an_image` or `empty`.
            ConfigurationError: the store cannot be used as it is set up (credentials, region, package s3fs).
        """
        self._check_store(parts)
        error: YivlError | None = None
        try:
            data = read_limited(parts.url, self._max_bytes)
        except (StorageError, ConfigurationError, FileTooLargeError) as cause:
            error = _error(parts, cause)
        if error is not None:
            raise error
        refusal = head_error(data[:HEAD_BYTES])
        if refusal is not None:
            raise ImageError(refusal.kind, f"{_name(parts)}: {refusal.message}", refusal.remedy)
        return data

    def _check_store(self, parts: UrlParts) -> None:
        """Nothing, if the store may be asked. Looked up once for all objects."""
        if self._is_store_checked:
            return
        with storage_errors(parts.url):
            store = read_url(s3_endpoint(parts.url))
        addresses = [store.host] if store.is_address else self._addresses(parts, store)
        private = next((address for address in addresses if not is_public(address)), None)
        if private is not None and not self._policy.is_named(store.host, store.port):
            message = f"{_name(parts)} lies on the object store at {store.host}, which leads to {private}, no public address"
            raise ImageError("url_not_allowed", message, private_remedy(store, private))
        self._is_store_checked = True

    def _addresses(self, parts: UrlParts, store: UrlParts) -> list[str]:
        try:
            return list(self._resolve(store.host, store.port))
        except OSError as cause:
            message = f"{_name(parts)} cannot be fetched: the object store at {store.host} cannot be looked up"
            raise ImageError("fetch_failed", message, "check the network and AWS_ENDPOINT_URL") from cause


def md5_of(path: Path) -> str:
    """MD5 (hex) of a file, which some stores call its content by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _name(parts: UrlParts) -> str:
    return f"image {shown(parts.url)}"


def _error(parts: UrlParts, cause: YivlError) -> YivlError:
    """A property of this one image, where it is one; else the trouble of the store."""
    if isinstance(cause, FileTooLargeError):
        return ImageError("too_many_bytes", f"{_name(parts)} is too large ({cause})", "give a smaller file")
    answer = None if cause.__cause__ is None else answer_code(cause.__cause__)
    kind = _KINDS_BY_ANSWER.get(answer or "")
    if isinstance(cause, StorageError) and is_missing(cause):
        kind = "image_missing"
    if kind is not None:
        return ImageError(kind, f"{_name(parts)} is not to be had ({cause})", _REMEDY)
    if isinstance(cause, ConfigurationError):
        return cause
    return ImageError("fetch_failed", f"{_name(parts)} cannot be fetched: {cause}", "run it again later, or take the image out")
