"""What a user says about fetching images from the network."""

from pydantic import BaseModel, ConfigDict, Field

from yivl_core.data.network.fetch_limits import FetchLimits

# Those that change nothing in a result but what the network decides anyway.
UNDECIDING_URL_SETTINGS = frozenset({"cache", "fetch", "offline", "refresh_urls"})


class UrlSettings(BaseModel):
    """Which URLs of a dataset may be fetched, where to, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_url: tuple[str, ...] = Field(
        default=(),
        description="what may be fetched: https:// (any public host), https://HOST, http://HOST:PORT (also a private one), "
        "s3://BUCKET; default: nothing",
    )
    cache: str | None = Field(
        default=None,
        description="folder that keeps fetched images, and what was found out about others; default: as of `yivl cache`",
    )
    offline: bool = Field(default=False, description="take allowed URLs from the cache, and open no connection")
    refresh_urls: bool = Field(default=False, description="ask the servers of cached images whether they have changed")
    fetch: FetchLimits = Field(default_factory=FetchLimits, description="limits of fetching")
