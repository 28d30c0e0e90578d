"""How large a page may become: small enough to be sent by mail and opened on a phone."""

MAX_PAGE_BYTES = 4_900_000
"""Of a page with `FULL_SAMPLES` samples or fewer; with more it may grow in proportion."""
FULL_SAMPLES = 2000


def room_of(num_samples: int) -> int:
    """Bytes of a page with so many samples."""
    return MAX_PAGE_BYTES * max(num_samples, FULL_SAMPLES) // FULL_SAMPLES
