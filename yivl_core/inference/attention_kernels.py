"""Attention over the key-value cache as Triton kernels: of whole prompts, and of single tokens to long slots.

Every query is computed in the same order whatever stands beside it, so a batch's size changes none of its results.

Shapes: S tokens, H query heads, G key-value heads, E head width, T tokens of the cache, B rows.
"""

import math

import torch
import triton
import triton.language as tl

from yivl_core.inference.layout import BLOCK_QUERIES, DecodeLayout

# Keys that one program of decode attention reads. Splits are counted from a slot's start, so they depend on positions alone.
_SPLIT_KEYS = 1024
_KEYS_BLOCK = 64
_PROMPT_KEYS_BLOCK = 64


def attend_to_prompts(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """What tokens of prompts attend to: all before them in their own prompt, and themselves.

    Args:
        queries: `[S, H, E]`.
        keys: `[T, G, E]` of the cache.
        values: `[T, G, E]` of the cache.
        blocks: int64 `[4, blocks]`, which queries belong together (`PrefillLayout`).

    Returns:
        `[S, H, E]`; undefined for queries in no block.
    """
    _, num_heads, head_dim = queries.shape
    output = queries.new_empty(queries.shape)
    _attend_to_prompt[(blocks.shape[1], num_heads)](
        queries, keys, values, output, blocks, queries.stride(0),
        num_heads // keys.shape[1], keys.shape[1], math.log2(math.e) / math.sqrt(head_dim),
        HEAD_DIM=head_dim, BLOCK_QUERIES=BLOCK_QUERIES, BLOCK_KEYS=_PROMPT_KEYS_BLOCK, num_warps=4, num_stages=2,
    )  # fmt: skip
    return output


def attend_to_slots(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout) -> torch.Tensor:
    """What one token for each row attends to, `[B, H, E]`; keys and values `[T, G, E]` of the cache."""
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


@triton.jit
def _add_keys(scores, value, maximum, total, accumulated):
    """The running softmax with a block of keys more (Milakov and Gimelshein, arXiv 1805.02867); scores are of base 2."""
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_maximum[:, None])
    shrink = tl.exp2(maximum - new_maximum)
    total = total * shrink + tl.sum(weights, axis=1)
    accumulated = tl.dot(weights.to(value.dtype), value, accumulated * shrink[:, None])
    return new_maximum, total, accumulated


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
        maximum, total, accumulated = _add_keys(scores, tl.load(values + offsets), maximum, total, accumulated)
    for key_block in range(num_seen, end, BLOCK_KEYS):
        key_places = key_block + tl.arange(0, BLOCK_KEYS)
        offsets = base + key_places[:, None] * key_stride + columns[None, :]
        key = tl.load(keys + offsets, mask=(key_places < end)[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key)) * scale
        scores = tl.where(key_places[None, :] <= positions[:, None], scores, float("-inf"))
        value = tl.load(values + offsets, mask=(key_places < end)[:, None], other=0.0)
        maximum, total, accumulated = _add_keys(scores, value, maximum, total, accumulated)
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
        accumulated = tl.zeros([BLOCK_Q, BLOCK_HEAD], tl.float32)
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
            maximum, total, accumulated = _add_keys(scores, value, maximum, total, accumulated)
        place = (row * num_kv_heads * group + kv_head * group + heads) * num_splits + split
        tl.store(partial + place[:, None] * HEAD_DIM + columns[None, :], accumulated / total[:, None], mask=is_query)
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
