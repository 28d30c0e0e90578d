"""The operations of `operations.py` as Triton kernels: one pass over memory each, and attention of single tokens to long slots.

Every row is computed in the same order whatever stands beside it, so a batch's size changes none of its results.

Shapes: S tokens, D width, F width of the MLP, H query heads, G key-value heads, E head width, T tokens of the cache, B rows,
K splits of a slot.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

from yivl_core.inference.layout import BLOCK_QUERIES, DecodeLayout, PrefillLayout
from yivl_core.inference.operations import Activations, Quantised

# Keys that one program of decode attention reads. Splits are counted from a slot's start, so they depend on positions alone.
_SPLIT_KEYS = 1024
_KEYS_BLOCK = 64
_PROMPT_KEYS_BLOCK = 64
_SILU_BLOCK = 2048


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
        return _norm(_rms_norm, hidden, pending, is_fp8, weight, epsilon)

    def layer_norm(
        self, hidden: torch.Tensor, norm: nn.LayerNorm, pending: torch.Tensor | None = None, *, is_fp8: bool = False
    ) -> Activations:
        """As `Operations`."""
        return _norm(_layer_norm, hidden, pending, is_fp8, norm.weight, norm.bias, norm.eps)

    def silu_product(self, gate_up: torch.Tensor, *, is_fp8: bool = False) -> Activations:
        """As `Operations`."""
        num_tokens, width = len(gate_up), gate_up.shape[-1] // 2
        if is_fp8:
            output, scale = _empty_rows(num_tokens, width, gate_up.device)
            block = triton.next_power_of_2(output.shape[1])
            _silu_product_fp8[(num_tokens,)](gate_up, output, scale, width, output.shape[1], BLOCK=block, num_warps=16)
            return Quantised(output, scale)
        product = gate_up.new_empty(num_tokens, width)
        _silu_product[(num_tokens, triton.cdiv(width, _SILU_BLOCK))](gate_up, product, width, BLOCK=_SILU_BLOCK, num_warps=8)
        return product

    def gelu_fp8(self, inputs: torch.Tensor) -> Quantised:
        """As `Operations`."""
        return _quantised(inputs, is_gelu=True)

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
        _, num_heads, head_dim = queries.shape
        output = queries.new_empty(queries.shape)
        blocks = layout.last_blocks if is_last else layout.blocks
        _attend_to_prompt[(blocks.shape[1], num_heads)](
            queries, keys, values, output, blocks, queries.stride(0),
            num_heads // keys.shape[1], keys.shape[1], math.log2(math.e) / math.sqrt(head_dim),
            HEAD_DIM=head_dim, BLOCK_QUERIES=BLOCK_QUERIES, BLOCK_KEYS=_PROMPT_KEYS_BLOCK, num_warps=4, num_stages=2,
        )  # fmt: skip
        return output

    def decode_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout
    ) -> torch.Tensor:
        """As `Operations`."""
        num_rows, num_heads, head_dim = queries.shape
        num_kv_heads = keys.shape[1]
        num_splits = triton.cdiv(layout.max_keys, _SPLIT_KEYS)
        partial = queries.new_empty(num_rows, num_heads, num_splits, head_dim, dtype=torch.float32)
        logsumexp = queries.new_empty(num_rows, num_heads, num_splits, dtype=torch.float32)
        output = queries.new_empty(num_rows, num_heads, head_dim)
        _attend_to_split[(num_rows, num_kv_heads, num_splits)](
            queries, keys, values, layout.positions, layout.starts, partial, logsumexp,
            queries.stride(0), num_splits, num_heads // num_kv_heads, num_kv_heads, math.log2(math.e) / math.sqrt(head_dim),
            HEAD_DIM=head_dim, BLOCK_HEAD=triton.next_power_of_2(head_dim),
            BLOCK_Q=max(16, triton.next_power_of_2(num_heads // num_kv_heads)), BLOCK_KEYS=_KEYS_BLOCK, SPLIT_KEYS=_SPLIT_KEYS,
            num_warps=4, num_stages=3,
        )  # fmt: skip
        _join_splits[(num_rows, num_heads)](
            partial, logsumexp, layout.positions, output, num_splits,
            HEAD_DIM=head_dim, BLOCK_HEAD=triton.next_power_of_2(head_dim), SPLIT_KEYS=_SPLIT_KEYS, num_warps=4,
        )  # fmt: skip
        return output


def quantise_rows(values: torch.Tensor) -> Quantised:
    """Rows `[S, K]` in 8 bits, each by a scale that makes its largest value the largest of the format."""
    return _quantised(values, is_gelu=False)


def _quantised(values: torch.Tensor, *, is_gelu: bool) -> Quantised:
    num_rows, width = values.shape
    output, scale = _empty_rows(num_rows, width, values.device)
    block = triton.next_power_of_2(output.shape[1])
    num_warps = 4 if block <= 4096 else 8
    _quantise_rows[(num_rows,)](
        values.contiguous(), output, scale, width, output.shape[1], IS_GELU=is_gelu, BLOCK=block, num_warps=num_warps
    )
    return Quantised(output, scale)


def _empty_rows(num_rows: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for rows in 8 bits, whose products want a multiple of 16, and for their scales."""
    values = torch.empty(num_rows, -(-width // 16) * 16, dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty(num_rows, dtype=torch.float32, device=device)


def _norm(kernel: Any, hidden: torch.Tensor, pending: torch.Tensor | None, is_fp8: bool, *arguments: Any) -> Activations:
    num_rows, width = hidden.shape
    scale: torch.Tensor | None = None
    if is_fp8:
        output, scale = _empty_rows(num_rows, width, hidden.device)
    else:
        output = torch.empty_like(hidden)
    kernel[(num_rows,)](
        hidden, pending, output, scale, width, 0 if pending is None or pending.dim() == 1 else width, output.shape[1], *arguments,
        HAS_PENDING=pending is not None, IS_FP8=is_fp8, BLOCK=triton.next_power_of_2(output.shape[1]),
        num_warps=8 if width > 2048 else 4,
    )  # fmt: skip
    return output if scale is None else Quantised(output, scale)


@triton.jit
def _store_fp8(values, output, scale, row, columns, padded):
    """One row, float32, in 8 bits."""
    factor = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-12) / 448.0  # the largest number of float8_e4m3fn
    tl.store(output + row * padded + columns, (values / factor).to(output.dtype.element_ty), mask=columns < padded)
    tl.store(scale + row, factor)


@triton.jit
def _quantise_rows(values, output, scale, width, padded, IS_GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    loaded = tl.load(values + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    if IS_GELU:
        loaded = 0.5 * loaded * (1.0 + tl.erf(loaded * 0.7071067811865476))
    _store_fp8(loaded, output, scale, row, columns, padded)


@triton.jit
def _silu_product_fp8(gate_up, output, scale, width, padded, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=is_inside, other=0.0).to(tl.float32)
    _store_fp8(gate * tl.sigmoid(gate) * up, output, scale, row, columns, padded)


@triton.jit
def _load_with_pending(hidden, pending, row, columns, width, pending_stride, HAS_PENDING: tl.constexpr):
    """One row of `hidden`, with what is pending added to it for good."""
    is_inside = columns < width
    values = tl.load(hidden + row * width + columns, mask=is_inside, other=0.0)
    if HAS_PENDING:
        added = tl.load(pending + row * pending_stride + columns, mask=is_inside, other=0.0)
        values = (values.to(tl.float32) + added.to(tl.float32)).to(values.dtype)
        tl.store(hidden + row * width + columns, values, mask=is_inside)
    return values


@triton.jit
def _rms_norm(
    hidden, pending, output, output_scale, width, pending_stride, padded, weight, epsilon,
    HAS_PENDING: tl.constexpr, IS_FP8: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < width
    values = _load_with_pending(hidden, pending, row, columns, width, pending_stride, HAS_PENDING).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / width + epsilon)
    factors = tl.load(weight + columns, mask=is_inside, other=0.0)
    normed = (values * scale).to(factors.dtype) * factors
    if IS_FP8:
        _store_fp8(normed.to(tl.float32), output, output_scale, row, columns, padded)
    else:
        tl.store(output + row * width + columns, normed, mask=is_inside)


@triton.jit
def _layer_norm(
    hidden, pending, output, output_scale, width, pending_stride, padded, weight, bias, epsilon,
    HAS_PENDING: tl.constexpr, IS_FP8: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < width
    values = _load_with_pending(hidden, pending, row, columns, width, pending_stride, HAS_PENDING)
    wide = values.to(tl.float32)
    centred = tl.where(is_inside, wide - tl.sum(wide, axis=0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + epsilon)
    factors = tl.load(weight + columns, mask=is_inside, other=0.0).to(tl.float32)
    normed = centred * scale * factors + tl.load(bias + columns, mask=is_inside, other=0.0).to(tl.float32)
    if IS_FP8:
        _store_fp8(normed, output, output_scale, row, columns, padded)
    else:
        tl.store(output + row * width + columns, normed.to(values.dtype), mask=is_inside)


@triton.jit
def _silu_product(gate_up, output, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=is_inside, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=is_inside, other=0.0)
    wide = gate.to(tl.float32)
    activated = (wide * tl.sigmoid(wide)).to(gate.dtype)
    tl.store(output + row * width + columns, activated * up, mask=is_inside)


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


@triton.jit
def _attend_to_prompt(
    queries, keys, values, output, blocks, query_stride, group, num_kv_heads, scale,
    HEAD_DIM: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Attention of one block of a prompt's queries of one head; `blocks` int64 [4, blocks] says which (`PrefillLayout`)."""
    block, num_blocks, head = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    first_query = tl.load(blocks + block)
    end_query = tl.load(blocks + num_blocks + block)
    first_position = tl.load(blocks + 2 * num_blocks + block)
    start = tl.load(blocks + 3 * num_blocks + block)
    columns = tl.arange(0, HEAD_DIM)
    places = first_query + tl.arange(0, BLOCK_QUERIES)
    is_query = places < end_query
    positions = first_position + tl.arange(0, BLOCK_QUERIES)
    query = tl.load(
        queries + places[:, None] * query_stride + head * HEAD_DIM + columns[None, :], mask=is_query[:, None], other=0.0
    )
    key_stride = num_kv_heads * HEAD_DIM
    base = start * key_stride + (head // group) * HEAD_DIM
    maximum = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    accumulated = tl.zeros([BLOCK_QUERIES, HEAD_DIM], tl.float32)
    end = (first_position + end_query - first_query).to(tl.int32)
    # Blocks of keys that all queries see come first, without a mask.
    num_seen = ((first_position + 1) // BLOCK_KEYS * BLOCK_KEYS).to(tl.int32)
    for key_block in range(0, num_seen, BLOCK_KEYS):
        offsets = base + (key_block + tl.arange(0, BLOCK_KEYS))[:, None] * key_stride + columns[None, :]
        scores = tl.dot(query, tl.trans(tl.load(keys + offsets))) * scale
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_maximum[:, None])
        shrink = tl.exp2(maximum - new_maximum)
        total = total * shrink + tl.sum(weights, axis=1)
        accumulated = accumulated * shrink[:, None]
        value = tl.load(values + offsets)
        accumulated = tl.dot(weights.to(value.dtype), value, accumulated)
        maximum = new_maximum
    for key_block in range(num_seen, end, BLOCK_KEYS):
        key_places = key_block + tl.arange(0, BLOCK_KEYS)
        offsets = base + key_places[:, None] * key_stride + columns[None, :]
        key = tl.load(keys + offsets, mask=(key_places < end)[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key)) * scale
        scores = tl.where(key_places[None, :] <= positions[:, None], scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_maximum[:, None])
        shrink = tl.exp2(maximum - new_maximum)
        total = total * shrink + tl.sum(weights, axis=1)
        accumulated = accumulated * shrink[:, None]
        value = tl.load(values + offsets, mask=(key_places < end)[:, None], other=0.0)
        accumulated = tl.dot(weights.to(value.dtype), value, accumulated)
        maximum = new_maximum
    result = (accumulated / total[:, None]).to(output.dtype.element_ty)
    places = places[:, None] * (tl.num_programs(1) * HEAD_DIM) + head * HEAD_DIM + columns[None, :]
    tl.store(output + places, result, mask=is_query[:, None])


@triton.jit
def _attend_to_split(
    queries, keys, values, positions, starts, partial, logsumexp, query_stride, num_splits, group, num_kv_heads, scale,
    HEAD_DIM: tl.constexpr, BLOCK_HEAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KEYS: tl.constexpr, SPLIT_KEYS: tl.constexpr,
):  # fmt: skip
    """Attention of one row's queries of one key-value head to one split of its slot; logarithms are of base 2."""
    row, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    num_keys = (tl.load(positions + row) + 1).to(tl.int32)
    first_key = split * SPLIT_KEYS
    if first_key < num_keys:
        heads, columns = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_HEAD)
        is_query = (heads < group)[:, None] & (columns < HEAD_DIM)[None, :]
        head_places = (kv_head * group + heads)[:, None] * HEAD_DIM + columns[None, :]
        query = tl.load(queries + row * query_stride + head_places, mask=is_query, other=0.0)
        base = (tl.load(starts + row) * num_kv_heads + kv_head) * HEAD_DIM
        maximum = tl.full([BLOCK_Q], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_Q], tl.float32)
        output = tl.zeros([BLOCK_Q, BLOCK_HEAD], tl.float32)
        end = tl.minimum(first_key + SPLIT_KEYS, num_keys)
        for block in range(first_key, end, BLOCK_KEYS):
            places = block + tl.arange(0, BLOCK_KEYS)
            is_key = places < end
            offsets = base + places[:, None] * num_kv_heads * HEAD_DIM + columns[None, :]
            mask = is_key[:, None] & (columns < HEAD_DIM)[None, :]
            key = tl.load(keys + offsets, mask=mask, other=0.0)
            value = tl.load(values + offsets, mask=mask, other=0.0)
            scores = tl.dot(query, tl.trans(key)) * scale
            scores = tl.where(is_key[None, :], scores, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
            weights = tl.exp2(scores - new_maximum[:, None])
            shrink = tl.exp2(maximum - new_maximum)
            total = total * shrink + tl.sum(weights, axis=1)
            output = output * shrink[:, None] + tl.dot(weights.to(value.dtype), value)
            maximum = new_maximum
        place = (row * num_kv_heads * group + kv_head * group + heads) * num_splits + split
        tl.store(partial + place[:, None] * HEAD_DIM + columns[None, :], output / total[:, None], mask=is_query)
        tl.store(logsumexp + place, maximum + tl.log2(total), mask=heads < group)


@triton.jit
def _join_splits(
    partial, logsumexp, positions, output, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_HEAD: tl.constexpr, SPLIT_KEYS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_keys = (tl.load(positions + row) + 1).to(tl.int32)
    columns = tl.arange(0, BLOCK_HEAD)
    is_inside = columns < HEAD_DIM
    place = row * tl.num_programs(1) + head
    maximum = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    joined = tl.zeros([BLOCK_HEAD], tl.float32)
    for split in range(tl.cdiv(num_keys, SPLIT_KEYS)):
        logarithm = tl.load(logsumexp + place * num_splits + split)
        values = tl.load(partial + (place * num_splits + split) * HEAD_DIM + columns, mask=is_inside, other=0.0)
        new_maximum = tl.maximum(maximum, logarithm)
        shrink, weight = tl.exp2(maximum - new_maximum), tl.exp2(logarithm - new_maximum)
        joined = joined * shrink + values * weight
        total = total * shrink + weight
        maximum = new_maximum
    tl.store(output + place * HEAD_DIM + columns, (joined / total).to(output.dtype.element_ty), mask=is_inside)
