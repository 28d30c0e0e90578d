"""The loss of packed rows: the decoder runs over all tokens, the head on learned positions alone.

Shapes: S tokens of the row, L learned tokens, D width of the decoder, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from yivl_core.model.attention import PACKED_ATTENTION
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.processing.image import ImagePreprocessor
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.training.fused import FusedModel
from yivl_core.training.head import head_loss
from yivl_core.training.layer_memory import Recompute
from yivl_core.training.packing import PackedBatch

ChangeImages = Callable[[UnpaddedPixels], UnpaddedPixels]
_PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]


@dataclass(frozen=True, slots=True)
class RowLoss:
    """What one row gives.

    Attributes:
        total: sum of the cross entropy over learned tokens, a scalar with gradient.
        num_correct: learned tokens that the model would have chosen, a scalar on the device.
        num_learned: how many tokens were learned.
    """

    total: torch.Tensor
    num_correct: torch.Tensor
    num_learned: int


def use_packed_attention(model: YiVLForConditionalGeneration) -> None:
    """Let the decoder attend within the samples of packed rows; the vision tower keeps its own attention."""
    model.model.language_model.set_attn_implementation(PACKED_ATTENTION)


def compile_layers(model: YiVLForConditionalGeneration) -> None:
    """Compile each layer of tower and decoder by itself, for rows of any length: two graphs, whatever the number of layers."""
    for layer in _layers(model):
        layer.compile(dynamic=True)


def recompute_layers(model: YiVLForConditionalGeneration, recompute: Recompute) -> None:
    """What each layer of tower and decoder computes again in the backward pass, whatever it was told before.

    Args:
        model: trained by autograd.
        recompute: nothing; all but matrix products; or all.
    """
    how: dict[Recompute, dict[str, Any]] = {
        "full": {},
        "selective": {"context_fn": partial(create_selective_checkpoint_contexts, _products())},
    }
    for layer in _layers(model):
        layer.__dict__.pop("forward", None)
        if recompute in how:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, **how[recompute])


def _products() -> list[Any]:
    """Operators of matrix products; bitsandbytes, where it is loaded, has one of its own for weights in 4 bits."""
    in_4_bits = getattr(torch.ops.bitsandbytes, "gemm_4bit", None)
    return _PRODUCTS if in_4_bits is None else [*_PRODUCTS, in_4_bits.default]


def _layers(model: YiVLForConditionalGeneration) -> list[nn.Module]:
    return [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]


def row_loss(
    model: YiVLForConditionalGeneration,
    batch: PackedBatch,
    preprocessor: ImagePreprocessor,
    change_images: ChangeImages | None = None,
    fused: FusedModel | None = None,
) -> RowLoss:
    """Cross entropy over the learned tokens of a row, in float32.

    Args:
        model: with packed attention (`use_packed_attention`), adapter and all.
        batch: the row.
        preprocessor: of the model's checkpoint.
        change_images: what is done to the images before, on the model's device.
        fused: the same model by the fast path, which is taken then.
    """
    batch = batch.to(model.lm_head.weight.device)
    pixels, pixel_values = batch.pixels, None
    if pixels.num_images:
        pixels = change_images(pixels) if change_images else pixels
        pixel_values = preprocessor.normalise(pixels.squares())
    if fused:
        total, num_correct = head_loss(fused(batch, pixel_values), model.lm_head.weight, batch.targets)
        return RowLoss(total, num_correct, batch.num_learned)
    logits = model.lm_head(_learned_hidden(model, batch, pixel_values)).float()  # [L, V]
    total = cross_entropy(logits, batch.targets, reduction="sum")
    return RowLoss(total, (logits.argmax(dim=-1) == batch.targets).sum(), batch.num_learned)


def _learned_hidden(model: YiVLForConditionalGeneration, batch: PackedBatch, pixel_values: torch.Tensor | None) -> torch.Tensor:
    """Hidden states of the learned tokens, `[L, D]`."""
    outputs = model.model(
        inputs_embeds=model.model.embed(
            batch.input_ids.unsqueeze(0), pixel_values, batch.image_places, batch.features
        ),  # [1, S, D]
        position_ids=batch.position_ids.unsqueeze(0),
        cu_seq_lens_q=batch.cu_seq_lens,
        max_length_q=batch.max_length,
        use_cache=False,
    )
    return outputs.last_hidden_state[0, batch.learned]
