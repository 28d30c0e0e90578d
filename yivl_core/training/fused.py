"""The decoder and the vision tower of a model as the fast path trains them: frozen weights, LoRA beside, layers written out.

Equal to the model of record but for rounding; see `layers.py`. Where this does not fit (weights that are tuned, other kinds of
adapters, other activations), the model of record is trained as it is.

Shapes: S tokens, L learned tokens, D width of the decoder, N images, P patches, C width of the tower.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from yivl_core.model.adapters import is_plain_lora
from yivl_core.model.attention import rotation_table
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.training.attending import attend_in_images, attend_in_samples
from yivl_core.training.features import tower_features
from yivl_core.training.layers import SEEDS_PER_LAYER, Attend, Call, Heads, Kept, Layer
from yivl_core.training.layout import RowLayout
from yivl_core.training.operations import Activation, Norm, Operations, TorchOperations
from yivl_core.training.packing import PackedBatch
from yivl_core.training.projection import Projection


class FusedModel:
    """All of a model but its head.

    Args:
        model: with a plain LoRA; its weights become views of joined ones.
        kept: what each layer of the decoder keeps for its backward pass.
        tower_kept: and of the tower, where that is trained.
        is_fp8: whether the decoder's frozen weights, and what they are multiplied with, are rounded to 8 bits.
    """

    def __init__(
        self,
        model: YiVLForConditionalGeneration,
        kept: Sequence[Kept],
        tower_kept: Sequence[Kept],
        *,
        is_fp8: bool = False,
    ) -> None:
        self._model = model
        operations = _operations_for(model.lm_head.weight)
        self._decoder = FusedDecoder(model, operations, kept, is_fp8=is_fp8)
        is_tower_trained = any(parameter.requires_grad for parameter in model.model.vision_tower.parameters())
        self._tower = FusedTower(model, operations, tower_kept) if is_tower_trained else None

    def keep(self, kept: Sequence[Kept], tower_kept: Sequence[Kept]) -> None:
        """Have the layers keep something else from now on."""
        self._decoder.kept = kept
        if self._tower is not None:
            self._tower.kept = tower_kept

    @staticmethod
    def fits(model: YiVLForConditionalGeneration) -> bool:
        """Whether a model can be trained so: nothing but a plain LoRA is, and its layers are those of the published models."""
        config = model.config
        trained = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
        return (
            all(".lora_" in name for name in trained)
            and is_plain_lora(model)
            and type(model.lm_head) is nn.Linear
            and config.text_config.hidden_act in ("silu", "swish")
            and config.vision_config.hidden_act == "gelu"
        )

    def __call__(self, batch: PackedBatch, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Hidden states `[L, D]` of a row's learned tokens after the last norm; in the model's training mode with dropout.

        Args:
            batch: the row, on the model's device.
            pixel_values: of its images, `[N, 3, H, W]`, normalised; None without images.
        """
        drops, model = self._model.training, self._model.model
        embeds = model.get_input_embeddings()(
            batch.input_ids.masked_fill(batch.input_ids == self._model.config.image_token_index, 0)
        )
        features = batch.features if pixel_values is None else self._tower_features(pixel_values, drops=drops)
        if features is not None:
            features = model.mm_projector(features).to(embeds.dtype).flatten(0, 1)  # [N * P, D]
            assert len(features) == len(batch.image_places), "each image has its places"
            embeds = embeds.index_copy(0, batch.image_places, features)
        return self._decoder(embeds, batch.layout, batch.learned, drops=drops)

    def _tower_features(self, pixel_values: torch.Tensor, *, drops: bool) -> torch.Tensor:
        """What the tower gives of each image, `[N, P, C]`."""
        return tower_features(self._model, pixel_values) if self._tower is None else self._tower(pixel_values, drops=drops)


def _operations_for(weight: torch.Tensor) -> Operations:
    """The fastest that a weight's device has for its dtype."""
    if weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16):
        from yivl_core.training.kernels import KernelOperations  # needs Triton, which comes with a GPU build of torch

        return KernelOperations()
    return TorchOperations()


class FusedDecoder:
    """The layers and the last norm of a model's decoder.

    Args:
        model: with or without a plain LoRA; its weights become views of joined ones.
        operations: of the device.
        kept: what each layer keeps for its backward pass.

    Attributes:
        kept: the same, which may be changed.
    """

    def __init__(
        self, model: YiVLForConditionalGeneration, operations: Operations, kept: Sequence[Kept], *, is_fp8: bool = False
    ) -> None:
        decoder, config = model.model.language_model, model.config.text_config
        self._operations, self.kept = operations, kept
        rotation = rotation_table(decoder.rotary_emb, config.max_position_embeddings, decoder.embed_tokens.weight.device)
        heads = Heads(
            config.num_attention_heads, config.num_key_value_heads, config.hidden_size // config.num_attention_heads, rotation
        )
        self._layers = [_decoder_layer(layer, heads, operations, is_fp8=is_fp8) for layer in decoder.layers]
        self._norm = _norm(decoder.norm)

    def __call__(self, embeds: torch.Tensor, layout: RowLayout, learned: torch.Tensor, *, drops: bool) -> torch.Tensor:
        """Hidden states of the learned tokens after the last norm.

        Args:
            embeds: `[S, D]`.
            layout: of the row.
            learned: int64 `[L]`; the last layer answers for these alone.
            drops: whether adapters drop some of their inputs.

        Returns:
            `[L, D]`.
        """
        hidden = embeds
        seeds = _draw_seeds(len(self._layers)) if drops else [None] * len(self._layers)
        last = len(self._layers) - 1
        for number, (layer, kept, own_seeds) in enumerate(zip(self._layers, self.kept, seeds, strict=True)):
            rows = learned if number == last else None
            hidden = layer(hidden, Call(layout=layout, kept=kept, seeds=own_seeds, rows=rows))
        # Of a few tokens: not worth an own backward pass.
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self._norm.epsilon)
        return (wide * scale).to(hidden.dtype) * self._norm.weight


class FusedTower:
    """The layers of a model's vision tower up to the selected hidden state; what stands before them is the model's own.

    Args:
        model: with a plain LoRA on its tower.
        operations: of the device.
        kept: what each layer keeps for its backward pass.

    Attributes:
        kept: the same, which may be changed.
    """

    def __init__(self, model: YiVLForConditionalGeneration, operations: Operations, kept: Sequence[Kept]) -> None:
        self._model, self.kept = model.model, kept
        config = model.config.vision_config
        heads = Heads(
            config.num_attention_heads, config.num_attention_heads, config.hidden_size // config.num_attention_heads, None
        )
        layers = model.model.vision_tower.encoder.layers[: model.config.num_vision_layers]
        self._layers = [_tower_layer(layer, heads, operations) for layer in layers]

    def __call__(self, pixel_values: torch.Tensor, *, drops: bool) -> torch.Tensor:
        """The tower's patch features `[N, P, C]` of `[N, 3, H, W]`, as the model of record's `get_vision_features`."""
        hidden = self._model.vision_tower.pre_layrnorm(self._model.embed_patches(pixel_values))  # [N, 1 + P, C]
        shape = hidden.shape
        hidden = hidden.flatten(0, 1)
        positions = torch.empty(0, dtype=torch.int64)
        layout = RowLayout(position_ids=positions, cu_seq_lens=positions, max_length=shape[1], num_samples=shape[0])
        seeds = _draw_seeds(len(self._layers)) if drops else [None] * len(self._layers)
        for layer, kept, own_seeds in zip(self._layers, self.kept, seeds, strict=True):
            hidden = layer(hidden, Call(layout=layout, kept=kept, seeds=own_seeds))
        return hidden.view(shape)[:, 1:]


def _draw_seeds(num_layers: int) -> list[Sequence[int] | None]:
    """Seeds of dropout for each layer, from torch's own generator."""
    drawn = torch.randint(2**31 - 1, (num_layers, SEEDS_PER_LAYER)).tolist()
    return [*drawn]


def _decoder_layer(layer: Any, heads: Heads, operations: Operations, *, is_fp8: bool) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _layer(
        (layer.input_layernorm, layer.post_attention_layernorm),
        (
            (attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,),
        ),
        heads, attend_in_samples, "silu_product", operations, is_fp8=is_fp8,
    )  # fmt: skip


def _tower_layer(layer: Any, heads: Heads, operations: Operations) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _layer(
        (layer.layer_norm1, layer.layer_norm2),
        ((attention.q_proj, attention.k_proj, attention.v_proj), (attention.out_proj,), (mlp.fc1,), (mlp.fc2,)),
        heads, attend_in_images, "gelu", operations,
    )  # fmt: skip


def _layer(
    norms: tuple[nn.Module, nn.Module],
    groups: Sequence[Sequence[nn.Module]],
    heads: Heads,
    attend: Attend,
    activation: Activation,
    operations: Operations,
    *,
    is_fp8: bool = False,
) -> Layer:
    qkv, out, up, down = (Projection(group, operations, is_fp8=is_fp8) for group in groups)
    first, second = norms
    return Layer((_norm(first), _norm(second)), (qkv, out, up, down), heads, attend, activation, operations)


def _norm(module: Any) -> Norm:
    if isinstance(module, nn.LayerNorm):
        return Norm(weight=module.weight.detach(), bias=module.bias.detach(), epsilon=module.eps)
    return Norm(weight=module.weight.detach(), bias=None, epsilon=module.variance_epsilon)
