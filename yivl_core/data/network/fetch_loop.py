"""The event loop that fetches URLs into a cache, in a thread of its own. Only `fetching.py` uses this module.

Of a URL that waits nothing is held but its text and what its asker wants to be told by. Who fetches a URL has claimed it in the
cache, so that no other process does the same; a URL that another process has claimed goes back into the queue.
"""

import asyncio
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from yivl_core.data.cache.image_cache import CachedImage, ImageCache, UrlClaim, UrlEntry
from yivl_core.data.network.downloading import Downloader
from yivl_core.data.network.fetch_limits import FetchLimits
from yivl_core.data.network.host_names import Resolve
from yivl_core.data.network.host_queues import HostQueues
from yivl_core.data.network.object_reading import ObjectReader, md5_of
from yivl_core.data.network.url_parts import UrlParts
from yivl_core.data.network.url_policy import UrlPolicy

_LOOK_AGAIN_S = 0.1  # at a URL that another process has claimed
_TASKS_PER_CONNECTION = 8  # further ones wait for their next try, or to look again
_NUM_NAME_THREADS = 16

OnDone = Callable[[str, CachedImage | BaseException], None]
Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the cache has of a URL that is asked for again."""

    image: CachedImage
    entry: UrlEntry


class FetchLoop:
    """Fetches URLs until it is stopped.

    Args:
        cache: where the images go.
        policy: which URLs may be fetched.
        limits: connections, tries, time and bytes.
        resolve: looks up the addresses of a host.
        fresh_since: what was fetched before this time (seconds since 1970) is asked for again.
        on_done: told of each URL, in the loop's thread, when its image is there or has failed.
    """

    def __init__(
        self,
        cache: ImageCache,
        policy: UrlPolicy,
        limits: FetchLimits,
        resolve: Resolve,
        fresh_since: float,
        on_done: OnDone,
    ) -> None:
        self._cache = cache
        self._policy = policy
        self._limits = limits
        self._resolve = resolve
        self._fresh_since = fresh_since
        self._on_done = on_done
        self._queues = HostQueues[str](limits.connections_per_host, _TASKS_PER_CONNECTION * limits.connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._objects = ObjectReader(policy, limits.max_bytes, resolve)
        started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="yivl-fetch", daemon=True)
        self._thread.start()
        started.result()

    def add(self, url: str, host: Hashable) -> None:
        """Have a URL fetched. From any thread."""
        self._loop.call_soon_threadsafe(self._enqueue, host, url)

    def stop(self) -> None:
        """Give up what is not done, and wait for the end of the thread."""
        self._loop.call_soon_threadsafe(self._is_stopping.set)
        self._thread.join()

    async def _serve(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_stopping = asyncio.Event()
        self._threads = ThreadPoolExecutor(self._limits.connections_per_host, "yivl-fetch")
        name_threads = ThreadPoolExecutor(_NUM_NAME_THREADS, "yivl-names")
        try:
            async with Downloader(self._policy, self._limits, self._resolve, name_threads) as self._downloader:
                started.set_result(None)
                await self._is_stopping.wait()
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)
        finally:
            for threads in (self._threads, name_threads):
                threads.shutdown(wait=False, cancel_futures=True)

    def _enqueue(self, host: Hashable, url: str) -> None:
        self._queues.add(host, url)
        self._start_more()

    def _start_more(self) -> None:
        while not self._is_stopping.is_set() and (taken := self._queues.take()) is not None:
            task = self._loop.create_task(self._work(*taken))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, host: Hashable, url: str) -> None:
        outcome: CachedImage | Exception | None
        try:
            outcome = await self._get(url)
        except Exception as error:
            outcome = error
        finally:
            self._queues.release(host)
        if outcome is None:
            self._loop.call_later(_LOOK_AGAIN_S, self._enqueue, host, url)
        else:
            self._on_done(url, outcome)
        self._start_more()

    async def _get(self, url: str) -> CachedImage | None:
        """The image of a URL; None while somebody else fetches it."""
        image = await self._fresh(url)
        if image is not None:
            return image
        claim = self._cache.claim(url)
        if claim is None:
            return None
        with claim:
            # Once more: the one who had the claim before may have fetched it.
            return await self._fresh(url) or await self._fetch(self._policy.check(url), claim, await self._known(url))

    async def _fresh(self, url: str) -> CachedImage | None:
        """What the cache has of a URL, unless it is to be asked for again."""
        entry = self._cache.entry(url)
        if entry is None or entry.fetched_at < self._fresh_since:
            return None
        return await self._in_thread(self._cache.find, url)

    async def _known(self, url: str) -> _Known | None:
        """What the cache has of a URL that is asked for again."""
        entry = self._cache.entry(url) if self._fresh_since else None
        image = None if entry is None else await self._in_thread(self._cache.find, url)
        return None if entry is None or image is None else _Known(image, entry)

    async def _fetch(self, parts: UrlParts, claim: UrlClaim, known: _Known | None) -> CachedImage:
        if parts.scheme == "s3":
            return await self._fetch_object(parts, claim, known)
        answer = await self._downloader.download(parts, claim.file, None if known is None else known.entry)
        if answer.is_unchanged:
            assert known is not None
            claim.confirm(known.entry)
            return known.image
        return claim.keep(answer.etag, answer.last_modified)

    async def _fetch_object(self, parts: UrlParts, claim: UrlClaim, known: _Known | None) -> CachedImage:
        """With one request for an object that is not known: its ETag is asked for when that is of use."""
        etag = None
        if known is not None:
            etag, md5 = await self._in_thread(self._objects.state, parts)
            if etag == known.entry.etag or (md5 is not None and md5 == await self._in_thread(md5_of, known.image.path)):
                claim.confirm(known.entry, etag)
                return known.image
        claim.file.write(await self._in_thread(self._objects.read, parts))
        return claim.keep(etag)

    async def _in_thread(self, function: Callable[[Argument], Result], argument: Argument) -> Result:
        """What waits for a disk or a store. It must not write to a claimed file, which is closed when the loop is stopped."""
        return await self._loop.run_in_executor(self._threads, function, argument)
