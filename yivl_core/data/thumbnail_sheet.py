"""Some images of a dataset on one sheet, numbered, for a person who reads the report."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from yivl_core.data.images import ImageError, ImageInfo, ImageStore

MAX_IMAGES = 24

_NUM_COLUMNS = 6
_CELL_PX, _MARGIN_PX, _LABEL_PX = 180, 8, 18
_GREY, _INK = (236, 236, 236), (60, 60, 60)
_QUALITY = 85
_MAX_PIXELS = 16_000_000  # of an image that is decoded here, where no limit of memory holds


def write_sheet(path: Path, images: Sequence[ImageInfo], max_pixels: int) -> None:
    """Write a JPEG file with a small picture of each image, in rows of six, under its number from 1.

    Args:
        path: of the file.
        images: at least one; a picture of one that is gone, was changed, or is very large stays empty.
        max_pixels: most pixels of an image.

    Raises:
        StorageError: the disk failed.
    """
    store, font = ImageStore(max_pixels), ImageFont.load_default(_LABEL_PX - 4)
    num_columns = min(_NUM_COLUMNS, len(images))
    step_x, step_y = _CELL_PX + _MARGIN_PX, _CELL_PX + _LABEL_PX + _MARGIN_PX
    num_rows = math.ceil(len(images) / num_columns)
    sheet = Image.new("RGB", (num_columns * step_x + _MARGIN_PX, num_rows * step_y + _MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for index, info in enumerate(images):
        x, y = _MARGIN_PX + index % num_columns * step_x, _MARGIN_PX + index // num_columns * step_y
        draw.text((x, y), str(index + 1), fill=_INK, font=font)
        y += _LABEL_PX
        draw.rectangle((x, y, x + _CELL_PX - 1, y + _CELL_PX - 1), fill=_GREY)
        picture = _picture(store, info)
        if picture is not None:
            sheet.paste(picture, (x + (_CELL_PX - picture.width) // 2, y + (_CELL_PX - picture.height) // 2))
    sheet.save(path, "JPEG", quality=_QUALITY)


def _picture(store: ImageStore, info: ImageInfo) -> Image.Image | None:
    if info.width * info.height > _MAX_PIXELS:
        return None
    try:
        picture = store.load(info.reference).image
    except ImageError:
        return None
    picture.thumbnail((_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS)
    return picture
