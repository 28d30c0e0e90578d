"""Images of a validated dataset -> small pictures inside a page, which then needs no other file."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from yivl_core.data.dataset import RECORDS_NAME, read_records
from yivl_core.data.images import ImageError, ImageInfo, ImageStore
from yivl_core.outputs.predictions import PredictionImage

MAX_SIDE_PX = 320
MAX_ENLARGEMENT = 2.0

_JPEG_QUALITY = 85
_REASONS = {"image_missing": "is not there any more", "image_changed": "was changed since it was validated"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A small picture, or why there is none.

    Attributes:
        data_uri: the picture, its longest side at most `MAX_SIDE_PX`; None where there is none.
        width, height: in pixels, as it is to be shown: small ones up to `MAX_ENLARGEMENT` times as large; 0 without a picture.
        problem: in words; None where there is a picture.
    """

    data_uri: str | None = None
    width: int = 0
    height: int = 0
    problem: str | None = None


class Thumbnails:
    """Makes small pictures of the images of a dataset.

    Args:
        dataset: folder of a validated dataset, or file of records that `write_records` wrote.
        sha256s: content (hex) of the images that will be asked for; the places of others are not kept.

    Raises:
        DatasetError: the records are none of a validated dataset.
        StorageError: they cannot be read.
    """

    def __init__(self, dataset: str, sha256s: set[str]) -> None:
        self._images = {image.sha256: image for image in _images(dataset) if image.sha256 in sha256s}
        self._store = ImageStore()

    def make(self, image: PredictionImage) -> Thumbnail:
        """The picture of an image that a model was shown.

        Raises:
            StorageError: the disk failed; a file that is missing, changed or no image is told of in the thumbnail.
        """
        if image.sha256 is None:
            return Thumbnail(problem="could not be read")
        info = self._images.get(image.sha256)
        if info is None:
            return Thumbnail(problem="is not in the dataset")
        try:
            return _to_thumbnail(self._store.load(info.reference).image)
        except ImageError as error:
            return Thumbnail(problem=_REASONS.get(error.kind, f"cannot be shown ({error.kind})"))


def _images(dataset: str) -> Iterator[ImageInfo]:
    path = Path(dataset)
    for validated in read_records(path / RECORDS_NAME if path.is_dir() else path):
        yield from validated.images


def _to_thumbnail(image: Image.Image) -> Thumbnail:
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS, reducing_gap=None)
    enlargement = min(MAX_ENLARGEMENT, MAX_SIDE_PX / max(image.size))
    return Thumbnail(
        data_uri=min((_encode(image, "png", optimize=True), _encode(image, "jpeg", quality=_JPEG_QUALITY)), key=len),
        width=max(1, round(image.width * enlargement)),
        height=max(1, round(image.height * enlargement)),
    )


def _encode(image: Image.Image, image_format: str, **options: int) -> str:
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, image_format, **options)  # pixels alone, no metadata
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"
