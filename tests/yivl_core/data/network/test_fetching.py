"""Images from a real web server, into a cache."""

import gc
import gzip
import io
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from concurrent.futures import CancelledError
from contextlib import ExitStack
from pathlib import Path

import pytest

from yivl_core.data.decoding import ImageError
from yivl_core.data.network.fetch_limits import FetchLimits
from yivl_core.data.network.fetching import UrlFetcher
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.errors import StorageError

SECRET = "hunter2"


def failure(fetcher: UrlFetcher, url: str) -> ImageError:
    with pytest.raises(ImageError) as failed:
        fetcher.fetch(url)
    assert SECRET not in "".join(traceback.format_exception(failed.value))
    return failed.value


def files_of(cache) -> list[Path]:
    return [path for path in cache.files.path.rglob("*") if path.is_file()]


# When all is well


def test_an_image_is_fetched_once_and_has_the_bytes_of_the_server(fetcher, web, cache, make_png):
    url = web.image(1)
    image = fetcher().fetch(url)
    assert image.path.read_bytes() == make_png(1)
    assert (image.url, image.num_bytes) == (url, len(make_png(1)))
    assert fetcher().fetch(url) == image == cache.find(url)
    assert web.count(url) == 1
    assert not list((cache.files.path / "unfinished").iterdir())


def test_many_images_are_fetched_side_by_side_and_each_once(fetcher, web, make_png):
    urls = [web.image(number) for number in range(200)]
    threaded = fetcher()
    futures = [threaded.submit(url) for url in urls * 3]
    images = [future.result() for future in futures]
    assert [image.path.read_bytes() for image in images[:200]] == [make_png(number) for number in range(200)]
    assert sorted(web.paths) == sorted(url.removeprefix(web.url) for url in urls)


def test_who_asks_at_the_same_time_shares_one_request(fetcher, web):
    url = web.serve("/slow.png", web.answer(body=b"\x89PNG\r\n\x1a\n" + b"x" * 5000, pause_s=0.2))
    one = fetcher()
    assert one.submit(url) is one.submit(url)
    assert one.fetch(url) == one.fetch(url)
    assert web.count(url) == 1


def test_the_request_is_plain(fetcher, web):
    fetcher().fetch(web.image(1))
    ((_, headers),) = web.requests
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"] == "yivl"
    assert not {"Cookie", "Authorization", "Referer", "If-None-Match"} & set(headers)


def test_cookies_and_proxies_are_not_used(fetcher, web, monkeypatch, make_png):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    web.serve("/a", web.answer(body=make_png(1), headers={"Set-Cookie": "a=b"}))
    one = fetcher()
    one.fetch(f"{web.url}/a?1")
    one.fetch(f"{web.url}/a?2")
    assert all("Cookie" not in headers for _, headers in web.requests)
    assert len(web.requests) == 2


def test_what_is_written_in_a_url_is_what_the_server_gets(fetcher, web, make_png):
    web.serve("/a%20b/%C3%A9%2F..", make_png(1))
    fetcher().fetch(f"{web.url}/a b/é%2F..?sig=a%2Fb+c==&x='#part")
    assert web.paths == ["/a%20b/%C3%A9%2F..?sig=a%2Fb+c==&x='"]


def test_connections_to_one_host_are_bounded_and_used_again(fetcher, web, make_png):
    for number in range(30):
        web.serve(f"/{number}", web.answer(body=make_png(number), pause_s=0.02))
    one = fetcher(limits={"connections_per_host": 3})
    for future in [one.submit(f"{web.url}/{number}") for number in range(30)]:
        future.result()
    assert web.most_open == 3


def test_connections_in_all_are_bounded(fetcher, web, make_png):
    hosts = [f"h{number}.test" for number in range(6)]
    for number in range(5):
        web.serve(f"/{number}", web.answer(body=make_png(number), pause_s=0.02))
    patterns = [f"http://{host}:{web.port}" for host in hosts]
    one = fetcher(*patterns, limits={"connections": 4, "connections_per_host": 2}, resolve=lambda *_: ["127.0.0.1"])
    for future in [one.submit(f"{pattern}/{number}") for pattern in patterns for number in range(5)]:
        future.result()
    assert web.most_open == 4


def test_a_host_that_does_not_answer_holds_up_no_other(fetcher, web, make_png):
    web.serve("/slow", web.answer(body=make_png(0), pause_s=1.5))
    slow, fast = f"http://slow.test:{web.port}", f"http://fast.test:{web.port}"
    one = fetcher(slow, fast, limits={"connections_per_host": 2}, resolve=lambda *_: ["127.0.0.1"])
    waiting = [one.submit(f"{slow}/slow?{number}") for number in range(10)]
    web.image(1)
    one.fetch(f"{fast}/1.png")
    assert not any(future.done() for future in waiting)


def test_pending_urls_cost_little_memory(fetcher, web):
    web.serve("/wait", web.answer(pause_s=0.3))
    one = fetcher(limits={"connections_per_host": 1})
    one.submit(f"{web.url}/wait")
    gc.collect()
    before = len(gc.get_objects())
    futures = [one.submit(f"{web.url}/wait?{number}") for number in range(2000)]
    time.sleep(0.1)
    per_url = (len(gc.get_objects()) - before) / len(futures)
    assert per_url < 12  # a task with its coroutines and timers has more than thirty


# What may pass is tried again


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(fetcher, web, make_png, status):
    url = web.serve("/a", web.answer(status=status), web.answer(status=status), make_png(1))
    fetcher().fetch(url)
    assert web.count(url) == 3


def test_after_the_last_try_the_reason_is_told(fetcher, web):
    url = web.serve(f"/a?token={SECRET}".partition("?")[0], web.answer(status=503)) + f"?token={SECRET}"
    error = failure(fetcher(limits={"num_tries": 3}), url)
    assert error.kind == "fetch_failed"
    assert error.message == f'image "{web.url}/a?token=..." cannot be fetched: the server answers 503 (3 tries)'
    assert error.remedy == "run it again later, or take the image out"
    assert web.count(url) == 3


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, "image_missing", "is not to be had: the server answers 404"),
        (410, "image_missing", "is not to be had: the server answers 410"),
        (401, "permission_denied", "is not to be had: the server answers 401"),
        (403, "permission_denied", "is not to be had: the server answers 403"),
        (400, "fetch_failed", "cannot be fetched: the server answers 400"),
        (418, "fetch_failed", "cannot be fetched: the server answers 418"),
        (501, "fetch_failed", "cannot be fetched: the server answers 501"),
        (304, "fetch_failed", "cannot be fetched: the server answers 304"),
        (204, "fetch_failed", "cannot be fetched: the server answers 204"),
    ],
)
def test_what_does_not_pass_is_not_tried_again_by_the_same_fetcher(fetcher, web, status, kind, message):
    url = web.serve("/a", web.answer(status=status))
    one = fetcher()
    for _ in range(3):
        error = failure(one, url)
        assert error.kind == kind
        assert error.message == f'image "{url}" {message}'
    assert web.count(url) == 1


def test_the_server_is_left_alone_as_long_as_it_asks_for_up_to_a_bound(fetcher, web, make_png):
    url = web.serve("/a", web.answer(status=429, headers={"Retry-After": "1"}), make_png(1))
    started = time.monotonic()
    fetcher(limits={"max_retry_after_s": 5}).fetch(url)
    assert 1 <= time.monotonic() - started < 4
    for later in ("3600", "Fri, 31 Dec 2100 23:59:59 GMT"):
        url = web.serve(f"/{later[0]}", web.answer(status=503, headers={"Retry-After": later}), make_png(1))
        started = time.monotonic()
        fetcher(limits={"max_retry_after_s": 0.3}).fetch(url)
        assert 0.3 <= time.monotonic() - started < 2


@pytest.mark.parametrize("text", ["soon", "-5", "Fri, 31 Dec 1999 23:59:59 GMT", "1e9", "99999999999999999999" * 20])
def test_odd_wishes_of_a_server_are_no_trouble(fetcher, web, make_png, text):
    url = web.serve("/a", web.answer(status=503, headers={"Retry-After": text}), make_png(1))
    fetcher(limits={"max_retry_after_s": 0.1}).fetch(url)


def test_a_connection_that_breaks_is_tried_again(fetcher, web, make_png):
    cut = web.answer(body=make_png(1)[:40], headers={"Content-Length": str(len(make_png(1)))})
    url = web.serve("/a", cut, make_png(1))
    assert fetcher().fetch(url).path.read_bytes() == make_png(1)
    assert web.count(url) == 2
    url = web.serve("/b", cut)
    assert "the answer is cut off (2 tries)" in failure(fetcher(limits={"num_tries": 2}), url).message


def test_a_host_that_refuses_connections_is_tried_again(fetcher):
    started = time.monotonic()
    error = failure(fetcher("http://127.0.0.1:9", limits={"num_tries": 2}), f"http://127.0.0.1:9/a?key={SECRET}")
    assert error.kind == "fetch_failed"
    assert "cannot be fetched: the connection fails (Connection refused) (2 tries)" in error.message
    assert time.monotonic() - started < 5


def test_a_name_that_nobody_knows_is_not_tried_again(fetcher):
    asked = []

    def unknown(host: str, _: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    error = failure(fetcher("https://", resolve=unknown), "https://nowhere.test/a")
    assert error.message == 'image "https://nowhere.test/a" cannot be fetched: there is no host of this name'
    assert asked == ["nowhere.test"]
    error = failure(fetcher("https://", resolve=lambda *_: []), "https://nowhere.test/a")
    assert error.message.endswith("there is no host of this name")


def test_a_name_server_that_fails_or_does_not_answer_is_asked_again(fetcher):
    def failing(*_: object) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    error = failure(fetcher("https://", resolve=failing, limits={"num_tries": 2}), "https://a.test/a")
    assert "its host cannot be looked up (2 tries)" in error.message
    released = threading.Event()
    slow = fetcher("https://", resolve=lambda *_: released.wait(5), limits={"num_tries": 1, "connect_timeout_s": 0.2})
    assert failure(slow, "https://a.test/a").kind == "fetch_failed"
    released.set()


# Time and size


def test_a_connection_that_is_not_accepted_is_not_waited_for(fetcher):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        place = server.getsockname()
        for _ in range(4):  # what the system accepts without the server, and more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(place)
        url = f"http://127.0.0.1:{place[1]}"
        error = failure(fetcher(url, limits={"connect_timeout_s": 0.2, "num_tries": 2}), f"{url}/a")
    assert error.message == f'image "{url}/a" cannot be fetched: no connection within 0.2 s (2 tries)'


def test_a_server_that_says_nothing_is_not_waited_for(fetcher, web, make_png):
    url = web.serve("/a", web.answer(body=make_png(1), pause_s=1.5))
    error = failure(fetcher(limits={"slow_after_s": 0.2, "num_tries": 2}), url)
    assert "nothing comes for 0.2 s (2 tries)" in error.message


def test_a_trickle_is_ended_although_something_comes_all_the_time(fetcher, web):
    trickle = web.answer(body=b"\x89PNG\r\n\x1a\n" + b"x" * 3000, pause_s=0.05, piece=10)
    url = web.serve("/a", trickle)
    started = time.monotonic()
    error = failure(fetcher(limits={"slow_after_s": 0.4, "min_bytes_per_s": 1000, "num_tries": 1}), url)
    assert "fewer than 1000 bytes a second come" in error.message
    assert time.monotonic() - started < 2
    url = web.serve("/b", web.answer(body=b"\x89PNG\r\n\x1a\n" + b"x" * 300, pause_s=0.02, piece=10))
    fetcher(limits={"slow_after_s": 0.2, "min_bytes_per_s": 50}).fetch(url)


def test_a_try_has_an_end_however_much_comes(fetcher, web):
    url = web.serve("/a", web.answer(body=b"\x89PNG\r\n\x1a\n" + b"x" * 300_000, pause_s=0.05, piece=1000))
    error = failure(fetcher(limits={"total_timeout_s": 0.5, "min_bytes_per_s": 1, "num_tries": 1}), url)
    assert "it took more than 0.5 s" in error.message


@pytest.mark.parametrize("sends_length", [True, False])
def test_an_image_that_is_too_large_is_not_read_to_its_end(fetcher, web, cache, sends_length):
    body = b"\x89PNG\r\n\x1a\n" + b"x" * 3_000_000
    url = web.serve("/a", web.answer(body=body, sends_length=sends_length))
    one = fetcher(limits={"max_bytes": 100_000})
    error = failure(one, url)
    assert (error.kind, error.message) == ("too_many_bytes", f'image "{url}" is larger than 100,000 bytes')
    assert web.count(url) == 1
    assert not files_of(cache)
    body = body[:100_000]
    assert one.fetch(web.serve("/b", web.answer(body=body, sends_length=sends_length))).num_bytes == 100_000


# What is no image


def zip_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"x" * 2000)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"<!DOCTYPE html><html><body>Please log in" + b" " * 5000, "not_an_image", "the file is an HTML page, not an image"),
        (b"\n <HTML><svg/></HTML>", "not_an_image", "the file is an HTML page, not an image"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format", "the file is SVG"),
        (b"%PDF-1.7 ...", "unsupported_format", "the file is PDF"),
        (zip_archive(), "not_an_image", "the file is a ZIP archive"),
        (gzip.compress(b"x" * 5000, mtime=0), "not_an_image", "the file is compressed with gzip"),
        (b"\0" * 257 + b"ustar" + b"\0" * 3000, "not_an_image", "the file is a tar archive"),
        (b"\x00\x00\x00\x20ftypavif" + b"\0" * 3000, "unsupported_format", "HEIC, AVIF or video"),
        (b'{"error": "no"}', "not_an_image", "the file is not an image"),
        (b"", "empty", "the file has no content"),
    ],
)
def test_what_is_no_image_is_refused_by_its_content(fetcher, web, cache, body, kind, message):
    url = web.serve("/a.png", web.answer(body=body, headers={"Content-Type": "image/png"}))
    error = failure(fetcher(), url)
    assert error.kind == kind
    assert message in error.message
    assert error.message.startswith(f'image "{url}": ')
    assert not files_of(cache)


def test_the_rest_of_what_is_no_image_is_not_read(fetcher, web):
    body = b"%PDF" + b"x" * 50_000
    url = web.serve("/a", web.answer(body=body, pause_s=0.1, piece=2000))
    started = time.monotonic()
    assert failure(fetcher(), url).kind == "unsupported_format"
    assert time.monotonic() - started < 1.5  # the whole takes 2.5 s


def test_a_head_that_comes_in_pieces_is_looked_at_as_a_whole(fetcher, web, make_png):
    url = web.serve("/a", web.answer(body=make_png(1), pause_s=0.01, piece=5))
    fetcher(limits={"min_bytes_per_s": 1}).fetch(url)


def test_a_compressed_answer_is_refused(fetcher, web, make_png):
    body = gzip.compress(make_png(1))
    error = failure(fetcher(), web.serve("/a", web.answer(body=body, headers={"Content-Encoding": "gzip"})))
    assert error.kind == "unsupported_format"
    assert 'comes compressed ("gzip") although it was not asked for so' in error.message


# What is cached


def test_a_damaged_file_is_noticed_and_fetched_again(fetcher, web, make_png):
    url = web.image(1)
    image = fetcher().fetch(url)
    image.path.write_bytes(make_png(1)[:-3] + b"xyz")
    assert fetcher().fetch(url).path.read_bytes() == make_png(1)
    assert web.count(url) == 2


def test_a_refresh_keeps_what_has_not_changed_and_asks_once(fetcher, web, make_png, cache):
    first = web.answer(body=make_png(1), headers={"ETag": '"one"', "Last-Modified": "Fri, 31 Dec 1999 23:59:59 GMT"})
    url = web.serve("/a", first, web.answer(status=304), web.answer(body=make_png(2), headers={"ETag": '"two"'}))
    image = fetcher().fetch(url)
    refreshing = fetcher(refresh=True)
    assert refreshing.fetch(url) == refreshing.fetch(url) == image
    assert web.count(url) == 2
    assert web.requests[1][1]["If-None-Match"] == '"one"'
    assert web.requests[1][1]["If-Modified-Since"] == "Fri, 31 Dec 1999 23:59:59 GMT"
    assert fetcher(refresh=True).fetch(url).path.read_bytes() == make_png(2)
    assert cache.entry(url).etag == '"two"'
    assert fetcher().fetch(url).path.read_bytes() == make_png(2)
    assert web.count(url) == 3
    fetcher(refresh=True).fetch(url)
    assert web.requests[3][1]["If-None-Match"] == '"two"'
    assert "If-Modified-Since" not in web.requests[3][1]


def test_a_refresh_does_not_ask_whether_something_changed_that_is_lost(fetcher, web, make_png):
    url = web.serve("/a", web.answer(body=make_png(1), headers={"ETag": '"one"'}))
    fetcher().fetch(url).path.unlink()
    assert fetcher(refresh=True).fetch(url).path.read_bytes() == make_png(1)
    assert "If-None-Match" not in web.requests[1][1]


def test_offline_only_what_is_cached_is_given(fetcher, web, cache):
    url, other = web.image(1), f"{web.image(2)}?sig={SECRET}"
    image = fetcher().fetch(url)
    offline = fetcher(offline=True)
    num_threads = threading.active_count()
    assert offline.fetch(url) == image
    error = failure(offline, other)
    assert error.kind == "fetch_failed"
    assert f'image "{web.url}/2.png?sig=..." is not in the cache ({cache.files.path}), and this run is offline' in error.message
    assert failure(offline, "file:///etc/passwd").kind == "url_not_allowed"
    assert web.count(url) == 1
    assert threading.active_count() == num_threads


def test_the_client_is_loaded_for_the_first_url_that_has_to_be_fetched():
    code = """
import sys
from pathlib import Path
from yivl_core.data.network.fetching import UrlFetcher
from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.network.url_policy import UrlPolicy
for offline in (True, False):
    with UrlFetcher(ImageCache(Path("nowhere")), UrlPolicy(), offline=offline) as fetcher:
        assert fetcher.submit("https://a.test/").exception().kind == "url_not_allowed"
sys.exit(str([name for name in ("aiohttp", "s3fs", "botocore") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_what_has_not_come_at_the_end_is_given_up(cache, web, make_png):
    web.serve("/a", web.answer(body=make_png(1), pause_s=0.5))
    started = time.monotonic()
    with UrlFetcher(cache, UrlPolicy.of([web.url]), FetchLimits(connections_per_host=2)) as fetcher:
        futures = [fetcher.submit(f"{web.url}/a?{number}") for number in range(50)]
    assert time.monotonic() - started < 3
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=0)
    assert not files_of(cache)


def test_a_full_disk_is_no_fault_of_the_image(fetcher, web, cache, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    url = web.image(1)
    one = fetcher()
    fetcher().fetch(web.image(2))
    monkeypatch.setattr(os, "write", full)
    future = one.submit(url)
    error = future.exception()
    monkeypatch.undo()
    assert isinstance(error, StorageError)
    assert "the disk is full" in str(error)
    assert str(cache.files.path) in str(error)


# Secrets


def test_no_secret_is_stored_logged_or_told(fetcher, web, cache, make_png, caplog):
    caplog.set_level(logging.DEBUG)
    query = f"?X-Amz-Signature={SECRET}&size=2#{SECRET}"
    userinfo = web.url.replace("http://", f"http://ann:{SECRET}@")
    web.serve("/a", web.answer(body=make_png(1), headers={"ETag": '"1"'}))
    web.serve("/302", web.answer(status=302, headers={"Location": f"http://ann:{SECRET}@127.0.0.1:9/?token={SECRET}"}))
    web.serve("/loop", web.answer(status=302, headers={"Location": f"/loop?token={SECRET}"}))
    web.serve("/html", b"<html>")
    web.serve("/cut", web.answer(body=make_png(1)[:40], headers={"Content-Length": "500"}))
    one = fetcher(limits={"num_tries": 2})
    image = one.fetch(f"{userinfo}/a{query}")
    assert image.url == f"{web.url}/a?X-Amz-Signature=...&size=2"
    assert SECRET in web.paths[0]
    for path in ("302", "loop", "html", "cut", "missing"):
        assert "127.0.0.1" in failure(one, f"{userinfo}/{path}{query}").message
    failure(fetcher("https://"), f"{userinfo}/a{query}")
    failure(fetcher(offline=True), f"{userinfo}/b{query}")
    refreshing = fetcher(refresh=True)
    refreshing.fetch(f"{userinfo}/a{query}")
    found = [
        path
        for path in cache.files.path.rglob("*")
        if SECRET in str(path) or (path.is_file() and SECRET.encode() in path.read_bytes())
    ]
    assert found == []
    assert len(files_of(cache)) == 2
    assert SECRET not in caplog.text
    assert SECRET not in repr(one.__dict__["_failures"].values())


def test_user_and_password_are_sent_to_their_host_alone(fetcher, web, make_png):
    web.serve("/a", web.answer(status=302, headers={"Location": "/b"}))
    web.serve("/b", web.answer(status=302, headers={"Location": f"http://other.test:{web.port}/c"}))
    web.serve("/c", make_png(1))
    one = fetcher(f"http://first.test:{web.port}", f"http://other.test:{web.port}", resolve=lambda *_: ["127.0.0.1"])
    one.fetch(f"http://ann:p%40w@first.test:{web.port}/a")
    assert [headers.get("Authorization") for _, headers in web.requests] == ["Basic YW5uOnBAdw=="] * 2 + [None]
