"""The operations of `operations.py` as Triton kernels: what lies between matrix products in one pass over memory each.

Every row is computed in the same order whatever stands beside it, so a batch's size changes none of its results.

Shapes: S tokens, H query heads, G key-value heads, E head width.
"""

import torch
import triton
import triton.language as tl
from torch import nn

from yivl_core.inference.attention_kernels import attend_to_prompts, attend_to_slots
from yivl_core.inference.layout import DecodeLayout, PrefillLayout
from yivl_core.model import row_kernels
from yivl_core.model.quantised import Activations, Quantised


class KernelOperations:
    """The operations on a GPU, for float16 and bfloat16."""

    def rms_norm(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        pending: torch.Tensor | None = None,
        *,
        is_fp8: bool = False,
    ) -> Activations:
        """As `Operations`."""
        return row_kernels.rms_norm(hidden, weight, epsilon, pending, is_fp8=is_fp8)

    def layer_norm(
        self, hidden: torch.Tensor, norm: nn.LayerNorm, pending: torch.Tensor | None = None, *, is_fp8: bool = False
    ) -> Activations:
        """As `Operations`."""
        return row_kernels.layer_norm(hidden, norm.weight, norm.bias, norm.eps, pending, is_fp8=is_fp8)

    def silu_product(self, gate_up: torch.Tensor, *, is_fp8: bool = False) -> Activations:
        """As `Operations`."""
        return row_kernels.silu_product(gate_up, is_fp8=is_fp8)

    def gelu_fp8(self, inputs: torch.Tensor) -> Quantised:
        """As `Operations`."""
        return row_kernels.gelu_fp8(inputs)

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
        num_kv_heads, head_dim = keys.shape[1:]
        num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
        _rotate_and_store[(len(qkv),)](
            qkv, rotation, position_ids, store_rows, keys, values, rotation.shape[1],
            num_heads, num_kv_heads, HALF=head_dim // 2,
            BLOCK_Q=triton.next_power_of_2(max(num_heads, 1)), BLOCK_KV=triton.next_power_of_2(num_kv_heads), num_warps=4,
        )  # fmt: skip
        return qkv.view(len(qkv), -1, head_dim)[:, :num_heads]

    def rotate(self, queries: torch.Tensor, rotation: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """As `Operations`."""
        cosine, sine = rotation[:, position_ids].unsqueeze(-2)  # [S, 1, E / 2] each
        first, second = queries.float().chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(queries.dtype)

    def prefill_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PrefillLayout, *, is_last: bool
    ) -> torch.Tensor:
        """As `Operations`."""
        return attend_to_prompts(queries, keys, values, layout.last_blocks if is_last else layout.blocks)

    def decode_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout
    ) -> torch.Tensor:
        """As `Operations`."""
        return attend_to_slots(queries, keys, values, layout)


@triton.jit
def _turn(base, cosine, sine, heads, is_head, HALF: tl.constexpr):
    """Both halves of heads, turned: float32 [heads, HALF] each."""
    columns = tl.arange(0, HALF)
    places = heads[:, None] * 2 * HALF + columns[None, :]
    first = tl.load(base + places, mask=is_head[:, None], other=0.0).to(tl.float32)
    second = tl.load(base + places + HALF, mask=is_head[:, None], other=0.0).to(tl.float32)
    return first * cosine[None, :] - second * sine[None, :], second * cosine[None, :] + first * sine[None, :]


@triton.jit
def _rotate_and_store(
    qkv, rotation, position_ids, store_rows, keys, values, num_positions, num_heads, num_kv_heads,
    HALF: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, HALF)
    position = tl.load(position_ids + token)
    cosine = tl.load(rotation + position * HALF + columns)
    sine = tl.load(rotation + (num_positions + position) * HALF + columns)
    base = qkv + token * (num_heads + 2 * num_kv_heads) * 2 * HALF

    query_heads = tl.arange(0, BLOCK_Q)
    is_query = query_heads < num_heads
    first, second = _turn(base, cosine, sine, query_heads, is_query, HALF)
    places = query_heads[:, None] * 2 * HALF + columns[None, :]
    tl.store(base + places, first.to(qkv.dtype.element_ty), mask=is_query[:, None])
    tl.store(base + places + HALF, second.to(qkv.dtype.element_ty), mask=is_query[:, None])

    kv_heads = tl.arange(0, BLOCK_KV)
    is_kv = kv_heads < num_kv_heads
    first, second = _turn(base + num_heads * 2 * HALF, cosine, sine, kv_heads, is_kv, HALF)
    places = kv_heads[:, None] * 2 * HALF + columns[None, :]
    row = tl.load(store_rows + token) * num_kv_heads * 2 * HALF
    tl.store(keys + row + places, first.to(keys.dtype.element_ty), mask=is_kv[:, None])
    tl.store(keys + row + places + HALF, second.to(keys.dtype.element_ty), mask=is_kv[:, None])
    source = base + (num_heads + num_kv_heads) * 2 * HALF
    tl.store(values + row + places, tl.load(source + places, mask=is_kv[:, None]), mask=is_kv[:, None])
    tl.store(values + row + places + HALF, tl.load(source + places + HALF, mask=is_kv[:, None]), mask=is_kv[:, None])
