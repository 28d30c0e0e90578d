"""Images from the network into a cache, each URL once: the door to the modules that open connections.

`url_policy.py` says what may be asked for, `downloading.py` and `object_reading.py` ask, `image_cache.py` keeps what came, and
`fetch_loop.py` decides when. Nothing of the client is loaded before the first URL has to be fetched.
"""

import threading
import time
from concurrent.futures import CancelledError, Future
from copy import copy
from types import TracebackType
from typing import TYPE_CHECKING, Self

from yivl_core.data.cache.image_cache import CachedImage, ImageCache
from yivl_core.data.decoding import ImageError
from yivl_core.data.findings import shown
from yivl_core.data.network.fetch_limits import FetchLimits
from yivl_core.data.network.host_names import Resolve, resolve_host
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.data.public_urls import public_url

if TYPE_CHECKING:
    from yivl_core.data.network.fetch_loop import FetchLoop

_NUM_FAILURES_REMEMBERED = 10_000


class UrlFetcher:
    """Fetches URLs in a thread of its own, which begins with the first one. Use it as a context manager.

    A URL that is asked for several times is fetched once; one that cannot be fetched is not tried again by the same fetcher. What
    has not come when the context ends is given up.

    Args:
        cache: where the images go.
        policy: which URLs may be fetched; what is cached is given under the same policy.
        limits: connections, tries, time and bytes.
        refresh: ask the server of a cached image, once, whether it has changed.
        offline: give what is cached, and open no connection.
        resolve: looks up the addresses of a host.
    """

    def __init__(
        self,
        cache: ImageCache,
        policy: UrlPolicy,
        limits: FetchLimits | None = None,
        *,
        refresh: bool = False,
        offline: bool = False,
        resolve: Resolve = resolve_host,
    ) -> None:
        self._cache = cache
        self._policy = policy
        self._limits = limits or FetchLimits()
        self._fresh_since = time.time() if refresh else 0.0
        self._is_offline = offline
        self._resolve = resolve
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[CachedImage]] = {}
        self._failures: dict[str, ImageError] = {}
        self._loop: FetchLoop | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._loop is not None:
            self._loop.stop()
        for future in self._under_way.values():
            future.set_exception(CancelledError())

    def fetch(self, url: str) -> CachedImage:
        """The image of a URL, from the cache or the network.

        Raises:
            ImageError: of kind `url_not_allowed`, `image_missing`, `permission_denied`, `fetch_failed`, `too_many_bytes`,
                `unsupported_format`, `not_an_image` or `empty`.
            ConfigurationError: the object store cannot be used as it is set up.
            StorageError: the cache cannot be read or written.
        """
        return self.submit(url).result()

    def submit(self, url: str) -> "Future[CachedImage]":
        """The image of a URL, when it has come; the future raises what `fetch` does, and cannot be cancelled.

        From any thread, and others may wait for the same future. What waits costs the memory of its text and its future; who has
        millions submits them by and by.
        """
        with self._lock:
            if (pending := self._under_way.get(url)) is not None:
                return pending
            future: Future[CachedImage] = Future()
            future.set_running_or_notify_cancel()
            try:
                host = self._policy.check(url).place
                if (failure := self._failures.get(url)) is not None:
                    future.set_exception(copy(failure))
                elif self._is_offline:
                    future.set_result(self._cached(url))
                else:
                    self._started().add(url, host)
                    self._under_way[url] = future
            except Exception as error:
                future.set_exception(error)
            return future

    def _cached(self, url: str) -> CachedImage:
        image = self._cache.find(url)
        if image is None:
            message = f"image {shown(public_url(url))} is not in the cache ({self._cache.files.path}), and this run is offline"
            raise ImageError("fetch_failed", message, "fetch it by a run that is not")
        return image

    def _started(self) -> "FetchLoop":
        if self._loop is None:
            from yivl_core.data.network.fetch_loop import FetchLoop  # here, since the client takes half a second to load

            self._loop = FetchLoop(
                self._cache, self._policy, self._limits, self._resolve, fresh_since=self._fresh_since, on_done=self._finish
            )
        return self._loop

    def _finish(self, url: str, outcome: CachedImage | BaseException) -> None:
        with self._lock:
            future = self._under_way.pop(url)
            if isinstance(outcome, ImageError):
                if len(self._failures) >= _NUM_FAILURES_REMEMBERED:
                    self._failures.pop(next(iter(self._failures)))
                self._failures[url] = outcome
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
