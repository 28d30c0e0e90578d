"""One URL over HTTP -> the bytes of an image in a file, or the reason why not. Only `fetch_loop.py` uses this module.

Redirects are followed by hand, since each of them is checked like the first URL. Proxies, cookies and compression are not used.
What is no image is left after its first kilobyte. Messages hold no secret of a URL, and errors are raised outside of the handlers
of others, whose texts might.
"""

import asyncio
import base64
import errno
import os
import random
import socket
import ssl
import time
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from itertools import count
from types import TracebackType
from typing import Self
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from yivl_core.data.cache.cache_files import UnfinishedFile
from yivl_core.data.cache.image_cache import UrlEntry
from yivl_core.data.decoding import HEAD_BYTES, ImageError, head_error
from yivl_core.data.findings import shown
from yivl_core.data.network.fetch_limits import FetchLimits
from yivl_core.data.network.host_names import Resolve
from yivl_core.data.network.resolving import CheckedResolver, PrivateAddressError
from yivl_core.data.network.url_parts import UrlParts, refused
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.data.public_urls import public_url

_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_KINDS = {401: "permission_denied", 403: "permission_denied", 404: "image_missing", 410: "image_missing"}
_REMEDIES = {
    "permission_denied": "check whether the URL has expired, and who may read it",
    "image_missing": "correct the address, or take it out",
}
_FIRST_PAUSE_S = 0.5  # before the second try; twice as long before each further one
_AGAIN = "run it again later, or take the image out"
_HEADERS = {"User-Agent": "yivl", "Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server has said of content that was written.

    Attributes:
        is_unchanged: nothing was written, since the content is the one that is known.
        etag: what the server calls the content.
        last_modified: when it changed last.
    """

    is_unchanged: bool = False
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why a try has failed.

    Attributes:
        reason: in words, without the URL.
        may_pass: whether another try makes sense.
        retry_after_s: how long the server asks to be left alone.
        remedy: how to mend it.
    """

    reason: str
    may_pass: bool = True
    retry_after_s: float = 0.0
    remedy: str = _AGAIN


class Downloader:
    """Fetches URLs. Belongs to the event loop in which it is entered as a context manager.

    Args:
        policy: which URLs may be fetched.
        limits: connections, tries, time and bytes.
        resolve: looks up the addresses of a host.
        name_threads: where it does so.
    """

    def __init__(self, policy: UrlPolicy, limits: FetchLimits, resolve: Resolve, name_threads: Executor) -> None:
        self._policy = policy
        self._limits = limits
        self._under_way = asyncio.Semaphore(limits.connections)
        self._resolver = CheckedResolver(policy, resolve, name_threads, limits.connect_timeout_s)

    async def __aenter__(self) -> Self:
        limits = self._limits
        connector = aiohttp.TCPConnector(
            limit=limits.connections,
            limit_per_host=limits.connections_per_host,
            resolver=self._resolver,
            socket_factory=self._resolver.open_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=None, sock_connect=limits.connect_timeout_s, sock_read=limits.slow_after_s
            ),
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        await self._session.close()

    async def download(self, parts: UrlParts, file: UnfinishedFile, known: UrlEntry | None = None) -> Answer:
        """Write the content of a URL to a file, in as many tries as it takes.

        Args:
            parts: the URL, as the policy has let it pass.
            file: where the bytes go; what a failed try has written is dropped.
            known: what the URL led to before, where the server is to be asked whether that has changed.

        Raises:
            ImageError: of kind `url_not_allowed`, `image_missing`, `permission_denied`, `fetch_failed`, `too_many_bytes`,
                `unsupported_format`, `not_an_image` or `empty`.
            StorageError: the disk is full, or failed.
        """
        for number in count(1):
            async with self._under_way:
                found = await self._try(parts, file, known)
            if isinstance(found, Answer):
                return found
            if not found.may_pass or number == self._limits.num_tries:
                tries = f" ({number} tries)" if number > 1 else ""
                raise ImageError("fetch_failed", f"{_name(parts)} cannot be fetched: {found.reason}{tries}", found.remedy)
            file.restart()
            await asyncio.sleep(self._pause_s(number, found))
        raise AssertionError("the last try returns or raises")

    def _pause_s(self, number: int, failure: _Failure) -> float:
        """At random, so that those who failed together do not come back together; as long as the server asks for, at least."""
        pause_s = random.uniform(0, _FIRST_PAUSE_S * 2 ** (number - 1))
        return min(max(pause_s, failure.retry_after_s), self._limits.max_retry_after_s)

    async def _try(self, parts: UrlParts, file: UnfinishedFile, known: UrlEntry | None) -> Answer | _Failure:
        try:
            async with asyncio.timeout(self._limits.total_timeout_s) as total:
                return await self._follow(parts, file, known)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if total.expired():
                return _Failure(reason=f"it took more than {self._limits.total_timeout_s:g} s")
            return self._failure(error)

    async def _follow(self, first: UrlParts, file: UnfinishedFile, known: UrlEntry | None) -> Answer | _Failure:
        parts = first
        for _ in range(_MAX_REDIRECTS + 1):
            private_address = None
            try:
                async with self._session.get(
                    URL(parts.url, encoded=True), headers=_headers(parts, known), allow_redirects=False
                ) as response:
                    if response.status not in _REDIRECTS:
                        return await self._take(first, response, file, known)
                    target = urljoin(parts.url, response.headers.get("Location", ""))
            except PrivateAddressError as error:
                private_address = error.address
            if private_address is not None:
                self._refuse(first, parts, private_address)
            parts = self._redirected(first, parts, target)
        return _Failure(reason=f"it redirects more than {_MAX_REDIRECTS} times", may_pass=False)

    def _refuse(self, first: UrlParts, parts: UrlParts, address: str) -> None:
        error: ImageError | None = None
        try:
            self._policy.refuse_private(parts, [address])
        except ImageError as refusal:
            error = refusal
        assert error is not None
        raise error if parts is first else _on_the_way(first, error)

    def _redirected(self, first: UrlParts, parts: UrlParts, target: str) -> UrlParts:
        """Where a redirect leads, with user and password where that is the same place."""
        error = None
        try:
            found = self._policy.check(target)
        except ImageError as refusal:
            error = refusal
        if error is not None:
            raise _on_the_way(first, error)
        if found.scheme == "s3" or (parts.scheme == "https" and found.scheme != "https"):
            error = refused(target, f"is of scheme {found.scheme}", "give the URL that it leads to, or take the image out")
            raise _on_the_way(first, error)
        return replace(found, userinfo=parts.userinfo if found.place == parts.place else None)

    async def _take(
        self, first: UrlParts, response: aiohttp.ClientResponse, file: UnfinishedFile, known: UrlEntry | None
    ) -> Answer | _Failure:
        """The content of an answer that is no redirect."""
        status, headers = response.status, response.headers
        if status == 304 and known is not None:
            return Answer(is_unchanged=True)
        if status in _KINDS:
            kind = _KINDS[status]
            raise ImageError(kind, f"{_name(first)} is not to be had: the server answers {status}", _REMEDIES[kind])
        if status != 200:
            retry_after_s = _retry_after_s(headers.get("Retry-After", ""))
            return _Failure(reason=f"the server answers {status}", may_pass=status in _MAY_PASS, retry_after_s=retry_after_s)
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            message = f"{_name(first)} comes compressed ({shown(encoding)}) although it was not asked for so"
            raise ImageError("unsupported_format", message, "fetch the image and give the path of the file")
        failure = await self._read(first, response, file)
        return failure or Answer(etag=headers.get("ETag"), last_modified=headers.get("Last-Modified"))

    async def _read(self, first: UrlParts, response: aiohttp.ClientResponse, file: UnfinishedFile) -> _Failure | None:
        limits = self._limits
        if (response.content_length or 0) > limits.max_bytes:
            raise _too_large(first, limits)
        head, is_checked = b"", False
        expected, since = limits.min_bytes_per_s * limits.slow_after_s, time.monotonic()
        async for chunk in response.content.iter_any():
            if file.num_bytes + len(chunk) > limits.max_bytes:
                raise _too_large(first, limits)
            file.write(chunk)
            if not is_checked:
                head += chunk[:HEAD_BYTES]
                is_checked = len(head) >= HEAD_BYTES
                if is_checked:
                    _refuse_head(first, head)
            if file.num_bytes >= expected:
                expected, since = file.num_bytes + limits.min_bytes_per_s * limits.slow_after_s, time.monotonic()
            elif time.monotonic() - since > limits.slow_after_s:
                return _Failure(reason=f"fewer than {limits.min_bytes_per_s:g} bytes a second come")
        if not is_checked:
            _refuse_head(first, head)
        return None

    def _failure(self, error: Exception) -> _Failure:
        """What an exception of the client means, without its text where that may hold the URL."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            remedy = "check the host's name; SSL_CERT_FILE names authorities that are trusted"
            return _Failure(reason="the certificate of the server is not valid", may_pass=False, remedy=remedy)
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            is_unknown = error.os_error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
            if is_unknown:
                return _Failure(reason="there is no host of this name", may_pass=False, remedy="correct the address")
            return _Failure(reason="its host cannot be looked up")
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return _Failure(reason=f"no connection within {self._limits.connect_timeout_s:g} s")
        if isinstance(error, TimeoutError):
            return _Failure(reason=f"nothing comes for {self._limits.slow_after_s:g} s")
        if isinstance(error, aiohttp.ClientPayloadError):
            return _Failure(reason="the answer is cut off")
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        if isinstance(cause, ssl.SSLError):
            return _Failure(reason=f"no secure connection ({cause.reason or 'SSL'})")
        number = cause.errno if isinstance(cause, OSError) else None
        words = type(error).__name__ if number is None or number not in errno.errorcode else os.strerror(number)
        return _Failure(reason=f"the connection fails ({words})")


def _headers(parts: UrlParts, known: UrlEntry | None) -> dict[str, str]:
    headers = {}
    if parts.userinfo is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(parts.userinfo).encode()).decode()
    if known is not None and known.etag:
        headers["If-None-Match"] = known.etag
    if known is not None and known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    return headers


def _name(parts: UrlParts) -> str:
    return f"image {shown(public_url(parts.url))}"


def _refuse_head(first: UrlParts, head: bytes) -> None:
    error = head_error(head[:HEAD_BYTES])
    if error is not None:
        raise ImageError(error.kind, f"{_name(first)}: {error.message}", error.remedy)


def _too_large(first: UrlParts, limits: FetchLimits) -> ImageError:
    return ImageError("too_many_bytes", f"{_name(first)} is larger than {limits.max_bytes:,} bytes", "give a smaller file")


def _on_the_way(first: UrlParts, error: ImageError) -> ImageError:
    return ImageError(error.kind, f"{_name(first)} redirects, and {error.message}", error.remedy)


def _retry_after_s(text: str) -> float:
    """Seconds, or a date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after."""
    try:
        return max(0.0, float(text) if text.isdigit() else parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
