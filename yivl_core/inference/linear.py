"""Frozen linear layers as the engine runs them: several in one matrix product, each with its part of an adapter if there is one.

Shapes: S tokens, K inputs, N outputs, R rank of the adapter (all ranks together where layers are joined).
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn import functional

_ADAPTER = "default"


class FusedLinear:
    """Linear layers that read the same input, joined along their outputs.

    The layers are emptied, so that no second copy of their weights is held.

    Args:
        layers: plain ones, or with a plain LoRA on them as PEFT puts it (`is_plain_lora`).
    """

    def __init__(self, *layers: nn.Module) -> None:
        plain = [_plain(layer) for layer in layers]
        self.num_inputs = plain[0].in_features
        self.num_outputs = sum(layer.out_features for layer in plain)
        self.bias = _joined_bias(plain)  # [N]
        self.lora_a, self.lora_b = _joined_adapter(layers, plain)  # [R, K], [N, R]
        weight = plain[0].weight.detach() if len(plain) == 1 else torch.cat([layer.weight.detach() for layer in plain])
        for layer in plain:
            layer.weight = None  # type: ignore[assignment]
        if weight.is_cuda and len(plain) > 1:
            torch.cuda.empty_cache()  # else the places of the single weights stay, and are too small for joined ones
        self._packed = _pack(weight)
        self.weight = weight if self._packed is None else None  # [N, K]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[..., N]` of inputs `[..., K]`."""
        if self._packed is not None:
            return self._adapted(inputs, _packed_linear(inputs, self._packed, self.bias, "none", [], ""))
        assert self.weight is not None
        return self._adapted(inputs, functional.linear(inputs, self.weight, self.bias))

    def gelu(self, inputs: torch.Tensor) -> torch.Tensor:
        """The exact GELU of the outputs."""
        if self._packed is None or self.lora_a is not None:
            return functional.gelu(self(inputs))
        return _packed_linear(inputs, self._packed, self.bias, "gelu", [], "none")

    @property
    def pending_bias(self) -> torch.Tensor | None:
        """The bias `[N]` that `add_to` leaves to whoever reads the sum next, and thus saves a pass over memory; None: nothing."""
        return self.bias if self._packed is None else None

    def add_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """`residual` `[S, N]` plus the outputs of inputs `[S, K]` but for `pending_bias`; `residual` itself may be changed."""
        if self._packed is not None:
            return self._adapted(
                inputs, torch.ops.mkldnn._linear_pointwise.binary(inputs, residual, self._packed, self.bias, "add")
            )
        assert self.weight is not None
        residual.addmm_(inputs, self.weight.t())
        return self._adapted(inputs, residual)

    def _adapted(self, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        if self.lora_a is None or self.lora_b is None:
            return outputs
        low = functional.linear(inputs, self.lora_a).flatten(0, -2)  # [S, R]
        outputs.view(-1, self.num_outputs).addmm_(low, self.lora_b.t())
        return outputs


def is_plain_lora(model: nn.Module) -> bool:
    """Whether all that an adapter does to a model are plain LoRA products beside linear layers."""
    tuned = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    return all(_is_plain(module) for module in tuned)


def _is_plain(module: nn.Module) -> bool:
    if not isinstance(module, LoraLinear) or not isinstance(module.get_base_layer(), nn.Linear):
        return False
    return not (module.use_dora.get(_ADAPTER) or module.lora_bias.get(_ADAPTER) or module.lora_variant)


def _plain(layer: nn.Module) -> nn.Linear:
    """The linear layer below an adapter."""
    base = layer.get_base_layer() if isinstance(layer, LoraLinear) else layer
    assert isinstance(base, nn.Linear), f"{type(layer).__name__} is no plain LoRA"
    return base


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
        scaled = _half(layer, "lora_B").float() * layer.scaling[_ADAPTER]
        joined_b[start : start + plain[number].out_features, column : column + rank] = scaled.to(device, dtype)
        column += rank
    return torch.cat(parts_a), joined_b


def _half(layer: LoraLinear, name: str) -> torch.Tensor:
    half: Any = getattr(layer, name)[_ADAPTER]
    weight: torch.Tensor = half.weight.detach()
    return weight


def _pack(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight in oneDNN's own order, which spares a CPU reordering it at each call; None where that is not to be had."""
    operators = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(operators, "_linear_pointwise"):
        return None
    if weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and operators._is_mkldnn_bf16_supported()):
        return operators._reorder_linear_weight(weight)
    return None


def _packed_linear(*arguments: object) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(*arguments)
