"""The small pictures of a report's samples, as many as its page has room for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yivl_core.evaluation.comparison import Group
from yivl_core.evaluation.pages.room import room_of
from yivl_core.evaluation.samples import FAILED, RANDOM, WORST
from yivl_core.evaluation.thumbnails import Thumbnails
from yivl_core.outputs.page import MAX_CHARACTERS
from yivl_core.outputs.predictions import PredictionImage
from yivl_core.outputs.thumbnails import Thumbnail

MAX_PICTURE_BYTES = 2_400_000
"""Of all pictures of a page together, as it holds them; long texts leave less for them."""
MIN_PICTURE_BYTES = 1_000_000

_CARD_BYTES = 1000  # of a sample, without its texts
_TEXT_FACTOR = 1.5  # for the marks in them

_ORDER = (WORST, Group.LOST.value, Group.MENDED.value, RANDOM, FAILED)


def load_pictures(dataset: str, samples: Sequence[Mapping[str, Any]], max_bytes: int = MAX_PICTURE_BYTES) -> dict[str, Thumbnail]:
    """Pictures of the images that samples were asked about, by the sha256 of the image.

    Those of the worst answers come first, then of answers that the baseline has otherwise, of random and failed ones, and of the
    rest, until the next one would take too much room. Images without a known content have none; one that is not there any more,
    or was changed, is told of in its place.

    Args:
        dataset: folder of a validated dataset, or file of records that `write_records` wrote.
        samples: of the report.
        max_bytes: of all pictures together; None: what the texts of the samples leave of a page.

    Raises:
        DatasetError: the records are none of a validated dataset.
        StorageError: they cannot be read, or the disk failed.
    """
    max_bytes = room_for_pictures(samples) if max_bytes is None else max_bytes
    images = _in_order(samples)
    thumbnails = Thumbnails(dataset, set(images))
    pictures: dict[str, Thumbnail] = {}
    num_bytes = 0
    for sha256, uri in images.items():
        picture = thumbnails.make(PredictionImage(uri=uri, sha256=sha256))
        num_bytes += len(picture.data_uri or "")
        if num_bytes > max_bytes:
            break
        pictures[sha256] = picture
    return pictures


def room_for_pictures(samples: Sequence[Mapping[str, Any]]) -> int:
    """How many bytes of a page are for pictures, so that texts need not be cut short for them."""
    texts = sum(len(text[:MAX_CHARACTERS].encode()) for sample in samples for text in _texts(sample))
    num_bytes = _CARD_BYTES * len(samples) + _TEXT_FACTOR * texts
    return int(min(MAX_PICTURE_BYTES, max(MIN_PICTURE_BYTES, room_of(len(samples)) - num_bytes)))


def _in_order(samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The images whose content is known, and where they are, each once."""
    found: dict[str, str] = {}
    for sample in _sorted(samples):
        for image in sample["images"]:
            if image["sha256"] is not None:
                found.setdefault(image["sha256"], image["uri"])
    return found


def _texts(sample: Mapping[str, Any]) -> Iterator[str]:
    for text in (sample["query"], sample["answer"], (sample["baseline"] or {}).get("answer"), *sample["references"]):
        if text is not None:
            yield text


def _sorted(samples: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for reason in _ORDER:
        yield from (sample for sample in samples if reason in sample["reasons"])
    yield from samples
