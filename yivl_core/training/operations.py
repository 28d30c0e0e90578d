"""What lies between the matrix products of a layer in training, forward and backward, in plain torch.

On a GPU `kernels.py` does the same in fewer passes over memory.

Shapes: S tokens, D width, F width of the MLP, K inputs, M adapters of joined layers, R rank, H heads, E head width, P positions.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch.nn import functional

from yivl_core.training.layout import RowLayout

Activation = Literal["silu_product", "gelu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A frozen norm over the last dimension.

    Attributes:
        weight: `[D]`.
        bias: `[D]` of a layer norm; None: the root-mean-square norm of the decoder.
        epsilon: added to the variance.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropout:
    """What is dropped of an adapter's inputs; the same seed drops the same again.

    Attributes:
        rate: share of the inputs.
        seed: below 2**31.
    """

    rate: float
    seed: int

    @property
    def factor(self) -> float:
        """By which what is kept is larger."""
        return 1 / (1 - self.rate)


class Operations(Protocol):
    """Operations of a device. Gradients are those of sums of products, rounded once."""

    def norm(self, hidden: torch.Tensor, norm: Norm) -> torch.Tensor:
        """`hidden` `[S, D]`, normed."""

    def norm_backward(self, grad: torch.Tensor, hidden: torch.Tensor, norm: Norm, grad_residual: torch.Tensor) -> torch.Tensor:
        """The gradient of `hidden` `[S, D]`, from that of its norm (which may be overwritten) and that of itself."""

    def activate(self, inputs: torch.Tensor, activation: Activation) -> torch.Tensor:
        """The exact GELU of `[S, F]`; or of `[S, 2F]` SiLU of the first half times the second, `[S, F]`."""

    def activate_backward(self, inputs: torch.Tensor, grad: torch.Tensor, activation: Activation) -> torch.Tensor:
        """The gradient of `inputs`, which may be overwritten, from that of what `activate` gives."""

    def rotate(self, qkv: torch.Tensor, rotation: torch.Tensor, num_heads: int, head_dim: int, layout: RowLayout) -> torch.Tensor:
        """Queries, keys and values `[S, all heads * E]`, the first `num_heads` (queries and keys) turned by their positions.

        Args:
            qkv: may be overwritten.
            rotation: cosines and sines, float32 `[2, P, E / 2]`.
            num_heads: of queries and keys together.
            head_dim: E.
            layout: of the row.

        Returns:
            `[rows of the layout, all heads * E]`, noughts where it has no token.
        """

    def rotate_back(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotation: torch.Tensor | None, layout: RowLayout | None
    ) -> torch.Tensor:
        """Gradients `[rows of the layout, H, E]` side by side, `[S, all heads * E]`, turned back where there is a rotation."""

    def lora_down(
        self, inputs: torch.Tensor, down: torch.Tensor, num_adapters: int, scale: float, dropout: Dropout
    ) -> torch.Tensor:
        """Each adapter's first half of its own dropped inputs.

        Args:
            inputs: `[S, K]`.
            down: the first halves one below the other, `[M * R, K]`.
            num_adapters: M.
            scale: of the results.
            dropout: of the inputs; the factor of dropout goes into the results.

        Returns:
            `[S, M * R]`.
        """

    def lora_backward(
        self,
        inputs: torch.Tensor,
        down: torch.Tensor,
        num_adapters: int,
        grad_low: torch.Tensor,
        dropout: Dropout,
        grad_inputs: torch.Tensor | None,
    ) -> torch.Tensor:
        """The gradient of `down`, float32 `[M * R, K]`; that of the inputs is added to `grad_inputs` in place, if that is given.

        Args:
            inputs: `[S, K]`.
            down: `[M * R, K]`.
            num_adapters: M.
            grad_low: gradient of what `lora_down` gives, all factors in it, `[S, M * R]`.
            dropout: of the inputs.
            grad_inputs: `[S, K]`.
        """


class TorchOperations:
    """The operations for any device and dtype; see `Operations`."""

    def norm(self, hidden: torch.Tensor, norm: Norm) -> torch.Tensor:
        """As `Operations`."""
        if norm.bias is not None:
            return functional.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, norm.epsilon)
        wide = _wide(hidden)
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + norm.epsilon)
        return (wide * scale).to(hidden.dtype) * norm.weight

    def norm_backward(self, grad: torch.Tensor, hidden: torch.Tensor, norm: Norm, grad_residual: torch.Tensor) -> torch.Tensor:
        """As `Operations`."""
        wide, scaled = _wide(hidden), _wide(grad) * _wide(norm.weight)
        if norm.bias is not None:
            wide = wide - wide.mean(dim=-1, keepdim=True)
            scaled = scaled - scaled.mean(dim=-1, keepdim=True)
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + norm.epsilon)
        normed = wide * scale
        own = scale * (scaled - normed * (scaled * normed).mean(dim=-1, keepdim=True))
        return (_wide(grad_residual) + own).to(hidden.dtype)

    def activate(self, inputs: torch.Tensor, activation: Activation) -> torch.Tensor:
        """As `Operations`."""
        if activation == "gelu":
            return functional.gelu(inputs)
        gate, up = inputs.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def activate_backward(self, inputs: torch.Tensor, grad: torch.Tensor, activation: Activation) -> torch.Tensor:
        """As `Operations`."""
        wide_grad = _wide(grad)
        if activation == "gelu":
            wide = _wide(inputs)
            slope = 0.5 * (1 + torch.erf(wide * math.sqrt(0.5))) + wide * torch.exp(-0.5 * wide.square()) / math.sqrt(2 * math.pi)
            return (wide_grad * slope).to(inputs.dtype)
        gate, up = _wide(inputs).chunk(2, dim=-1)
        opened = torch.sigmoid(gate)
        grad_gate = wide_grad * up * opened * (1 + gate * (1 - opened))
        return torch.cat([grad_gate, wide_grad * gate * opened], dim=-1).to(inputs.dtype)

    def rotate(self, qkv: torch.Tensor, rotation: torch.Tensor, num_heads: int, head_dim: int, layout: RowLayout) -> torch.Tensor:
        """As `Operations`."""
        heads = qkv.unflatten(1, (-1, head_dim))  # [S, all heads, E]
        turned = _turned(heads[:, :num_heads], rotation, layout, 1.0)
        rotated = torch.cat([turned, heads[:, num_heads:]], dim=1).flatten(1)
        if layout.slots is None or layout.places is None:
            return rotated
        padded = rotated.new_zeros(len(layout.slots), rotated.shape[1])
        return padded.index_copy_(0, layout.places, rotated)

    def rotate_back(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotation: torch.Tensor | None, layout: RowLayout | None
    ) -> torch.Tensor:
        """As `Operations`."""
        if layout is not None and layout.places is not None:
            query, key, value = (part[layout.places] for part in (query, key, value))
        if rotation is not None:
            assert layout is not None
            query, key = (_turned(part, rotation, layout, -1.0) for part in (query, key))
        return torch.cat([query, key, value], dim=1).flatten(1)

    def lora_down(
        self, inputs: torch.Tensor, down: torch.Tensor, num_adapters: int, scale: float, dropout: Dropout
    ) -> torch.Tensor:
        """As `Operations`."""
        parts = zip(self._kept(inputs, num_adapters, dropout), down.to(inputs.dtype).chunk(num_adapters), strict=True)
        return torch.cat([scale * dropout.factor * (kept @ part.t()) for kept, part in parts], dim=1)

    def lora_backward(
        self,
        inputs: torch.Tensor,
        down: torch.Tensor,
        num_adapters: int,
        grad_low: torch.Tensor,
        dropout: Dropout,
        grad_inputs: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `Operations`."""
        grads, halves = grad_low.chunk(num_adapters, dim=1), down.to(inputs.dtype).chunk(num_adapters)
        if grad_inputs is not None:
            parts = [grad @ half for grad, half in zip(grads, halves, strict=True)]
            for part in self._kept(parts, num_adapters, dropout):
                grad_inputs += part
        kept = self._kept(inputs, num_adapters, dropout)
        return torch.cat([_wide(grad.t() @ each) for grad, each in zip(grads, kept, strict=True)])

    def _kept(self, inputs: torch.Tensor | list[torch.Tensor], num_adapters: int, dropout: Dropout) -> list[torch.Tensor]:
        """The inputs of each adapter without what is dropped of them."""
        all_inputs = inputs if isinstance(inputs, list) else [inputs] * num_adapters
        if not dropout.rate:
            return all_inputs
        generator = torch.Generator(all_inputs[0].device).manual_seed(dropout.seed)
        masks = [
            torch.rand(each.shape, generator=generator, device=each.device, dtype=torch.float32) >= dropout.rate
            for each in all_inputs
        ]
        return [each * mask for each, mask in zip(all_inputs, masks, strict=True)]


def _wide(values: torch.Tensor) -> torch.Tensor:
    """In which sums are made: float32, or float64 where all is."""
    return values if values.dtype == torch.float64 else values.float()


def _turned(heads: torch.Tensor, rotation: torch.Tensor, layout: RowLayout, sign: float) -> torch.Tensor:
    """Heads `[S, H, E]` turned by their positions, or back."""
    cosine, sine = rotation[:, layout.position_ids].unsqueeze(-2)  # [S, 1, E / 2] each
    first, second = _wide(heads).chunk(2, dim=-1)
    turned = [first * cosine - sign * second * sine, second * cosine + sign * first * sine]
    return torch.cat(turned, dim=-1).to(heads.dtype)
