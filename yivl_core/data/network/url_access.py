"""What a user says about URLs -> what may be fetched, and what fetches it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from yivl_core.data.cache.cache_configuration import default_cache_folder
from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.network.fetching import UrlFetcher
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.data.network.url_settings import UrlSettings
from yivl_core.storage import is_local


def cache_folder(config: UrlSettings) -> Path:
    """Where fetched images are kept."""
    return default_cache_folder() if config.cache is None else Path(config.cache)


def implied_urls(named: Iterable[str]) -> list[str]:
    """The places that a user allows by naming a remote image root, or a remote dataset whose images lie beside it."""
    places = []
    for url in named:
        scheme, separator, rest = url.partition("://")
        if separator and not is_local(url) and scheme in ("http", "https", "s3"):
            places.append(f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}")
    return places


@contextmanager
def open_fetcher(config: UrlSettings, policy: UrlPolicy) -> Iterator[UrlFetcher | None]:
    """What fetches URLs; None where none may be fetched."""
    if policy == UrlPolicy():
        yield None
        return
    cache = ImageCache(cache_folder(config))
    with UrlFetcher(cache, policy, config.fetch, refresh=config.refresh_urls, offline=config.offline) as fetcher:
        yield fetcher
