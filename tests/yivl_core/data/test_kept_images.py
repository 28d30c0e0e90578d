"""Images that were fetched are found again by their content, and others are not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.images import ImageError, ImageReference, ImageStore


def test_an_image_that_was_fetched_is_found_in_any_cache_that_has_it(tmp_path: Path, make_png: Callable[[int], bytes]) -> None:
    kept = ImageCache(tmp_path / "cache").add_bytes(make_png(1))
    uri = "https://ann:pw@example.com/a.png"
    noted = ImageReference(uri="a.png", address=str(kept.path), root=kept.path.parent, sha256=kept.sha256)
    named = ImageReference(uri="a.png", address=uri, root=tmp_path, sha256=kept.sha256)
    assert ImageStore().load(noted).info.path == str(kept.path)
    moved = ImageCache((tmp_path / "cache").rename(tmp_path / "moved"))
    for image in (noted, named, dataclasses.replace(named, address="a.png", root="https://example.com/in")):
        assert ImageStore(cache=moved).load(image).info.path == str(moved.find_content(kept.sha256))
        assert ImageStore(cache=moved).find(image).num_bytes == kept.num_bytes
    other = ImageStore(cache=ImageCache(tmp_path / "other"))
    for image, place in ((noted, str(kept.path)), (named, "https://example.com/a.png")):
        with pytest.raises(ImageError) as caught:
            other.load(image)
        assert caught.value.kind == "image_missing"
        assert str(caught.value) == (
            f'image "a.png" is no longer there ({place}), nor in the cache ({tmp_path / "other"}); '
            "validate the dataset again, or name the cache that has it"
        )
    with pytest.raises(ImageError, match=r"is no longer there \(.*\); validate the dataset again"):
        ImageStore().load(noted)


def test_a_file_of_this_machine_that_is_gone_is_not_looked_for_in_a_cache(
    tmp_path: Path, make_png: Callable[[int], bytes]
) -> None:
    cache = ImageCache(tmp_path / "cache")
    sha256 = cache.add_bytes(make_png(1)).sha256
    (tmp_path / "files").mkdir()
    named_so = f"blobs/{sha256[:2]}/{sha256}"
    for address in ("a.png", named_so):
        image = ImageReference(uri=address, address=address, root=tmp_path / "files", sha256=sha256)
        with pytest.raises(ImageError, match="correct the address"):
            ImageStore(cache=cache).load(image)
