"""Frozen linear layers with their LoRA, as the fast path trains them: those that read the same input are one matrix product.

Shapes: S tokens, K inputs, N outputs of all joined layers, M adapters among them, R rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from yivl_core.model.adapters import ADAPTER_NAME, plain_layer
from yivl_core.model.float8 import Float8Weight
from yivl_core.model.nf4 import is_in_nf4, unpack_nf4
from yivl_core.training.operations import Dropout, Operations


class Projection:
    """Linear layers joined along their outputs. Their weights become views of the joined one, so nothing is held twice.

    Args:
        layers: plain ones, or with PEFT's plain LoRA on them, all of one rank, scale and dropout; those that are held in 4 bits
            stay as they are.
        operations: of the device.
        is_fp8: whether the weights, and what they are multiplied with, are rounded to 8 bits; the layers are emptied then.

    Attributes:
        parameters: of the adapters, A and B of each in turn; float32 `[R, K]` and `[outputs, R]`.
    """

    def __init__(self, layers: Sequence[nn.Module], operations: Operations, *, is_fp8: bool = False) -> None:
        plain = [plain_layer(layer) for layer in layers]
        self._operations = operations
        self._weight = _weight(plain, is_fp8=is_fp8)
        self._columns: list[slice] = []
        self.parameters: list[torch.Tensor] = []
        self._scale, self._rate = 1.0, 0.0
        start = 0
        for layer, base in zip(layers, plain, strict=True):
            if isinstance(layer, LoraLayer):
                self._columns.append(slice(start, start + base.out_features))
                halves: Any = layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
                self.parameters += [half.weight for half in halves]
                self._scale = layer.scaling[ADAPTER_NAME]
                dropout = layer.lora_dropout[ADAPTER_NAME]
                self._rate = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
            start += base.out_features

    def forward(
        self,
        inputs: torch.Tensor,
        parameters: Sequence[torch.Tensor],
        seed: int | None,
        *,
        residual: torch.Tensor | None = None,
        low: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The outputs `[S, N]`, and what the first halves of the adapters gave, scaled, `[S, M * R]`; None without adapters.

        Args:
            inputs: `[S, K]`.
            parameters: as the attribute.
            seed: of dropout; None: nothing is dropped.
            residual: `[S, N]`, added.
            low: what the first halves of the adapters gave before, if they did.
        """
        outputs = self._weight.forward(inputs, residual)
        if not self._columns:
            return outputs, None
        if low is None:
            down = torch.cat([*parameters[::2]])
            low = self._operations.lora_down(inputs, down, len(self._columns), self._scale, self._dropout(seed))
        for columns, part, up in zip(self._columns, low.chunk(len(self._columns), dim=1), parameters[1::2], strict=True):
            outputs[:, columns].addmm_(part, up.to(low.dtype).t())
        return outputs, low

    def backward(
        self,
        grad: torch.Tensor,
        inputs: torch.Tensor | None,
        low: torch.Tensor | None,
        parameters: Sequence[torch.Tensor],
        seed: int | None,
        *,
        wants_inputs: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Gradients of the inputs and of the parameters.

        Args:
            grad: of the outputs, `[S, N]`.
            inputs: `[S, K]`; None without adapters.
            low: what `forward` gave.
            parameters: as given to `forward`.
            seed: as given to `forward`.
            wants_inputs: whether the gradient of the inputs is wanted.
        """
        grad_inputs = self._weight.backward(grad) if wants_inputs else None  # [S, K]
        if low is None:
            return grad_inputs, []
        assert inputs is not None
        dropout, num_adapters = self._dropout(seed), len(self._columns)
        grad_low = torch.empty_like(low)
        grads_up = []
        parts = zip(
            self._columns, low.chunk(num_adapters, dim=1), grad_low.chunk(num_adapters, dim=1), parameters[1::2], strict=True
        )
        for columns, part, grad_part, up in parts:
            grad_part.copy_(grad[:, columns] @ (self._scale * dropout.factor * up).to(low.dtype))
            grads_up.append(_product_in_float32(grad[:, columns].t(), part))
        grad_down = self._operations.lora_backward(
            inputs, torch.cat([*parameters[::2]]), num_adapters, grad_low, dropout, grad_inputs
        )
        pairs = zip(grad_down.chunk(num_adapters), grads_up, strict=True)
        return grad_inputs, [each.to(parameters[0].dtype) for pair in pairs for each in pair]

    def _dropout(self, seed: int | None) -> Dropout:
        return Dropout(rate=0.0, seed=0) if seed is None else Dropout(rate=self._rate, seed=seed)


class _Weight:
    """A frozen weight `[N, K]` with its bias `[N]`, in its own dtype."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def forward(self, inputs: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """`[S, N]`."""
        if residual is None:
            return functional.linear(inputs, self._values(), self._bias)
        outputs = torch.addmm(residual, inputs, self._values().t())
        return outputs if self._bias is None else outputs.add_(self._bias)

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        """`[S, K]`."""
        return grad @ self._values()

    def _values(self) -> torch.Tensor:
        return self._weight


class _Float8(_Weight):
    """The same in 8 bits: once rounded by its outputs, and once, for the backward pass, by its inputs."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._product, self._transposed = Float8Weight(weight, bias), Float8Weight(weight.t().contiguous())

    def forward(self, inputs: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        outputs = self._product(inputs)
        return outputs if residual is None else outputs.add_(residual)

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        return self._transposed(grad)


class _Nf4(_Weight):
    """The same of layers that are held in 4 bits, unpacked anew for each product."""

    def __init__(self, layers: Sequence[nn.Linear], bias: torch.Tensor | None) -> None:
        self._layers, self._bias = layers, bias

    def _values(self) -> torch.Tensor:
        return unpack_nf4(self._layers)


def _weight(layers: Sequence[nn.Linear], *, is_fp8: bool) -> _Weight:
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else _joined(biases)  # [N]
    if is_in_nf4(layers[0]):
        return _Nf4(layers, bias)
    weight = _joined([layer.weight for layer in layers])  # [N, K]
    if not is_fp8:
        return _Weight(weight, bias)
    for layer in layers:
        layer.weight = None  # type: ignore[assignment]
    return _Float8(weight, bias)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The parts one below the other; they become views of the whole."""
    if len(parts) == 1:
        return parts[0].detach()
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


def _product_in_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product of low-rank gradients, which are summed up over the rows of a step."""
    if a.is_cuda and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b
