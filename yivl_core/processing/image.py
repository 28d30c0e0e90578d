"""RGB image -> square uint8 pixels -> normalised pixel_values, bit for bit as the original code makes them.

Pixels stay uint8 until they are on the device that needs them: a quarter of the bytes, and no arithmetic on the CPU. PIL does the
resizing on every machine, since other bicubic filters, torchvision's among them, give other bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from yivl_core.data.decoding import ImageError
from yivl_core.model.config_keys import SidePx
from yivl_core.model.json_files import FileKeys, only, read_keys
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.resizing import pad_and_resize

MAX_SIDE_PX = 65_535


def _side(size: Any) -> Any:
    """`448`, `{"shortest_edge": 448}` and `{"height": 448, "width": 448}` all say 448."""
    if not isinstance(size, dict):
        return size
    sides = list(size.values())
    if set(size) not in ({"shortest_edge"}, {"height", "width"}) or sides[0] != sides[-1]:
        raise ValueError("it should be the side of a square: a number, a shortest_edge, or height and width alike")
    return sides[0]


_Side = Annotated[SidePx, BeforeValidator(_side)]
_Step = Annotated[bool, only(True)]
_Mean = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]


class _PreprocessorKeys(FileKeys):
    do_resize: _Step = True
    do_center_crop: _Step = True
    do_rescale: _Step = True
    do_normalize: _Step = True
    size: _Side
    crop_size: _Side
    image_mean: list[_Mean] = Field(min_length=3, max_length=3)
    image_std: list[_Deviation] = Field(min_length=3, max_length=3)
    rescale_factor: float = Field(default=1 / 255, gt=0, le=1)
    resample: int = Field(default=Image.Resampling.BICUBIC, ge=0, le=5)

    @field_validator("crop_size")
    @classmethod
    def _crops_nothing(cls, crop_size: int, info: ValidationInfo) -> int:
        if crop_size != info.data.get("size", crop_size):
            raise ValueError(f"size is {info.data['size']}, and Yi-VL never crops")
        return crop_size


class ImagePreprocessor:
    """Turns images into what the vision tower reads.

    Args:
        image_size_px: side of the square that the tower reads.
        image_mean, image_std: mean and standard deviation of red, green and blue, for values of 0 to 1.
        rescale_factor: what makes 0 to 1 of a byte.
        resample: PIL's number of the resizing filter; 3 is bicubic.

    Attributes:
        padding: red, green and blue of the squares' padding, 0 to 255: the mean colour, rounded down as in the original code.
    """

    def __init__(
        self,
        *,
        image_size_px: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        rescale_factor: float = 1 / 255,
        resample: int = Image.Resampling.BICUBIC,
    ) -> None:
        self.image_size_px = image_size_px
        self._resample = Image.Resampling(resample)
        self.padding = tuple(int(mean * 255) for mean in image_mean)
        # transformers scales in double precision, rounds, and normalises in single precision; a table holds all 3 x 256 results.
        scaled = (np.arange(256) * rescale_factor).astype(np.float32)
        mean, std = np.array(image_mean, dtype=np.float32), np.array(image_std, dtype=np.float32)
        self._table = torch.from_numpy((scaled[None, :] - mean[:, None]) / std[:, None])
        self._arguments = (image_size_px, tuple(image_mean), tuple(image_std), rescale_factor, int(resample))

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_of, self._arguments  # to other processes go the few numbers that it is made of

    @classmethod
    def from_file(cls, path: str | Path) -> "ImagePreprocessor":
        """The preprocessor that a `preprocessor_config.json` describes.

        Raises:
            CheckpointError: the file is missing or broken, or asks for something else than CLIP's preparation of a padded square.
        """
        path = Path(path)
        keys = read_keys(_PreprocessorKeys, path, "it says how images are prepared; copy it from the model's repository")
        return cls(
            image_size_px=keys.size,
            image_mean=keys.image_mean,
            image_std=keys.image_std,
            rescale_factor=keys.rescale_factor,
            resample=keys.resample,
        )

    def to_squares(self, images: Sequence[Image.Image]) -> UnpaddedPixels:
        """RGB images of any shape, each centred on a square of the mean colour and resized.

        Raises:
            ImageError: a side is longer than `MAX_SIDE_PX` (kind `too_many_pixels`).
        """
        return UnpaddedPixels.of([self._resized(image) for image in images], self.image_size_px, self.padding)

    def _resized(self, image: Image.Image) -> tuple[npt.NDArray[np.uint8], int]:
        assert image.mode == "RGB", image.mode
        if max(image.size) > MAX_SIDE_PX:
            message = f"the image has {image.width} x {image.height} pixels, and a side may have {MAX_SIDE_PX} at most"
            raise ImageError("too_many_pixels", message, "cut the image into parts")
        return pad_and_resize(image, self.image_size_px, self.padding, self._resample)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels as the vision tower reads them, on the device where they are.

        Args:
            pixels: uint8 `[N, S, S, 3]`.

        Returns:
            pixel_values: float32 `[N, 3, S, S]`, (value / 255 - mean) / deviation of each colour.
        """
        table = self._table.to(pixels.device, non_blocking=True)
        return torch.stack([table[channel][pixels[..., channel].int()] for channel in range(3)], dim=1)


def _made_of(
    image_size_px: int, image_mean: Sequence[float], image_std: Sequence[float], rescale_factor: float, resample: int
) -> ImagePreprocessor:
    return ImagePreprocessor(
        image_size_px=image_size_px,
        image_mean=image_mean,
        image_std=image_std,
        rescale_factor=rescale_factor,
        resample=resample,
    )
