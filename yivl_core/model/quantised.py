"""Activations in 8 bits, which matrix products of GPUs from Hopper and Ada on take."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Quantised:
    """Rows in 8 bits, each with a scale of its own.

    Attributes:
        values: float8_e4m3fn `[S, K]`, where K is a multiple of 16, filled up with noughts.
        scale: float32 `[S]`, the factors that give the rows back.
    """

    values: torch.Tensor
    scale: torch.Tensor

    def rows(self, index: torch.Tensor) -> "Quantised":
        """Some of the rows."""
        # PyTorch has no indexing for 8-bit floats.
        return Quantised(self.values.view(torch.uint8)[index].view(self.values.dtype), self.scale[index])


Activations = torch.Tensor | Quantised
