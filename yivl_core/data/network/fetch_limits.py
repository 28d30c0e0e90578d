"""How much a fetch may take: connections, tries, time and bytes."""

from pydantic import BaseModel, ConfigDict, Field


class FetchLimits(BaseModel):
    """Limits of fetching images from the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connections_per_host: int = Field(default=16, ge=1, description="most images that are fetched from one host at a time")
    connections: int = Field(default=128, ge=1, description="most images that are fetched at a time, from all hosts")
    num_tries: int = Field(default=4, ge=1, description="how often an image is asked for when the reason of a failure may pass")
    connect_timeout_s: float = Field(default=10.0, gt=0, description="seconds that a connection may take, encryption included")
    total_timeout_s: float = Field(default=120.0, gt=0, description="seconds that one try may take in all")
    slow_after_s: float = Field(
        default=20.0, gt=0, description="seconds without an answer, or with less than min_bytes_per_s, after which a try is ended"
    )
    min_bytes_per_s: float = Field(default=1000.0, gt=0, description="bytes that have to come in a second, over slow_after_s")
    max_retry_after_s: float = Field(
        default=60.0, gt=0, description="most seconds between two tries, also where the server asks for more"
    )
    max_bytes: int = Field(
        default=100_000_000, ge=1, description="most bytes of an image; a larger one is not fetched to its end"
    )
