"""What a decoder does between its matrix products, in plain PyTorch: on any device, in any dtype.

`kernels.py` has the same operations for GPUs that can do better, and a test holds one against the other.

Shapes: S tokens, D width, F width of the MLP, H query heads, G key-value heads, E head width, T tokens of the cache, B rows.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

from yivl_core.inference.layout import DecodeLayout, PrefillLayout


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


class Operations(Protocol):
    """The operations, whichever way they are done.

    `pending` is what a matrix product has left to be added to `hidden`: `[S, D]`, or `[D]` for all rows, or None. The norms add
    it first, for good. With `is_fp8` the result is rounded to 8 bits on its way out.
    """

    def rms_norm(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        pending: torch.Tensor | None = None,
        *,
        is_fp8: bool = False,
    ) -> Activations:
        """Root mean square norm `[S, D]` of hidden `[S, D]` (Zhang and Sennrich, arXiv 1910.07467)."""

    def layer_norm(
        self, hidden: torch.Tensor, norm: nn.LayerNorm, pending: torch.Tensor | None = None, *, is_fp8: bool = False
    ) -> Activations:
        """Layer norm `[S, D]` (Ba et al., arXiv 1607.06450) of hidden `[S, D]`."""

    def silu_product(self, gate_up: torch.Tensor, *, is_fp8: bool = False) -> Activations:
        """`silu(gate) * up` `[S, F]` of both side by side, `[S, 2 F]`."""

    def gelu_fp8(self, inputs: torch.Tensor) -> Quantised:
        """The exact GELU of inputs `[S, F]`, in 8 bits."""

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        rotation: torch.Tensor,
        position_ids: torch.Tensor,
        store_rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Turns queries and keys by their positions (Su et al., arXiv 2104.09864), and stores keys and values.

        Args:
            qkv: `[S, (H + 2 G) E]`, queries, keys and values side by side; may be overwritten.
            rotation: float32 `[2, positions, E / 2]`, cosines and sines.
            position_ids: int64 `[S]`.
            store_rows: int64 `[S]`, where in the cache.
            keys: `[T, G, E]` of the cache.
            values: `[T, G, E]` of the cache.

        Returns:
            The queries `[S, H, E]`; H may be 0.
        """

    def rotate(self, queries: torch.Tensor, rotation: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Queries `[S, H, E]` turned by their positions; may be overwritten."""

    def prefill_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PrefillLayout, *, is_last: bool
    ) -> torch.Tensor:
        """What the tokens of prompts attend to: all before them in their own prompt, and themselves.

        Args:
            queries: `[S, H, E]`; with `is_last` `[N, H, E]`, those of the last token of each prompt.
            keys: `[T, G, E]` of the cache.
            values: `[T, G, E]` of the cache.
            layout: of the prefill.
            is_last: whether the queries are those of the last tokens alone.

        Returns:
            As the queries.
        """

    def decode_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout
    ) -> torch.Tensor:
        """What one token for each row attends to, `[B, H, E]`; keys and values `[T, G, E]`."""


class PlainOperations:
    """The operations in plain PyTorch."""

    def rms_norm(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        pending: torch.Tensor | None = None,
        *,
        is_fp8: bool = False,
    ) -> torch.Tensor:
        """As `Operations`."""
        assert not is_fp8, "8 bits need kernels"
        if pending is not None:
            hidden += pending
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
        return weight * (wide * scale).to(hidden.dtype)

    def layer_norm(
        self, hidden: torch.Tensor, norm: nn.LayerNorm, pending: torch.Tensor | None = None, *, is_fp8: bool = False
    ) -> torch.Tensor:
        """As `Operations`."""
        assert not is_fp8, "8 bits need kernels"
        if pending is not None:
            hidden += pending
        normed: torch.Tensor = norm(hidden)
        return normed

    def gelu_fp8(self, inputs: torch.Tensor) -> Quantised:
        """As `Operations`."""
        raise AssertionError("8 bits need kernels")

    def silu_product(self, gate_up: torch.Tensor, *, is_fp8: bool = False) -> torch.Tensor:
        """As `Operations`."""
        assert not is_fp8, "8 bits need kernels"
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        rotation: torch.Tensor,
        position_ids: torch.Tensor,
        store_rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """As `Operations`."""
        heads = qkv.unflatten(-1, (-1, keys.shape[-1]))  # [S, H + 2 G, E]
        num_heads = keys.shape[1]
        turned = self.rotate(heads[:, :-num_heads], rotation, position_ids)  # [S, H + G, E]
        keys.index_copy_(0, store_rows, turned[:, -num_heads:])
        values.index_copy_(0, store_rows, heads[:, -num_heads:])
        return turned[:, :-num_heads]

    def rotate(self, queries: torch.Tensor, rotation: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """As `Operations`."""
        cosine, sine = rotation[:, position_ids].unsqueeze(-2).to(queries.dtype)  # [S, 1, E / 2] each
        first, second = queries.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

    def prefill_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PrefillLayout, *, is_last: bool
    ) -> torch.Tensor:
        """As `Operations`."""
        outputs, place = torch.zeros_like(queries), 0
        for segment in layout.segments:
            end = place + (1 if is_last else segment.num_new)
            stretch = slice(segment.start, segment.start + segment.num_tokens)
            outputs[place:end] = _attend(queries[place:end], keys[stretch], values[stretch])
            place = end
        return outputs

    def decode_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout
    ) -> torch.Tensor:
        """As `Operations`."""
        if layout.on_host is not None:
            return torch.cat(
                [
                    _attend(query.unsqueeze(0), keys[start : start + length], values[start : start + length])
                    for query, (start, length) in zip(queries, layout.on_host, strict=True)
                ]
            )
        places = torch.arange(layout.max_keys, device=queries.device)
        is_held = places <= layout.positions[:, None]  # [B, K]
        rows = layout.starts[:, None] + places * is_held  # [B, K]
        held_keys, held_values = (tensor[rows].transpose(1, 2) for tensor in (keys, values))  # [B, G, K, E]
        outputs = scaled_dot_product_attention(
            queries.unsqueeze(2), held_keys, held_values, attn_mask=is_held[:, None, None], enable_gqa=True
        )
        return outputs.squeeze(2)


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of the last tokens `[S, H, E]` of a prompt to all its tokens `[K, G, E]`, each to those up to itself."""
    num_queries, num_keys = len(queries), len(keys)
    mask = None
    if 1 < num_queries < num_keys:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=queries.device).tril(num_keys - num_queries)
    query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (queries, keys, values))  # [1, H or G, S or K, E]
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=num_queries > 1 and mask is None, enable_gqa=True
    )
    return output.squeeze(0).transpose(0, 1)
