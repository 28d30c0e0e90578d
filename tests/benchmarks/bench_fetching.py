"""Images a second from a web server of this machine into a fresh cache, and what the machine could do at most.

    python tests/benchmarks/bench_fetching.py --num-images 10000

The server is a process of its own that sends different JPEG files of about 100 kB over connections that stay open. Beside the
cache: `requests` in 16 threads that write a file each, and clients that read answers off the socket without looking at them: one
keeps nothing, one writes each answer to a file under its digest, as a cache has to. What a disk takes for two new files, which a
cache needs for an image (its content, and the note of its URL), is measured by itself; `--folder` chooses the disk.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGE_BYTES = 100_000
NUM_CONNECTIONS = 16
Figures = dict[str, Any]


def main() -> None:
    """Print a line of JSON for each client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the caches are written; default: a temporary folder")
    arguments = parser.parse_args()
    runs: list[tuple[str, Callable[..., None]]] = [
        ("client that keeps nothing", _plain_client),
        ("client that writes files", _writing_client),
        ("requests in 16 threads", _requests),
        ("UrlFetcher", _fetch),
        ("UrlFetcher, all cached", _fetch),
        ("two new files of nothing", _two_files),
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="yivl-bench-") as folder, _server() as port:
        for name, run in runs:
            output = Path(folder) / run.__name__
            output.mkdir(exist_ok=True)
            print(json.dumps({"what": name, **_measured(run, port, arguments.num_images, output)}), flush=True)


def _measured(run: Callable[..., None], port: int, count: int, folder: Path) -> Figures:
    with get_context("spawn").Pool(1) as pool:  # each client in a process of its own
        return pool.apply(_timed, (run, port, count, folder))


def _timed(run: Callable[..., None], port: int, count: int, folder: Path) -> Figures:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    run(port, count, folder)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "images/s": count / seconds,
        "user ms an image": 1000 * (after.ru_utime - before.ru_utime) / count,
        "system ms an image": 1000 * (after.ru_stime - before.ru_stime) / count,
    }


@contextmanager
def _server() -> Iterator[int]:
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _serve(connection: Connection) -> None:
    asyncio.run(_serve_forever(connection))


async def _serve_forever(connection: Connection) -> None:
    image = _photograph()
    server = await asyncio.get_running_loop().create_server(lambda: _Server(image), "127.0.0.1", 0)
    connection.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _photograph() -> bytes:
    """A JPEG file of about `IMAGE_BYTES` bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((600, 450), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    assert 0.9 < file.tell() / IMAGE_BYTES < 1.1
    return file.getvalue()


class _Server(asyncio.Protocol):
    """Answers each request with the image and the path behind its end, where no decoder looks."""

    def __init__(self, image: bytes) -> None:
        self._image = image
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, _, self._received = self._received.partition(b"\r\n\r\n")
            path = request.split(b" ", 2)[1]
            head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
            self._transport.write(b"".join((head % (len(self._image) + len(path)), self._image, path)))


def _urls(port: int, count: int) -> Iterator[str]:
    return (f"http://127.0.0.1:{port}/images/{number:06}.jpg" for number in range(count))


def _fetch(port: int, count: int, folder: Path) -> None:
    from yivl_core.data.cache.image_cache import ImageCache
    from yivl_core.data.network.fetching import UrlFetcher
    from yivl_core.data.network.url_policy import UrlPolicy

    with UrlFetcher(ImageCache(folder), UrlPolicy.of([f"http://127.0.0.1:{port}"])) as fetcher:
        for future in [fetcher.submit(url) for url in _urls(port, count)]:
            future.result()


def _requests(port: int, count: int, folder: Path) -> None:
    import requests

    def get(numbered: tuple[int, str]) -> None:
        number, url = numbered
        answer = session.get(url, timeout=30)
        answer.raise_for_status()
        (folder / f"{number}.jpg").write_bytes(answer.content)

    with requests.Session() as session, ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=NUM_CONNECTIONS))
        for _ in pool.map(get, enumerate(_urls(port, count))):
            pass


def _plain_client(port: int, count: int, _: Path) -> None:
    asyncio.run(_read_all(port, count, lambda data: None))


def _writing_client(port: int, count: int, folder: Path) -> None:
    def write(data: bytes) -> None:
        name = hashlib.sha256(data).hexdigest()
        new = folder / f"{name}.new"
        new.write_bytes(data)
        new.rename(folder / name)

    asyncio.run(_read_all(port, count, write))


def _two_files(_: int, count: int, folder: Path) -> None:
    for number in range(2 * count):
        os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY))


async def _read_all(port: int, count: int, keep: Callable[[bytes], None]) -> None:
    urls = _urls(port, count)
    await asyncio.gather(*[_read_some(port, urls, keep) for _ in range(NUM_CONNECTIONS)])


async def _read_some(port: int, urls: Iterator[str], keep: Callable[[bytes], None]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    for url in urls:
        path = url.split("/", 3)[-1]
        writer.write(b"GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        keep(await reader.readexactly(int(head.rpartition(b":")[2])))
    writer.close()
    await writer.wait_closed()


if __name__ == "__main__":
    main()
