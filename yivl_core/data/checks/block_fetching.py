"""Blocks of rows -> the same blocks, in order, with what became of the URLs that their rows name, fetched side by side.

Rows are looked through here for URLs and parsed again where they are checked: a small part of the time that one fetch takes.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

from yivl_core.data.cache.image_cache import CachedImage
from yivl_core.data.checks.checked_rows import Fetched, RowBlock
from yivl_core.data.checks.image_checks import image_finding
from yivl_core.data.images import ImageError
from yivl_core.data.network.fetching import UrlFetcher
from yivl_core.data.reading import RowReader
from yivl_core.data.references import ImageReference
from yivl_core.data.rows.plain_json import read_plain_object
from yivl_core.data.rows.plain_records import plain_content
from yivl_core.data.rows.raw_row import RawRow, lines_of
from yivl_core.data.rows.strict_json import StrictJsonReader

_NUM_URLS_AHEAD = 1024


@dataclass(frozen=True, slots=True)
class _Waiting:
    block: RowBlock
    futures: Mapping[str, "Future[CachedImage]"]

    @property
    def is_done(self) -> bool:
        return all(future.done() for future in self.futures.values())


def fetch_blocks(blocks: Iterable[RowBlock], fetcher: UrlFetcher) -> Iterator[RowBlock]:
    """Blocks whose URLs have been fetched, or could not be.

    Args:
        blocks: taken as long as no more than a thousand URLs are under way.
        fetcher: fetches them.

    Raises:
        ConfigurationError: an object store cannot be used as it is set up.
        StorageError: the cache cannot be read or written.
    """
    json_reader = StrictJsonReader()
    waiting: deque[_Waiting] = deque()
    num_ahead = 0
    for block in blocks:
        futures = {url: fetcher.submit(url) for url in _urls(block, json_reader)}
        waiting.append(_Waiting(block, futures))
        num_ahead += len(futures)
        while waiting and (num_ahead >= _NUM_URLS_AHEAD or waiting[0].is_done):
            done = waiting.popleft()
            num_ahead -= len(done.futures)
            yield _with_results(done)
    while waiting:
        yield _with_results(waiting.popleft())


def _with_results(done: _Waiting) -> RowBlock:
    fetched = {}
    for url, future in done.futures.items():
        try:
            image = future.result()
            fetched[url] = Fetched(str(image.path), image.sha256, None)
        except ImageError as cause:
            fetched[url] = Fetched(None, None, image_finding(cause))
    return replace(done.block, fetched=fetched) if fetched else done.block


def _urls(block: RowBlock, json_reader: StrictJsonReader) -> Iterator[str]:
    rows = list(block.rows)
    if block.lines is not None and _may_name_urls(block.reader, block.lines.data):
        rows += lines_of(block.lines, block.reader.max_line_bytes)
    for row in rows:
        if row.json is None or _may_name_urls(block.reader, row.json):
            for image in _images(block.reader, row, json_reader):
                try:
                    url = image.url
                except ImageError:  # which the check will tell
                    continue
                if url is not None:
                    yield url


def _images(reader: RowReader, row: RawRow, json_reader: StrictJsonReader) -> tuple[ImageReference, ...]:
    values = None if row.json is None else read_plain_object(row.json)
    if values is not None and reader.is_plain and (content := plain_content(values, reader.purpose)) is not None:
        return reader.locate([address for address in content.get("images", ()) if address is not None])
    return reader.read(row, json_reader).images


def _may_name_urls(reader: RowReader, data: bytes) -> bool:
    return reader.has_remote_images or b"://" in data or rb":\/" in data or rb"\u00" in data
