"""What is in a cache of images, whether it is whole, and what may go. Safe beside processes that use it.

What was used within the last hour stays, since somebody may be about to read it. The last use of a file is looked at once more
before it is removed; at worst, something is fetched again.
"""

import os
import stat
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np

from yivl_core.ahead import work_ahead
from yivl_core.data.cache.cache_configuration import CacheCheck, CacheConfig, CachePruned, CacheUsage, HostUsage, PruneConfig
from yivl_core.data.cache.cache_files import SharedFolder, lock_file
from yivl_core.data.cache.image_cache import BLOBS, URLS, digest_of, read_entry
from yivl_core.data.cache.verdicts import VERDICTS_NAME, count_verdicts, forget_verdicts
from yivl_core.errors import ConfigurationError
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import storage_errors

_IN_USE_NS = 3600 * 10**9
_DAY_NS = 86400 * 10**9
_NUM_READERS = 8
_TELL_EVERY = 500

Item = TypeVar("Item")


def show_cache(config: CacheConfig, on_progress: OnProgress = ignore_progress) -> CacheUsage:
    """What is in a cache. Notes are read, images are not.

    Raises:
        ConfigurationError: there is no such folder.
        StorageError: the disk failed.
    """
    files = _existing(config)
    num_images = num_bytes = 0
    for _, status in _counted("images", _files(files, BLOBS), on_progress):
        if stat.S_ISREG(status.st_mode):
            num_images += 1
            num_bytes += status.st_size
    num_urls, bytes_by_host = Counter[str](), Counter[str]()
    for place, _ in _counted("urls", _files(files, URLS), on_progress):
        if (entry := read_entry(files, place)) is not None:
            parts = urlsplit(entry.url)
            host = f"{parts.scheme}://{parts.netloc}"
            num_urls[host] += 1
            bytes_by_host[host] += entry.num_bytes
    hosts = [HostUsage(host=host, num_urls=num_urls[host], num_bytes=size) for host, size in bytes_by_host.most_common()]
    return CacheUsage(
        folder=str(files.path),
        num_images=num_images,
        num_bytes=num_bytes,
        num_urls=num_urls.total(),
        hosts=tuple(hosts),
        num_unfinished=sum(1 for _ in _unfinished(files)),
        num_verdicts=count_verdicts(config.folder / VERDICTS_NAME),
    )


def verify_cache(config: CacheConfig, on_progress: OnProgress = ignore_progress) -> CacheCheck:
    """Read every image of a cache, and remove what is not what its name says.

    Raises:
        ConfigurationError: there is no such folder.
        StorageError: the disk failed.
    """
    files = _existing(config)
    num_images = num_bytes = num_damaged = 0
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        checked = work_ahead(pool, lambda file: _verify(files, *file), _files(files, BLOBS))
        for is_whole, size in _counted("verify", checked, on_progress):
            num_images += is_whole is True
            num_damaged += is_whole is False
            num_bytes += size
    return CacheCheck(
        folder=str(files.path),
        num_images=num_images,
        num_bytes=num_bytes,
        num_damaged=num_damaged,
        num_left_over=_remove_left_over(files),
        num_urls_lost=_remove_lost_urls(files, on_progress),
    )


def prune_cache(config: PruneConfig, on_progress: OnProgress = ignore_progress) -> CachePruned:
    """Remove the images that nobody used for long, as far as the limits say so; without limits only what leads nowhere.

    Raises:
        ConfigurationError: there is no such folder.
        StorageError: the disk failed.
    """
    files = _existing(config)
    now = time.time_ns()
    last_to_go = _last_to_go(files, config, now, on_progress)
    num_removed = bytes_removed = num_kept = bytes_kept = num_in_use = 0
    for place, status in _counted("prune", _files(files, BLOBS), on_progress):
        is_due = _last_use(status) <= last_to_go
        if is_due and _remove_unless(place, lambda there: now - _last_use(there) < _IN_USE_NS):
            num_removed += 1
            bytes_removed += status.st_size
        else:
            num_in_use += is_due
            num_kept += 1
            bytes_kept += status.st_size
    return CachePruned(
        folder=str(files.path),
        num_removed=num_removed,
        bytes_removed=bytes_removed,
        num_kept=num_kept,
        bytes_kept=bytes_kept,
        num_in_use=num_in_use,
        num_left_over=_remove_left_over(files),
        num_urls_removed=_remove_lost_urls(files, on_progress),
        num_forgotten=_forget(config),
    )


def _forget(config: PruneConfig) -> int:
    if config.unused_days is None:
        return 0
    return forget_verdicts(config.folder / VERDICTS_NAME, time.time() - config.unused_days * _DAY_NS / 1e9)


def _existing(config: CacheConfig) -> SharedFolder:
    if not config.folder.is_dir():
        raise ConfigurationError(f"{config.folder}: there is no such folder; name the cache by --cache, or by YIVL_CACHE")
    return SharedFolder(config.folder)


def _last_to_go(files: SharedFolder, config: PruneConfig, now: int, on_progress: OnProgress) -> int:
    """The last use (ns) of the last image that has to go, of those in the order of their last use; -1 where none has to."""
    by_age = -1 if config.unused_days is None else now - round(config.unused_days * _DAY_NS)
    if config.max_bytes is None:
        return by_age
    uses, sizes = array("q"), array("q")
    for _, status in _counted("look", _files(files, BLOBS), on_progress):
        uses.append(_last_use(status))
        sizes.append(status.st_size)
    last_uses = np.asarray(uses, dtype=np.int64)
    newest_first = np.argsort(-last_uses)
    does_not_fit = np.cumsum(np.asarray(sizes, dtype=np.int64)[newest_first]) > config.max_bytes
    by_size = int(last_uses[newest_first[np.argmax(does_not_fit)]]) if does_not_fit.any() else -1
    return max(by_age, by_size)


def _last_use(status: os.stat_result) -> int:
    return max(status.st_atime_ns, status.st_mtime_ns)


def _files(files: SharedFolder, kind: str) -> Iterator[tuple[str, os.stat_result]]:
    """All files of a kind with what the system tells of them; a link is one, and is not followed."""
    for folder in _entries(f"{files.path}/{kind}"):
        if folder.is_dir(follow_symlinks=False):
            for entry in _entries(folder.path):
                with suppress(FileNotFoundError):
                    yield entry.path, entry.stat(follow_symlinks=False)


def _unfinished(files: SharedFolder) -> Iterator[os.DirEntry[str]]:
    yield from _entries(files.unfinished_place(""))


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with storage_errors(folder), suppress(FileNotFoundError):
        if not os.path.islink(folder):  # noqa: PTH114
            with os.scandir(folder) as entries:
                yield from entries


def _verify(files: SharedFolder, place: str, status: os.stat_result) -> tuple[bool | None, int]:
    """Whether an image is whole (None: somebody has removed it), and the size of a whole one; a damaged one is removed."""
    with storage_errors(place):
        try:
            with files.open(place) as file:
                if digest_of(file) == os.path.basename(place):  # noqa: PTH119
                    with suppress(PermissionError):
                        os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))  # a check is no use
                    return True, status.st_size
        except FileNotFoundError:
            if not stat.S_ISLNK(status.st_mode):
                return None, 0
        with suppress(FileNotFoundError):
            os.unlink(place)  # noqa: PTH108
        return False, 0


def _remove_lost_urls(files: SharedFolder, on_progress: OnProgress) -> int:
    """Remove the notes of URLs whose content is not there, and damaged ones; returns how many."""
    num_lost = 0
    for place, status in _counted("urls", _files(files, URLS), on_progress):
        entry = read_entry(files, place)
        is_lost = entry is None or not os.path.lexists(files.place(BLOBS, entry.sha256))
        if is_lost and not os.path.lexists(
            files.unfinished_place(place.rpartition("/")[2])
        ):  # whose content may be about to come
            num_lost += _remove_unless(place, partial(_is_another, status))
    return num_lost


def _remove_left_over(files: SharedFolder) -> int:
    """Remove unfinished files in which nobody writes; returns how many."""
    num_removed = 0
    for entry in _unfinished(files):
        with storage_errors(entry.path), suppress(FileNotFoundError):
            if time.time_ns() - entry.stat(follow_symlinks=False).st_mtime_ns < _IN_USE_NS:
                continue
            descriptor = None if entry.is_symlink() else lock_file(entry.path)
            if descriptor is not None or entry.is_symlink():
                os.unlink(entry.path)  # noqa: PTH108
                num_removed += 1
            if descriptor is not None:
                os.close(descriptor)
    return num_removed


def _remove_unless(place: str, is_needed: Callable[[os.stat_result], bool]) -> bool:
    """Remove a file, after a last look at it; returns whether it is gone."""
    with storage_errors(place):
        try:
            if is_needed(os.lstat(place)):
                return False
            os.unlink(place)  # noqa: PTH108
        except FileNotFoundError:
            pass
    return True


def _is_another(seen: os.stat_result, there: os.stat_result) -> bool:
    return not os.path.samestat(seen, there)


def _counted(stage: str, items: Iterator[Item], on_progress: OnProgress) -> Iterator[Item]:
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        if done % _TELL_EVERY == 0:
            on_progress(Progress(stage=stage, done=done, total=None, unit="file"))
    if done:
        on_progress(Progress(stage=stage, done=done, total=done, unit="file"))
