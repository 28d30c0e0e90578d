"""Random changes of images while training, on the device: light, contrast, noise, width and place, as scans differ.

The picture is changed, its padding is not. What is drawn follows from a seed alone, so a resumed run draws the same.
"""

from collections.abc import Callable
from functools import cache

import torch

from yivl_core.processing.padding import UnpaddedPixels

# The most that each changes at strength 1.
_GAIN = 0.3
_OFFSET = 40.0  # of 255
_LOG_GAMMA = 0.4
_NOISE = 12.0  # standard deviation, of 255
_STRETCH = 0.08
_SHIFT_X, _SHIFT_Y = 0.03, 0.02  # of the square's side
_NUM_DRAWN = 7


def augment(pixels: UnpaddedPixels, strength: float, seed: int, *, compiled: bool = False) -> UnpaddedPixels:
    """The same pictures, each changed in its own way.

    Args:
        pixels: on any device.
        strength: 0 (hardly changed) to 1.
        seed: of what is drawn; another device draws other numbers.
        compiled: by `torch.compile`: some seconds at the start, then fewer passes over the pixels.

    Returns:
        pixels on the same device.
    """
    rows, places = pixels.rows, pixels.places
    size, device = rows.shape[1], rows.device
    generator = torch.Generator(device).manual_seed(seed)
    drawn = strength * (2 * torch.rand(_NUM_DRAWN, pixels.num_images, generator=generator, device=device) - 1)
    noise = torch.randn(rows.shape, generator=generator, device=device)
    image = places // size  # [R]
    drawn = drawn[:, image]
    row = places % size + (_SHIFT_Y * size * drawn[-1]).round().long()
    # Rows that leave the square come in again on its other side, rather than to be counted, which would wait for the GPU.
    return UnpaddedPixels(
        rows=(_compiled() if compiled else _changed)(rows, drawn, noise, pixels.colour),
        places=image * size + row % size,
        num_images=pixels.num_images,
        padding=pixels.padding,
    )


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(_changed, dynamic=True)


def _changed(rows: torch.Tensor, drawn: torch.Tensor, noise: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """Rows `[R, S, 3]` in other light, noisier, wider, and elsewhere; drawn: `[7, R]`, noise: `[R, S, 3]`, padding: `[3]`."""
    gain, offset, gamma, noisiness, stretch, shift = drawn[:6, :, None, None]  # each [R, 1, 1]
    values = rows.float() / 255
    values = values ** torch.exp(_LOG_GAMMA * gamma) * (1 + _GAIN * gain) + _OFFSET / 255 * offset
    values = values + _NOISE / 255 * noisiness * noise
    values = torch.where((rows == padding).all(dim=2, keepdim=True), padding.float() / 255, values.clamp(0, 1))
    width = _SHIFT_X * rows.shape[1] * shift.flatten(1)
    values = _stretched(values, 1 + _STRETCH * stretch.flatten(1), width, padding.float() / 255)
    return (255 * values).round().to(torch.uint8)


def _stretched(values: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """Rows `[R, S, 3]` drawn wider by `factor` `[R, 1]` around their middle and shifted by `shift` `[R, 1]` pixels."""
    size = values.shape[1]
    source = (torch.arange(size, device=values.device) - size / 2 - shift) / factor + size / 2  # [R, S]
    left = source.floor().long()
    part = (source - left).unsqueeze(2)  # [R, S, 1]
    sides = []
    for place in (left, left + 1):
        index = place.clamp(0, size - 1).unsqueeze(2).expand(-1, -1, 3)
        is_inside = ((place >= 0) & (place < size)).unsqueeze(2)
        sides.append(torch.where(is_inside, values.gather(1, index), padding))
    return sides[0] * (1 - part) + sides[1] * part
