"""Frozen weights in 8 bits, for GPUs that multiply these twice as fast.

Shapes: S rows of inputs, K inputs, N outputs.
"""

import torch
from torch.nn import functional

from yivl_core.model.quantised import Activations, Quantised

_MULTIPLE = 16  # of which the product wants both sides; what is added is nought


class Float8Weight:
    """A weight in float8_e4m3fn; each of its outputs, and each row of inputs, has a scale of its own.

    Args:
        weight: `[N, K]` on a GPU.
        bias: `[N]`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        from yivl_core.model.row_kernels import quantise_rows

        self._num_outputs, self._dtype = len(weight), weight.dtype
        quantised = quantise_rows(functional.pad(weight, (0, 0, 0, -len(weight) % _MULTIPLE)))
        self._values, self._scale = quantised.values, quantised.scale[None]  # [N, K], [1, N]
        self._bias = None if bias is None else functional.pad(bias, (0, -len(bias) % _MULTIPLE))

    def __call__(self, inputs: Activations) -> torch.Tensor:
        """Outputs `[..., N]`, with the bias, of inputs `[..., K]`."""
        from yivl_core.model.row_kernels import quantise_rows

        quantised = inputs if isinstance(inputs, Quantised) else quantise_rows(inputs.flatten(0, -2))
        outputs = torch._scaled_mm(
            quantised.values,
            self._values.t(),
            scale_a=quantised.scale[:, None],
            scale_b=self._scale,
            bias=self._bias,
            out_dtype=self._dtype,
            use_fast_accum=True,
        )
        outputs = outputs[:, : self._num_outputs].contiguous()
        return outputs if isinstance(inputs, Quantised) else outputs.unflatten(0, inputs.shape[:-1])
