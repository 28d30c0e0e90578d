"""A process that fetches URLs, for tests that run several, or kill one: `python fetching_process.py CACHE URL FIRST LAST`.

It prints the number of each image that it has got.
"""

import sys
from concurrent.futures import as_completed
from pathlib import Path

from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.network.fetch_limits import FetchLimits
from yivl_core.data.network.fetching import UrlFetcher
from yivl_core.data.network.url_policy import UrlPolicy


def main() -> None:
    """Fetch what the arguments say."""
    folder, address, first, last = sys.argv[1:]
    limits = FetchLimits(connections_per_host=8)
    with UrlFetcher(ImageCache(Path(folder)), UrlPolicy.of([address]), limits) as fetcher:
        futures = {fetcher.submit(f"{address}/{number}.png"): number for number in range(int(first), int(last))}
        for future in as_completed(futures):
            future.result()
            print(futures[future], flush=True)


if __name__ == "__main__":
    main()
