"""The vision tower and the projector as the engine runs them: queries, keys and values in one product, sums in the products.

Shapes: N images, P patches, C width of the tower, D width of the decoder, H heads, E head width.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from yivl_core.inference.linear import FusedLinear
from yivl_core.inference.operations import Operations, attend
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.quantised import Activations


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    first_norm: nn.LayerNorm
    qkv: FusedLinear
    output: FusedLinear
    second_norm: nn.LayerNorm
    up: FusedLinear
    down: FusedLinear


class VisionEncoder:
    """Pixels -> what stands in the prompt for each image. The model is emptied of its tower's layers and its projector.

    Args:
        model: the model of record, with or without a plain LoRA.
        operations: how what lies between the matrix products is done.
        is_fp8: whether the layers' matrix products are in 8 bits.
    """

    def __init__(self, model: YiVLForConditionalGeneration, operations: Operations, *, is_fp8: bool = False) -> None:
        self._operations = operations
        tower, config = model.model.vision_tower, model.config.vision_config
        self._patches = model.model.embed_patches
        self._first_norm = tower.pre_layrnorm
        self._head_dim = config.hidden_size // config.num_attention_heads
        self._activation = None if config.hidden_act == "gelu" else ACT2FN[config.hidden_act]
        self._layers = [_fused(layer, is_fp8=is_fp8) for layer in tower.encoder.layers[: model.config.num_vision_layers]]
        projector = model.model.mm_projector
        self._projector_in, self._projector_norm = FusedLinear(projector[0]), projector[1]
        self._projector_out, self._final_norm = FusedLinear(projector[3]), projector[4]

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of images.

        Args:
            pixel_values: `[N, 3, H, W]`, normalised.

        Returns:
            `[N, P, D]`.
        """
        hidden = self._first_norm(self._patches(pixel_values))  # [N, 1 + P, C]
        shape = hidden.shape
        hidden = hidden.flatten(0, 1)  # [N * (1 + P), C]
        pending: torch.Tensor | None = None
        layer_norm = self._operations.layer_norm
        for layer in self._layers:
            qkv = layer.qkv(layer_norm(hidden, layer.first_norm, pending, is_fp8=layer.qkv.takes_fp8))
            qkv = qkv.view(*shape[:2], 3, -1, self._head_dim)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [N, H, 1 + P, E]
            attended = attend(query, key, value, None).transpose(1, 2).reshape(hidden.shape)
            hidden, pending = layer.output.add_to(hidden, attended)
            normed = layer_norm(hidden, layer.second_norm, pending, is_fp8=layer.up.takes_fp8)
            hidden, pending = layer.down.add_to(hidden, self._activated(layer, normed))
        if pending is not None:
            hidden += pending
        return self._project(hidden.view(shape)[:, 1:])

    def _activated(self, layer: _Layer, inputs: Activations) -> Activations:
        if self._activation is not None:
            activated: torch.Tensor = self._activation(layer.up(inputs))
            return activated
        if layer.down.takes_fp8:
            return self._operations.gelu_fp8(layer.up(inputs))
        return layer.up.gelu(inputs)

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        """`[N, P, C]` -> `[N, P, D]`, as `YiVLProjector`."""
        hidden = functional.gelu(self._projector_norm(self._projector_in(features)))
        projected: torch.Tensor = self._final_norm(self._projector_out(hidden))
        return projected


def _fused(layer: Any, *, is_fp8: bool) -> _Layer:
    attention, joined = layer.self_attn, partial(FusedLinear, is_fp8=is_fp8)
    return _Layer(
        first_norm=layer.layer_norm1,
        qkv=joined(attention.q_proj, attention.k_proj, attention.v_proj),
        output=joined(attention.out_proj),
        second_norm=layer.layer_norm2,
        up=joined(layer.mlp.fc1),
        down=joined(layer.mlp.fc2),
    )
