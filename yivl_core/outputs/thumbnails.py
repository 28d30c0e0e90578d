"""An image -> a small picture inside a page, which then needs no other file, or in words why there is none."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from yivl_core.data.images import ImageError, ImageReference, ImageStore

MAX_SIDE_PX = 320
MAX_ENLARGEMENT = 2.0

_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A small picture, or why there is none.

    Attributes:
        data_uri: the picture, its longest side at most `MAX_SIDE_PX`; None where there is none.
        width, height: in pixels, as it is to be shown: small ones up to `MAX_ENLARGEMENT` times as large; 0 without a picture.
        problem: in words that follow the image's name; None where there is a picture.
    """

    data_uri: str | None = None
    width: int = 0
    height: int = 0
    problem: str | None = None


UNREADABLE = Thumbnail(problem="could not be read")


def load_thumbnail(store: ImageStore, reference: ImageReference, since: str) -> Thumbnail:
    """The picture of an image, or what has become of it.

    Args:
        store: reads it.
        reference: where it is, and the content that it has to have.
        since: when it had that content, in words: "it was validated".

    Raises:
        StorageError: the disk failed; a file that is missing, changed or no image is told of in the thumbnail.
    """
    try:
        return to_thumbnail(store.load(reference).image)
    except ImageError as error:
        reasons = {"image_missing": "is not there any more", "image_changed": f"was changed since {since}"}
        return Thumbnail(problem=reasons.get(error.kind, f"cannot be shown ({error.kind})"))


def to_thumbnail(image: Image.Image) -> Thumbnail:
    """The picture of an image (RGB, of any size), which stays as it is."""
    small = image.copy()  # what comes next would shrink the image itself
    small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS, reducing_gap=None)
    enlargement = min(MAX_ENLARGEMENT, MAX_SIDE_PX / max(small.size))
    return Thumbnail(
        data_uri=min((_encode(small, "png", optimize=True), _encode(small, "jpeg", quality=_JPEG_QUALITY)), key=len),
        width=max(1, round(small.width * enlargement)),
        height=max(1, round(small.height * enlargement)),
    )


def _encode(image: Image.Image, image_format: str, **options: int) -> str:
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, image_format, **options)  # pixels alone, no metadata
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"
