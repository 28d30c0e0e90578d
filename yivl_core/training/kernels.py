"""The operations of `operations.py` as Triton kernels: one pass over memory each, sums in float32.

What dropout drops is a function of seed, row and column, so that it need not be kept: a row's mask is made anew wherever it is
wanted. Sums over rows are made in a fixed order.

Shapes: S tokens, D width, F width of the MLP, K inputs, M adapters of joined layers, R rank, H heads, E head width.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional

from yivl_core.model import row_kernels
from yivl_core.training.layout import RowLayout
from yivl_core.training.operations import Activation, Dropout, Norm

_BLOCK = 2048
_MAX_ADAPTERS = 3
# Odd factors that make of one random number three: 2**32 divided by the golden ratio, and one of MurmurHash3's.
_SECOND, _THIRD = tl.constexpr(0x9E3779B1), tl.constexpr(0x85EBCA6B)
_STEPS = 2**24  # in which a rate is given to a kernel
_PROGRAMS = 264  # two for each multiprocessor of an H100


class KernelOperations:
    """The operations on a GPU, for float16 and bfloat16; see `Operations`."""

    def norm(self, hidden: torch.Tensor, norm: Norm) -> torch.Tensor:
        """As `Operations`."""
        if norm.bias is None:
            normed = row_kernels.rms_norm(hidden, norm.weight, norm.epsilon)
        else:
            normed = row_kernels.layer_norm(hidden, norm.weight, norm.bias, norm.epsilon)
        assert isinstance(normed, torch.Tensor)
        return normed

    def norm_backward(self, grad: torch.Tensor, hidden: torch.Tensor, norm: Norm, grad_residual: torch.Tensor) -> torch.Tensor:
        """As `Operations`."""
        width = hidden.shape[1]
        _norm_backward[(len(hidden),)](
            grad, hidden, norm.weight, grad_residual, width, norm.epsilon,
            HAS_BIAS=norm.bias is not None, BLOCK=triton.next_power_of_2(width), num_warps=8 if width > 2048 else 4,
        )  # fmt: skip
        return grad

    def activate(self, inputs: torch.Tensor, activation: Activation) -> torch.Tensor:
        """As `Operations`."""
        active = row_kernels.silu_product(inputs) if activation == "silu_product" else functional.gelu(inputs)
        assert isinstance(active, torch.Tensor)
        return active

    def activate_backward(self, inputs: torch.Tensor, grad: torch.Tensor, activation: Activation) -> torch.Tensor:
        """As `Operations`."""
        width = grad.shape[1]
        _activate_backward[(len(inputs), triton.cdiv(width, _BLOCK))](
            inputs, grad, width, IS_PRODUCT=activation == "silu_product", BLOCK=_BLOCK, num_warps=8
        )
        return inputs

    def rotate(self, qkv: torch.Tensor, rotation: torch.Tensor, num_heads: int, head_dim: int, layout: RowLayout) -> torch.Tensor:
        """As `Operations`."""
        slots = layout.slots
        num_all = qkv.shape[1] // head_dim
        output = qkv if slots is None else qkv.new_empty(len(slots), qkv.shape[1])
        _rotate[(len(output),)](
            qkv, output, rotation, layout.position_ids, slots, rotation.shape[1], num_heads, num_all,
            HAS_SLOTS=slots is not None, HALF=head_dim // 2,
            BLOCK=triton.next_power_of_2(num_all if slots is not None else num_heads), num_warps=4,
        )  # fmt: skip
        return output

    def rotate_back(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotation: torch.Tensor | None, layout: RowLayout | None
    ) -> torch.Tensor:
        """As `Operations`."""
        if rotation is None or layout is None:
            return torch.cat([query, key, value], dim=1).flatten(1)
        num_heads, head_dim = query.shape[1:]
        num_kv_heads = key.shape[1]
        num_tokens = len(layout.position_ids)
        query, key, value = (part if part.stride()[1:] == (head_dim, 1) else part.contiguous() for part in (query, key, value))
        output = query.new_empty(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
        _rotate_back[(num_tokens,)](
            query, key, value, output, rotation, layout.position_ids, layout.places, rotation.shape[1],
            query.stride(0), key.stride(0), value.stride(0), num_heads, num_kv_heads,
            HAS_PLACES=layout.slots is not None, HALF=head_dim // 2,
            BLOCK=triton.next_power_of_2(num_heads), KV_BLOCK=triton.next_power_of_2(num_kv_heads), num_warps=4,
        )  # fmt: skip
        return output

    def lora_down(
        self, inputs: torch.Tensor, down: torch.Tensor, num_adapters: int, scale: float, dropout: Dropout
    ) -> torch.Tensor:
        """As `Operations`."""
        assert num_adapters <= _MAX_ADAPTERS
        num_rows, width = inputs.shape
        rank = len(down) // num_adapters
        low = inputs.new_empty(num_rows, len(down))
        block = 64 if num_rows >= 64 * _PROGRAMS // 4 else 32 if num_rows >= 32 * _PROGRAMS // 4 else 16
        _lora_down[(triton.cdiv(num_rows, block),)](
            inputs, down, low, num_rows, width, dropout.seed, int(dropout.rate * _STEPS), scale * dropout.factor, rank,
            NUM=num_adapters, DROPS=dropout.rate > 0, ROWS=block, COLUMNS=128, RANK=max(16, triton.next_power_of_2(rank)),
            num_warps=4, num_stages=3,
        )  # fmt: skip
        return low

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
        assert num_adapters <= _MAX_ADAPTERS
        num_rows, width = inputs.shape
        columns = rows = 64
        num_blocks = triton.cdiv(width, columns)
        splits = max(1, min(triton.cdiv(num_rows, rows), _PROGRAMS // num_blocks))
        split_rows = triton.cdiv(triton.cdiv(num_rows, splits), rows) * rows
        splits = triton.cdiv(num_rows, split_rows)
        rank = len(down) // num_adapters
        grad_down = torch.empty(splits, *down.shape, dtype=torch.float32, device=down.device)
        _lora_backward[(num_blocks, splits)](
            inputs, down, grad_low, grad_inputs, grad_down, num_rows, width, dropout.seed, int(dropout.rate * _STEPS), split_rows,
            rank, NUM=num_adapters, DROPS=dropout.rate > 0, HAS_GRAD=grad_inputs is not None, ROWS=rows, COLUMNS=columns,
            RANK=max(16, triton.next_power_of_2(rank)), num_warps=4, num_stages=2,
        )  # fmt: skip
        return grad_down.sum(dim=0)


@triton.jit
def _norm_backward(grad, hidden, weight, grad_residual, width, epsilon, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """Writes over `grad`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < width
    values = tl.load(hidden + row * width + columns, mask=is_inside, other=0.0).to(tl.float32)
    scaled = tl.load(grad + row * width + columns, mask=is_inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + columns, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        values = tl.where(is_inside, values - tl.sum(values, axis=0) / width, 0.0)
        scaled = tl.where(is_inside, scaled - tl.sum(scaled, axis=0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / width + epsilon)
    normed = values * scale
    own = scale * (scaled - normed * (tl.sum(scaled * normed, axis=0) / width))
    residual = tl.load(grad_residual + row * width + columns, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(grad + row * width + columns, (residual + own).to(grad.dtype.element_ty), mask=is_inside)


@triton.jit
def _activate_backward(inputs, grad, width, IS_PRODUCT: tl.constexpr, BLOCK: tl.constexpr):
    """Writes over `inputs`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < width
    dtype: tl.constexpr = inputs.dtype.element_ty
    slope = tl.load(grad + row * width + columns, mask=is_inside, other=0.0).to(tl.float32)
    if IS_PRODUCT:
        base = inputs + row * 2 * width + columns
        gate = tl.load(base, mask=is_inside, other=0.0).to(tl.float32)
        up = tl.load(base + width, mask=is_inside, other=0.0).to(tl.float32)
        opened = tl.sigmoid(gate)
        tl.store(base, (slope * up * opened * (1.0 + gate * (1.0 - opened))).to(dtype), mask=is_inside)
        tl.store(base + width, (slope * gate * opened).to(dtype), mask=is_inside)
    else:
        base = inputs + row * width + columns
        values = tl.load(base, mask=is_inside, other=0.0).to(tl.float32)
        cumulated = 0.5 * (1.0 + tl.erf(values * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * values * values)
        tl.store(base, (slope * (cumulated + values * density)).to(dtype), mask=is_inside)


@triton.jit
def _rotate(
    qkv, output, rotation, position_ids, slots, num_positions, num_heads, num_all,
    HAS_SLOTS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token's heads, the first `num_heads` turned; in place without slots, where the others stay as they are."""
    place = tl.program_id(0).to(tl.int64)
    token = place
    if HAS_SLOTS:
        token = tl.load(slots + place)
    is_token = token >= 0
    columns = tl.arange(0, HALF)
    position = tl.load(position_ids + token, mask=is_token, other=0)
    cosine = tl.load(rotation + position * HALF + columns)[None, :]
    sine = tl.load(rotation + (num_positions + position) * HALF + columns)[None, :]
    heads = tl.arange(0, BLOCK)[:, None]
    is_turned = heads < num_heads
    is_copied = (heads < num_all) if HAS_SLOTS else is_turned
    offsets = heads * 2 * HALF + columns[None, :]
    source = qkv + token * num_all * 2 * HALF + offsets
    first = tl.load(source, mask=is_copied & is_token, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=is_copied & is_token, other=0.0).to(tl.float32)
    turned_first = tl.where(is_turned, first * cosine - second * sine, first)
    turned_second = tl.where(is_turned, second * cosine + first * sine, second)
    target = output + place * num_all * 2 * HALF + offsets
    tl.store(target, turned_first.to(output.dtype.element_ty), mask=is_copied)
    tl.store(target + HALF, turned_second.to(output.dtype.element_ty), mask=is_copied)


@triton.jit
def _turn_back(source, target, cosine, sine, num_heads, IS_TURNED: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    heads = tl.arange(0, BLOCK)[:, None]
    offsets = heads * 2 * HALF + tl.arange(0, HALF)[None, :]
    is_head = heads < num_heads
    first = tl.load(source + offsets, mask=is_head, other=0.0).to(tl.float32)
    second = tl.load(source + HALF + offsets, mask=is_head, other=0.0).to(tl.float32)
    if IS_TURNED:
        turned = first * cosine + second * sine
        second = second * cosine - first * sine
        first = turned
    tl.store(target + offsets, first.to(target.dtype.element_ty), mask=is_head)
    tl.store(target + HALF + offsets, second.to(target.dtype.element_ty), mask=is_head)


@triton.jit
def _rotate_back(
    query, key, value, output, rotation, position_ids, places, num_positions, query_stride, key_stride, value_stride,
    num_heads, num_kv_heads, HAS_PLACES: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    place = token
    if HAS_PLACES:
        place = tl.load(places + token)
    columns = tl.arange(0, HALF)
    position = tl.load(position_ids + token)
    cosine = tl.load(rotation + position * HALF + columns)[None, :]
    sine = tl.load(rotation + (num_positions + position) * HALF + columns)[None, :]
    target = output + token * (num_heads + 2 * num_kv_heads) * 2 * HALF
    _turn_back(query + place * query_stride, target, cosine, sine, num_heads, True, HALF, BLOCK)
    target += num_heads * 2 * HALF
    _turn_back(key + place * key_stride, target, cosine, sine, num_kv_heads, True, HALF, KV_BLOCK)
    target += num_kv_heads * 2 * HALF
    _turn_back(value + place * value_stride, target, cosine, sine, num_kv_heads, False, HALF, KV_BLOCK)


@triton.jit
def _random(rows, columns, width, seed):
    """32 random bits for each element (lowbias32 of C. Wellons' hash-prospector, of the element's number)."""
    bits = (rows[:, None] * width + columns[None, :]).to(tl.uint32) * tl.full([], 0x9E3779B1, tl.uint32)
    bits = bits ^ seed.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * tl.full([], 0x7FEB352D, tl.uint32)
    bits = (bits ^ (bits >> 15)) * tl.full([], 0x846CA68B, tl.uint32)
    return bits ^ (bits >> 16)


@triton.jit
def _kept(values, bits, threshold, DROPS: tl.constexpr):
    return tl.where((bits >> 8).to(tl.int32) >= threshold, values, 0.0) if DROPS else values


@triton.jit
def _add_low(accumulated, values, bits, threshold, down, number, places, is_inside, rank, width,
             DROPS: tl.constexpr, RANK: tl.constexpr):  # fmt: skip
    ranks = tl.arange(0, RANK)
    half = tl.load(
        down + (number * rank + ranks)[None, :] * width + places[:, None],
        mask=(ranks < rank)[None, :] & is_inside[:, None], other=0.0,
    )  # fmt: skip
    return tl.dot(_kept(values, bits, threshold, DROPS).to(values.dtype), half.to(values.dtype), accumulated)


@triton.jit
def _store_low(low, accumulated, factor, number, rows, num_rows, rank, NUM: tl.constexpr, RANK: tl.constexpr):
    ranks = tl.arange(0, RANK)
    tl.store(
        low + rows[:, None] * (NUM * rank) + (number * rank + ranks)[None, :], (accumulated * factor).to(low.dtype.element_ty),
        mask=(rows < num_rows)[:, None] & (ranks < rank)[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["seed", "threshold"])
def _lora_down(
    inputs, down, low, num_rows, width, seed, threshold, factor, rank,
    NUM: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.zeros([ROWS, RANK], tl.float32)
    second, third = first, first
    for start in range(0, width, COLUMNS):
        places = start + tl.arange(0, COLUMNS)
        is_inside = places < width
        values = tl.load(
            inputs + rows[:, None].to(tl.int64) * width + places[None, :],
            mask=(rows < num_rows)[:, None] & is_inside[None, :], other=0.0,
        )  # fmt: skip
        bits = _random(rows, places, width, seed) if DROPS else 0
        first = _add_low(first, values, bits, threshold, down, 0, places, is_inside, rank, width, DROPS, RANK)
        if NUM > 1:
            bits_of_second = bits * tl.full([], _SECOND, tl.uint32) if DROPS else 0
            second = _add_low(second, values, bits_of_second, threshold, down, 1, places, is_inside, rank, width, DROPS, RANK)
        if NUM > 2:
            bits_of_third = bits * tl.full([], _THIRD, tl.uint32) if DROPS else 0
            third = _add_low(third, values, bits_of_third, threshold, down, 2, places, is_inside, rank, width, DROPS, RANK)
    _store_low(low, first, factor, 0, rows, num_rows, rank, NUM, RANK)
    if NUM > 1:
        _store_low(low, second, factor, 1, rows, num_rows, rank, NUM, RANK)
    if NUM > 2:
        _store_low(low, third, factor, 2, rows, num_rows, rank, NUM, RANK)


@triton.jit
def _add_gradients(
    accumulated, back, values, bits, threshold, down, grad_low, number, rows, places, num_rows, width, rank,
    NUM: tl.constexpr, DROPS: tl.constexpr, HAS_GRAD: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The gradients of one adapter's first half, and of its inputs, with a block more."""
    ranks = tl.arange(0, RANK)
    grad = tl.load(
        grad_low + rows[:, None] * (NUM * rank) + (number * rank + ranks)[None, :],
        mask=(rows < num_rows)[:, None] & (ranks < rank)[None, :], other=0.0,
    )  # fmt: skip
    if HAS_GRAD:
        half = tl.load(
            down + (number * rank + ranks)[:, None] * width + places[None, :],
            mask=(ranks < rank)[:, None] & (places < width)[None, :], other=0.0,
        )  # fmt: skip
        back += _kept(tl.dot(grad, half.to(grad.dtype)), bits, threshold, DROPS)
    kept = _kept(values, bits, threshold, DROPS).to(values.dtype)
    return tl.dot(tl.trans(grad), kept, accumulated), back


@triton.jit(do_not_specialize=["seed", "threshold"])
def _lora_backward(
    inputs, down, grad_low, grad_inputs, grad_down, num_rows, width, seed, threshold, split_rows, rank,
    NUM: tl.constexpr, DROPS: tl.constexpr, HAS_GRAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    first = tl.zeros([RANK, COLUMNS], tl.float32)
    second, third = first, first
    for start in range(split * split_rows, tl.minimum((split + 1) * split_rows, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        is_inside = (rows < num_rows)[:, None] & (places < width)[None, :]
        offsets = rows[:, None].to(tl.int64) * width + places[None, :]
        values = tl.load(inputs + offsets, mask=is_inside, other=0.0)
        back = tl.zeros([ROWS, COLUMNS], tl.float32)
        if HAS_GRAD:
            back = tl.load(grad_inputs + offsets, mask=is_inside, other=0.0).to(tl.float32)
        bits = _random(rows, places, width, seed) if DROPS else 0
        first, back = _add_gradients(
            first,
            back,
            values,
            bits,
            threshold,
            down,
            grad_low,
            0,
            rows,
            places,
            num_rows,
            width,
            rank,
            NUM,
            DROPS,
            HAS_GRAD,
            RANK,
        )
        if NUM > 1:
            bits_of_second = bits * tl.full([], _SECOND, tl.uint32) if DROPS else 0
            second, back = _add_gradients(
                second, back, values, bits_of_second, threshold, down, grad_low, 1, rows, places, num_rows, width, rank,
                NUM, DROPS, HAS_GRAD, RANK,
            )  # fmt: skip
        if NUM > 2:
            bits_of_third = bits * tl.full([], _THIRD, tl.uint32) if DROPS else 0
            third, back = _add_gradients(
                third, back, values, bits_of_third, threshold, down, grad_low, 2, rows, places, num_rows, width, rank,
                NUM, DROPS, HAS_GRAD, RANK,
            )  # fmt: skip
        if HAS_GRAD:
            tl.store(grad_inputs + offsets, back.to(grad_inputs.dtype.element_ty), mask=is_inside)
    ranks = tl.arange(0, RANK)
    target = grad_down + split * NUM * rank * width + ranks[:, None] * width + places[None, :]
    is_inside = (ranks < rank)[:, None] & (places < width)[None, :]
    tl.store(target, first, mask=is_inside)
    if NUM > 1:
        tl.store(target + rank * width, second, mask=is_inside)
    if NUM > 2:
        tl.store(target + 2 * rank * width, third, mask=is_inside)
