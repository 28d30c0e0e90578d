"""Norms, activations and rounding to 8 bits as Triton kernels, each in one pass over memory, for inference and training alike.

Every row is computed in the same order whatever stands beside it, so a batch's size changes none of its results.

Shapes: S tokens, D width, F width of the MLP, K columns of a row.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from yivl_core.model.quantised import Activations, Quantised

_SILU_BLOCK = 2048


def rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, epsilon: float, pending: torch.Tensor | None = None, *, is_fp8: bool = False
) -> Activations:
    """Root mean square norm `[S, D]` of hidden `[S, D]`, to which `pending`, `[S, D]` or `[D]`, is added first, for good."""
    return _norm(_rms_norm, hidden, pending, is_fp8, weight, epsilon)


def layer_norm(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    pending: torch.Tensor | None = None,
    *,
    is_fp8: bool = False,
) -> Activations:
    """Layer norm `[S, D]` of hidden `[S, D]`, to which `pending`, `[S, D]` or `[D]`, is added first, for good."""
    return _norm(_layer_norm, hidden, pending, is_fp8, weight, bias, epsilon)


def silu_product(gate_up: torch.Tensor, *, is_fp8: bool = False) -> Activations:
    """`silu(gate) * up` `[S, F]` of both side by side, `[S, 2 F]`."""
    num_tokens, width = len(gate_up), gate_up.shape[-1] // 2
    if is_fp8:
        output, scale = _empty_rows(num_tokens, width, gate_up.device)
        block = triton.next_power_of_2(output.shape[1])
        _silu_product_fp8[(num_tokens,)](gate_up, output, scale, width, output.shape[1], BLOCK=block, num_warps=16)
        return Quantised(output, scale)
    product = gate_up.new_empty(num_tokens, width)
    _silu_product[(num_tokens, triton.cdiv(width, _SILU_BLOCK))](gate_up, product, width, BLOCK=_SILU_BLOCK, num_warps=8)
    return product


def gelu_fp8(inputs: torch.Tensor) -> Quantised:
    """The exact GELU of inputs `[S, F]`, in 8 bits."""
    return _quantised(inputs, is_gelu=True)


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
