import os
import time

import pytest

from yivl_core.data.cache.cache_configuration import CacheConfig, HostUsage, PruneConfig
from yivl_core.data.cache.cache_upkeep import prune_cache, show_cache, verify_cache
from yivl_core.errors import ConfigurationError

HOUR, DAY = 3600, 86400


def keep(cache, url, data):
    with cache.claim(url) as claim:
        claim.file.write(data)
        return claim.keep()


@pytest.fixture
def filled(cache):
    """Ten images of ten bytes, the first one used ten days ago, the last one a day; two URLs of the last."""
    for number in range(10):
        image = keep(cache, f"https://h{number % 2}.test/{number}", b"%010d" % number)
        used_at = time.time() - (10 - number) * DAY
        os.utime(image.path, (used_at, used_at - DAY))
    keep(cache, "s3://bucket/9", b"%010d" % 9)
    os.utime(image.path, (used_at, used_at))
    return cache


def config_of(cache, **limits):
    return PruneConfig(cache=str(cache.files.path), **limits) if limits else CacheConfig(cache=str(cache.files.path))


def there(cache):
    return {number for number in range(10) if cache.find(f"https://h{number % 2}.test/{number}")}


def test_what_is_there_is_told_by_host(filled):
    (filled.files.path / "unfinished" / "x").write_bytes(b"")
    seen = []
    usage = show_cache(config_of(filled), seen.append)
    assert usage.folder == str(filled.files.path)
    assert (usage.num_images, usage.num_bytes, usage.num_urls, usage.num_unfinished) == (10, 100, 11, 1)
    assert usage.hosts == (
        HostUsage(host="https://h0.test", num_urls=5, num_bytes=50),
        HostUsage(host="https://h1.test", num_urls=5, num_bytes=50),
        HostUsage(host="s3://bucket", num_urls=1, num_bytes=10),
    )
    assert [(one.stage, one.done, one.total) for one in seen] == [("images", 10, 10), ("urls", 11, 11)]


def test_a_cache_without_damage_stays_as_it_is(filled):
    before = {path: path.stat()[:9] for path in filled.files.path.rglob("*")}
    check = verify_cache(config_of(filled))
    assert (check.num_images, check.num_bytes) == (10, 100)
    assert (check.num_damaged, check.num_urls_lost, check.num_left_over) == (0, 0, 0)
    assert {path: path.stat()[:9] for path in filled.files.path.rglob("*")} == before


def test_damage_is_found_and_removed(filled, tmp_path):
    paths = sorted(filled.files.path.glob("blobs/*/*"))
    paths[0].write_bytes(b"other")
    paths[1].unlink()
    paths[1].symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(b"kept")
    next(filled.files.path.glob("urls/*/*")).write_bytes(b"{")
    check = verify_cache(config_of(filled))
    assert (check.num_images, check.num_damaged) == (8, 2)
    assert check.num_urls_lost >= 3
    assert not paths[0].exists()
    assert not paths[1].is_symlink()
    assert (tmp_path / "secret").read_bytes() == b"kept"
    again = verify_cache(config_of(filled))
    assert (again.num_images, again.num_damaged, again.num_urls_lost) == (8, 0, 0)


def test_without_limits_no_image_goes(filled):
    pruned = prune_cache(PruneConfig(cache=str(filled.files.path)))
    assert (pruned.num_removed, pruned.num_kept, pruned.bytes_kept, pruned.num_urls_removed) == (0, 10, 100, 0)


@pytest.mark.parametrize(("max_bytes", "num_kept"), [(0, 0), (9, 0), (10, 1), (35, 3), (99, 9), (100, 10), (1000, 10)])
def test_the_images_used_last_are_kept_up_to_the_limit(filled, max_bytes, num_kept):
    pruned = prune_cache(config_of(filled, max_bytes=max_bytes))
    assert (pruned.num_kept, pruned.bytes_kept) == (num_kept, 10 * num_kept)
    assert (pruned.num_removed, pruned.bytes_removed) == (10 - num_kept, 100 - 10 * num_kept)
    assert pruned.num_urls_removed == 10 - num_kept + (num_kept == 0)
    assert there(filled) == set(range(10 - num_kept, 10))


def test_images_that_nobody_used_for_days_go(filled):
    pruned = prune_cache(config_of(filled, unused_days=4.5))
    assert pruned.num_removed == 6
    assert there(filled) == {6, 7, 8, 9}
    pruned = prune_cache(config_of(filled, unused_days=2.5, max_bytes=1000))
    assert pruned.num_kept == 4  # they have been used just now


def test_what_was_used_within_the_last_hour_stays(filled):
    filled.find("https://h0.test/0")
    pruned = prune_cache(config_of(filled, max_bytes=0))
    assert (pruned.num_kept, pruned.num_in_use) == (1, 1)
    assert there(filled) == {0}


def test_content_that_is_used_while_others_are_removed_stays(filled, monkeypatch):
    """Between the look at all and the removal of one, somebody finds it."""
    from yivl_core.data.cache import cache_upkeep

    look = cache_upkeep._last_to_go

    def look_and_use(*arguments):
        found = look(*arguments)
        filled.find("https://h1.test/3")
        return found

    monkeypatch.setattr(cache_upkeep, "_last_to_go", look_and_use)
    prune_cache(config_of(filled, max_bytes=20))
    assert there(filled) == {3, 8, 9}


def test_content_stays_as_long_as_it_is_kept_although_one_of_its_urls_is_lost(filled):
    next(path for path in filled.files.path.glob("urls/*/*") if b"s3://bucket" in path.read_bytes()).unlink()
    prune_cache(config_of(filled, max_bytes=10))
    assert there(filled) == {9}


def test_left_overs_of_killed_processes_go_and_files_that_are_written_stay(filled):
    claim = filled.claim("https://new.test/")
    old = filled.files.path / "unfinished" / "old"
    new = filled.files.path / "unfinished" / "new"
    for path in (old, new):
        path.write_bytes(b"x")
    (claimed,) = {*(filled.files.path / "unfinished").iterdir()} - {old, new}
    for path in (old, claimed):
        os.utime(path, (0, time.time() - 2 * HOUR))
    with claim:
        assert prune_cache(PruneConfig(cache=str(filled.files.path))).num_left_over == 1
        assert not old.exists()
        assert new.exists()
        claim.file.write(b"content")
        claim.keep()
    assert filled.find("https://new.test/").path.read_bytes() == b"content"


def test_a_note_whose_content_is_about_to_come_stays(filled):
    """As it is for a moment in `UrlClaim.keep`."""
    with filled.claim("https://new.test/") as claim:
        claim.file.write(b"content")
        claim._note(filled.entry("https://h0.test/0").model_copy(update={"sha256": claim.file.sha256}))
        assert prune_cache(PruneConfig(cache=str(filled.files.path))).num_urls_removed == 0
    assert prune_cache(PruneConfig(cache=str(filled.files.path))).num_urls_removed == 1


@pytest.mark.parametrize("work", [show_cache, verify_cache, prune_cache])
def test_a_folder_that_is_not_there_is_told_and_an_empty_one_is_a_cache(work, tmp_path):
    with pytest.raises(ConfigurationError, match=r"new: there is no such folder; name the cache by --cache, or by YIVL_CACHE"):
        work(PruneConfig(cache=str(tmp_path / "new")))
    assert work(PruneConfig(cache=str(tmp_path))).folder == str(tmp_path)
