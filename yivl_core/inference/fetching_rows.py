"""Rows -> the same rows, in order, their images fetched that lie behind URLs, ahead of the model that is to see them."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from operator import attrgetter

from yivl_core.ahead import results_ahead
from yivl_core.data.cache.image_cache import CachedImage
from yivl_core.data.images import ImageError, ImageReference
from yivl_core.data.network.fetching import UrlFetcher
from yivl_core.data.network.url_access import implied_urls
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.inference.preparation import PlannedRow

_NUM_ROWS_AHEAD = 1024  # enough for a host that takes seconds to answer; what waits costs a connection at most, and no thread


def find_url_policy(config: InferenceConfig) -> UrlPolicy:
    """Which URLs may be fetched: those that the user allows, and those below a web folder that he has named by itself.

    Raises:
        ConfigurationError: a pattern is none.
    """
    named = config.image_root or config.dataset or config.images
    implied = implied_urls([named] if named else [])
    # Below a root on an object store `ImageStore` reads images itself, and nothing else there was meant.
    return UrlPolicy.of([*config.allow_url, *(place for place in implied if not place.startswith("s3://"))])


def fetch_rows(rows: Iterable[PlannedRow], fetcher: UrlFetcher | None) -> Iterator[PlannedRow]:
    """Rows whose images are on this machine as far as they lie behind URLs that may be fetched, or with the reason why not.

    Args:
        rows: taken up to a thousand ahead, so that a slow answer holds up nobody who asks for the rows before it.
        fetcher: fetches them; None: no URL is allowed.

    Raises:
        ConfigurationError: an object store cannot be used as it is set up.
        StorageError: the cache cannot be read or written.
    """
    if fetcher is None:
        return iter(rows)

    def submit(row: PlannedRow) -> _PendingRow:
        urls = [image.fetched_url for image in row.row.images]
        return _PendingRow(row, [None if url is None else fetcher.submit(url) for url in urls])

    return results_ahead(submit, rows, _NUM_ROWS_AHEAD, attrgetter("num_bytes"))


@dataclass(frozen=True, slots=True)
class _PendingRow:
    """A row whose images are on their way."""

    row: PlannedRow
    futures: list["Future[CachedImage] | None"]

    def result(self) -> PlannedRow:
        """The row, when all of them have come."""
        images = zip(self.row.row.images, self.futures, strict=True)
        return replace(self.row, images=tuple(image if future is None else _fetched(image, future) for image, future in images))


def _fetched(image: ImageReference, future: "Future[CachedImage]") -> ImageReference | ImageError:
    try:
        cached = future.result()
    except ImageError as cause:
        return cause
    return replace(image, address=str(cached.path), root=cached.path.parent, sha256=image.sha256 or cached.sha256)
