import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from yivl_core.data.cache.cache_configuration import default_cache_folder
from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.errors import StorageError

URL = "https://ann:hunter2@images.test/a.png?sig=hunter2&size=2"


def keep(cache: ImageCache, url: str, data: bytes, **validators: str):
    claim = cache.claim(url)
    assert claim is not None
    with claim:
        claim.file.write(data[:3])
        claim.file.write(data[3:])
        return claim.keep(**validators)


def test_content_is_found_by_url_and_by_digest(cache):
    image = keep(cache, URL, b"content", etag='"1"')
    assert image.path.read_bytes() == b"content"
    assert image.sha256 == hashlib.sha256(b"content").hexdigest()
    assert (image.num_bytes, image.url) == (7, "https://images.test/a.png?sig=...&size=2")
    assert ImageCache(cache.files.path).find(URL) == image
    assert cache.find_content(image.sha256) == image.path
    assert cache.find(URL + "0") is None
    assert cache.find_content("0" * 64) is None


def test_nothing_is_made_before_something_is_kept(tmp_path):
    cache = ImageCache(tmp_path / "new")
    assert cache.find(URL) is None
    assert cache.find_content("0" * 64) is None
    assert not (tmp_path / "new").exists()


def test_the_same_content_is_kept_once_whatever_it_came_from(cache):
    image = keep(cache, URL, b"content")
    changed_at = image.path.stat().st_mtime_ns
    assert keep(cache, "https://other.test/", b"content").path == image.path
    assert cache.add_bytes(b"content").path == image.path
    assert cache.add_bytes(b"other").path != image.path
    assert image.path.stat().st_mtime_ns == changed_at
    assert len([path for path in cache.files.path.rglob("*") if path.is_file()]) == 4


def test_no_secret_of_a_url_is_written(cache):
    keep(cache, URL, b"content")
    paths = [path for path in cache.files.path.rglob("*") if path.is_file()]
    assert len(paths) == 2
    assert not any(b"hunter2" in path.read_bytes() or "hunter2" in str(path) for path in paths)


@pytest.mark.parametrize("damage", [b"", b"contenT", b"content and more"])
def test_damaged_content_counts_as_missing_and_is_replaced(cache, damage):
    image = keep(cache, URL, b"content")
    image.path.write_bytes(damage)
    assert cache.find(URL) is None
    assert not image.path.exists()
    image.path.write_bytes(damage)
    assert cache.add_bytes(b"content").path.read_bytes() == b"content"
    image.path.write_bytes(damage)
    assert keep(cache, URL, b"content").path.read_bytes() == b"content"


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"[]",
        b'{"url": 5}',
        json.dumps({"url": "", "sha256": "../../../etc/passwd", "num_bytes": 1, "fetched_at": 0}).encode(),
    ],
)
def test_a_damaged_note_of_a_url_is_none(cache, note):
    keep(cache, URL, b"content")
    (path,) = cache.files.path.glob("urls/*/*")
    path.write_bytes(note)
    assert cache.find(URL) is None
    keep(cache, URL, b"content")
    assert cache.find(URL) is not None


def test_what_is_no_digest_leads_nowhere(cache, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    cache.add_bytes(b"x")
    for text in ("", "../../secret", str(tmp_path / "secret"), "A" * 64, "0" * 63 + "\n"):
        assert cache.find_content(text) is None


def test_links_in_the_cache_lead_nowhere(cache, tmp_path):
    image = keep(cache, URL, b"content")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"content")
    image.path.unlink()
    image.path.symlink_to(outside / "file")
    assert cache.find(URL) is None
    assert keep(cache, URL, b"content").path.is_symlink() is False
    assert (outside / "file").read_bytes() == b"content"
    (entry,) = cache.files.path.glob("urls/*/*")
    entry.rename(outside / "entry")
    entry.symlink_to(outside / "entry")
    assert cache.find(URL) is None
    unfinished = cache.files.path / "unfinished"
    name = hashlib.sha256(URL.encode()).hexdigest()
    (unfinished / f"{name}.json").symlink_to(outside / "file")
    with pytest.raises(StorageError):
        cache.claim(URL)
    assert (outside / "file").read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["blobs", "urls", "unfinished"])
def test_a_folder_of_the_cache_that_is_a_link_is_refused(tmp_path, kind):
    (tmp_path / "outside").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / kind).symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match=f"cache/{kind}: this is a symbolic link, and a cache has none"):
        keep(ImageCache(tmp_path / "cache"), URL, b"content")
    assert not list((tmp_path / "outside").iterdir())


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    assert keep(ImageCache(tmp_path / "cache"), URL, b"content").path.is_relative_to(tmp_path / "disk")


def test_a_pipe_in_place_of_content_is_not_waited_for(cache):
    image = keep(cache, URL, b"content")
    image.path.unlink()
    os.mkfifo(image.path)
    assert cache.find(URL) is None


def test_a_url_is_claimed_by_one_at_a_time(cache):
    claim = cache.claim(URL)
    assert claim is not None
    with claim:
        assert cache.claim(URL) is None
        assert ImageCache(cache.files.path).claim(URL) is None
        other = cache.claim("https://other.test/")
        assert other is not None
        with other:
            pass
    again = cache.claim(URL)
    assert again is not None
    with again:
        pass
    assert not list((cache.files.path / "unfinished").iterdir())


def test_of_many_threads_one_fetches_and_the_others_find_it(cache):
    fetched, found = [], []

    def get() -> None:
        while (image := cache.find(URL)) is None:
            if (claim := cache.claim(URL)) is None:
                continue
            with claim:
                if cache.find(URL) is None:
                    claim.file.write(b"content")
                    fetched.append(claim.keep())
        found.append(image)

    threads = [threading.Thread(target=get) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert found == fetched * 16


def test_what_a_killed_process_left_is_written_anew(cache):
    claim = cache.claim(URL)
    (path,) = (cache.files.path / "unfinished").iterdir()
    claim.__exit__(None, None, None)
    path.write_bytes(b"left over, and longer than the content")
    assert keep(cache, URL, b"content").path.read_bytes() == b"content"


def test_what_was_dropped_is_not_in_the_content(cache):
    with cache.claim(URL) as claim:
        claim.file.write(b"a failed try")
        claim.file.restart()
        claim.file.write(b"content")
        image = claim.keep()
    assert image.path.read_bytes() == b"content"
    assert image.sha256 == hashlib.sha256(b"content").hexdigest()


def test_a_note_is_renewed_without_its_content(cache):
    image = keep(cache, URL, b"content", etag='"1"', last_modified="then")
    before = cache.entry(URL)
    with cache.claim(URL) as claim:
        claim.confirm(before)
    after = cache.entry(URL)
    assert after.fetched_at > before.fetched_at
    assert after.model_copy(update={"fetched_at": before.fetched_at}) == before
    with cache.claim(URL) as claim:
        claim.confirm(after, etag='"2"')
    assert cache.entry(URL).etag == '"2"'
    assert cache.find(URL) == image


def test_what_a_server_sends_for_asking_again_is_bounded(cache):
    keep(cache, URL, b"content", etag="x" * 100_000, last_modified="then")
    assert (cache.entry(URL).etag, cache.entry(URL).last_modified) == (None, "then")


def test_use_is_noted_and_the_time_of_change_stays(cache):
    image = keep(cache, URL, b"content")
    os.utime(image.path, (1000, 2000))
    cache.find(URL)
    status = image.path.stat()
    assert status.st_mtime == 2000
    assert time.time() - status.st_atime < 60


def test_the_folder_is_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("YIVL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_cache_folder() == Path("/home/ann/.cache/yivl")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_folder() == Path("/xdg/yivl")
    monkeypatch.setenv("YIVL_CACHE", "/there")
    assert default_cache_folder() == Path("/there")
