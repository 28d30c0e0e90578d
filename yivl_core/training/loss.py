"""The loss of packed rows: the decoder runs over all tokens, the head on learned positions alone.

Shapes: S tokens of the row, L learned tokens, D width of the decoder, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from yivl_core.model.attention import PACKED_ATTENTION
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.processing.image import ImagePreprocessor
from yivl_core.processing.tokenization import IGNORE_INDEX
from yivl_core.training.packing import PackedBatch


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


def row_loss(model: YiVLForConditionalGeneration, batch: PackedBatch, preprocessor: ImagePreprocessor) -> RowLoss:
    """Cross entropy over the learned tokens of a row, in float32.

    Args:
        model: with packed attention (`use_packed_attention`), adapter and all.
        batch: the row.
        preprocessor: of the model's checkpoint.
    """
    weight = model.lm_head.weight
    device = weight.device
    pixel_values = preprocessor.normalise(batch.pixels.to(device)).to(weight.dtype) if len(batch.pixels) else None
    input_ids = batch.input_ids.to(device).unsqueeze(0)  # [1, S]
    outputs = model.model(
        inputs_embeds=model.model.embed(input_ids, pixel_values),
        position_ids=batch.position_ids.to(device).unsqueeze(0),
        cu_seq_lens_q=batch.cu_seq_lens.to(device),
        max_length_q=batch.max_length,
        use_cache=False,
    )
    targets = batch.labels[1:]
    learned = (targets != IGNORE_INDEX).nonzero().squeeze(1)  # [L]
    logits = model.lm_head(outputs.last_hidden_state[0, learned.to(device)]).float()  # [L, V]
    chosen = targets[learned].to(device)
    return RowLoss(cross_entropy(logits, chosen, reduction="sum"), (logits.argmax(dim=-1) == chosen).sum(), len(learned))
