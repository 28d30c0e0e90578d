"""What a user says about a cache of images, and what upkeep of one tells."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


def default_cache_folder() -> Path:
    """YIVL_CACHE, else `yivl` in XDG_CACHE_HOME, else ~/.cache/yivl."""
    if folder := os.environ.get("YIVL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yivl"


class CacheConfig(BaseModel):
    """Which cache is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: str | None = Field(
        default=None, description="folder of the cache; default: YIVL_CACHE, else yivl in XDG_CACHE_HOME, else ~/.cache/yivl"
    )

    @property
    def folder(self) -> Path:
        """Where the cache is."""
        return default_cache_folder() if self.cache is None else Path(self.cache)


class PruneConfig(CacheConfig):
    """What a cache may keep."""

    max_bytes: int | None = Field(
        default=None, ge=0, description="most bytes of images that are kept, those used last; default: no limit"
    )
    unused_days: float | None = Field(
        default=None, ge=0, description="days after which an image that nobody used is removed; default: never"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUsage:
    """What came from one place.

    Attributes:
        host: with its scheme, and its port where that is not the usual one; of an object store the bucket.
        num_urls: URLs there that the cache has.
        num_bytes: their sizes together; content that several URLs share counts for each.
    """

    host: str
    num_urls: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUsage:
    """What is in a cache.

    Attributes:
        folder: where it is.
        num_images: different contents.
        num_bytes: their sizes together.
        num_urls: URLs whose content is known.
        hosts: where those lead, the largest first.
        num_unfinished: files that are being written, or were left by killed processes.
        num_verdicts: images, of this machine mostly, of which is remembered what validation found.
    """

    folder: str
    num_images: int
    num_bytes: int
    num_urls: int
    hosts: tuple[HostUsage, ...]
    num_unfinished: int
    num_verdicts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCheck:
    """What a check of all contents has found.

    Attributes:
        folder: where the cache is.
        num_images: contents that are whole.
        num_bytes: their sizes together.
        num_damaged: files that were not what their names say, and links; they are removed.
        num_urls_lost: URLs whose content is gone, so that they will be fetched again when they are needed.
        num_left_over: files that killed processes had left, which are removed.
    """

    folder: str
    num_images: int
    num_bytes: int
    num_damaged: int
    num_urls_lost: int
    num_left_over: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePruned:
    """What has gone, and what is left.

    Attributes:
        folder: where the cache is.
        num_removed: contents that were removed.
        bytes_removed: their sizes together.
        num_kept: contents that are left.
        bytes_kept: their sizes together.
        num_in_use: of those, the ones that should have gone and were used within the last hour.
        num_urls_removed: URLs whose content is gone.
        num_left_over: files that killed processes had left, which are removed.
        num_forgotten: images of which is no longer remembered what validation found, since that is too long ago.
    """

    folder: str
    num_removed: int
    bytes_removed: int
    num_kept: int
    bytes_kept: int
    num_in_use: int
    num_urls_removed: int
    num_left_over: int
    num_forgotten: int
