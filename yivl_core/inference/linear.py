"""Frozen linear layers as the engine runs them: several in one matrix product, each with its part of an adapter if there is one.

Shapes: S tokens, K inputs, N outputs, R rank of the adapter (all ranks together where layers are joined).
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional

from yivl_core.model.adapters import ADAPTER_NAME, plain_layer
from yivl_core.model.float8 import Float8Weight
from yivl_core.model.quantised import Activations


class FusedLinear:
    """Linear layers that read the same input, joined along their outputs.

    The layers are emptied, so that no second copy of their weights is held.

    Args:
        layers: plain ones, or with a plain LoRA on them as PEFT puts it (`is_plain_lora`).
        is_fp8: whether weights, and inputs on their way, are rounded to float8_e4m3fn, each row by its own scale; on a GPU alone.
    """

    def __init__(self, *layers: nn.Module, is_fp8: bool = False) -> None:
        plain = [plain_layer(layer) for layer in layers]
        self.num_outputs = sum(layer.out_features for layer in plain)
        self.bias = _joined_bias(plain)  # [N]
        self.lora_a, self.lora_b = _joined_adapter(layers, plain)  # [R, K], [N, R]
        weight = plain[0].weight.detach() if len(plain) == 1 else torch.cat([layer.weight.detach() for layer in plain])
        for layer in plain:
            layer.weight = None  # type: ignore[assignment]
        for adapted in layers:
            if isinstance(adapted, LoraLinear):
                adapted.lora_A.clear()
                adapted.lora_B.clear()
        self._product = _choose_product(weight, self.bias, is_fp8=is_fp8)
        if weight.is_cuda and (is_fp8 or len(plain) > 1):
            del weight
            torch.cuda.empty_cache()  # else the places of the single weights stay, and are too small for joined ones

    @property
    def takes_fp8(self) -> bool:
        """Whether inputs had better come in 8 bits already."""
        return isinstance(self._product, _Float8Product) and self.lora_a is None

    def __call__(self, inputs: Activations) -> torch.Tensor:
        """Outputs `[..., N]` of inputs `[..., K]`."""
        return self._adapted(inputs, self._product(inputs))

    def gelu(self, inputs: Activations) -> torch.Tensor:
        """The exact GELU of the outputs."""
        if self.lora_a is not None:
            return functional.gelu(self(inputs))
        return self._product.gelu(inputs)

    def add_to(self, residual: torch.Tensor, inputs: Activations) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The sum of `residual` `[S, N]` and the outputs of inputs `[S, K]`, in two parts.

        Returns:
            What is added already, in which `residual` itself may have been changed; and what is still to be added, `[N]` or
            `[S, N]`, or None. Whoever reads the sum next adds it, which saves a pass over memory.
        """
        added, pending = self._product.add_to(residual, inputs)
        return self._adapted(inputs, added), pending

    def _adapted(self, inputs: Activations, outputs: torch.Tensor) -> torch.Tensor:
        if self.lora_a is None or self.lora_b is None:
            return outputs
        assert isinstance(inputs, torch.Tensor), "adapters take no 8 bits"
        low = functional.linear(inputs, self.lora_a).flatten(0, -2)  # [S, R]
        outputs.view(-1, self.num_outputs).addmm_(low, self.lora_b.t())
        return outputs


def _joined_bias(layers: Sequence[nn.Linear]) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    parts = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in layers]
    return torch.cat(parts)


def _joined_adapter(layers: Sequence[nn.Module], plain: Sequence[nn.Linear]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Both halves, each layer's part in its own rows and columns, the scale in B; None where no layer is adapted."""
    adapted = [(layer, number) for number, layer in enumerate(layers) if isinstance(layer, LoraLinear)]
    if not adapted:
        return None, None
    parts_a: list[torch.Tensor] = []
    dtype, device = plain[0].weight.dtype, plain[0].weight.device
    ranks = [_half(layer, "lora_A").shape[0] for layer, _ in adapted]
    joined_b = torch.zeros(sum(layer.out_features for layer in plain), sum(ranks), dtype=dtype, device=device)
    column = 0
    for (layer, number), rank in zip(adapted, ranks, strict=True):
        start = sum(each.out_features for each in plain[:number])
        parts_a.append(_half(layer, "lora_A").to(device, dtype))
        scaled = _half(layer, "lora_B").float() * layer.scaling[ADAPTER_NAME]
        joined_b[start : start + plain[number].out_features, column : column + rank] = scaled.to(device, dtype)
        column += rank
    return torch.cat(parts_a), joined_b


def _half(layer: LoraLinear, name: str) -> torch.Tensor:
    half: Any = getattr(layer, name)[ADAPTER_NAME]
    weight: torch.Tensor = half.weight.detach()
    return weight


class _Product:
    """Matrix product with a weight `[N, K]` as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, inputs: Activations) -> torch.Tensor:
        assert isinstance(inputs, torch.Tensor)
        return functional.linear(inputs, self._weight, self._bias)

    def gelu(self, inputs: Activations) -> torch.Tensor:
        return functional.gelu(self(inputs))

    def add_to(self, residual: torch.Tensor, inputs: Activations) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert isinstance(inputs, torch.Tensor)
        return residual.addmm_(inputs, self._weight.t()), self._bias


class _PackedProduct(_Product):
    """With the weight in oneDNN's own order, so that a CPU need not reorder it at each call, and what follows in the product."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight), bias)

    def __call__(self, inputs: Activations) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")

    def gelu(self, inputs: Activations) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "gelu", [], "none")

    def add_to(self, residual: torch.Tensor, inputs: Activations) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.ops.mkldnn._linear_pointwise.binary(inputs, residual, self._weight, self._bias, "add"), None


class _Float8Product(_Product):
    """With weight and inputs in 8 bits."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._product = Float8Weight(weight, bias)

    def __call__(self, inputs: Activations) -> torch.Tensor:
        return self._product(inputs)

    def add_to(self, residual: torch.Tensor, inputs: Activations) -> tuple[torch.Tensor, torch.Tensor | None]:
        return residual, self(inputs)


def _choose_product(weight: torch.Tensor, bias: torch.Tensor | None, *, is_fp8: bool) -> _Product:
    """The fastest that a weight's device has for its dtype."""
    if is_fp8:
        return _Float8Product(weight, bias)
    return _PackedProduct(weight, bias) if _can_be_packed(weight) else _Product(weight, bias)


def _can_be_packed(weight: torch.Tensor) -> bool:
    operators = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(operators, "_linear_pointwise"):
        return False
    return weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and operators._is_mkldnn_bf16_supported())
