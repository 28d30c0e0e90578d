"""Images of known content that were fetched, or that a dataset itself had held -> where a cache of this machine has them."""

import os
from dataclasses import replace
from pathlib import Path

from yivl_core.data.cache.image_cache import ImageCache, is_blob
from yivl_core.data.decoding import ImageError
from yivl_core.data.findings import shown
from yivl_core.data.public_urls import public_url
from yivl_core.data.references import ImageReference


def find_kept(image: ImageReference, cache: ImageCache | None) -> ImageReference:
    """The image; one that belongs into a cache and is not where it was, as the cache has it.

    Args:
        image: any; of a file that never was in a cache nothing is looked up.
        cache: of this machine; None: there is none.

    Raises:
        ImageError: of kind `image_missing`: it is in no place that is known.
        StorageError: the disk failed.
    """
    if image.sha256 is None or image.data is not None:
        return image
    if image.fetched_url is None:
        is_kept = isinstance(image.root, Path) and is_blob(image.address, image.sha256)
        if not is_kept or os.access(image.address, os.R_OK):
            return image
    path = None if cache is None else cache.find_content(image.sha256)
    if path is None:
        place = "" if cache is None else f", nor in the cache ({cache.files.path})"
        message = f"image {shown(image.uri)} is no longer there ({public_url(image.address)}){place}"
        raise ImageError("image_missing", message, "validate the dataset again, or name the cache that has it")
    return replace(image, address=str(path), root=path.parent)
