"""What autograd keeps of the decoder's layers, counted in a small model, against what is planned for them."""

import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.model.adapters import add_adapter, find_targets
from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.training.layer_memory import Recompute, decoder_shape
from yivl_core.training.loss import recompute_layers, use_packed_attention

ALL_LINEARS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
NUM_LAYERS, WIDTH = 3, 512


class _Kept:
    """A tensor that autograd keeps, as long as it does."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _storages() -> dict[int, int]:
    found = (value for value in gc.get_objects() if type(value) is torch.Tensor)
    return {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in found}


def _count(num_tokens: int, targets: str, recompute: Recompute, *, use_dora: bool) -> tuple[int, float]:
    """Bytes that are kept of three layers for so many tokens, and those that are planned."""
    text = LlamaConfig(
        vocab_size=1000, hidden_size=WIDTH, intermediate_size=1408, num_hidden_layers=NUM_LAYERS, num_attention_heads=4,
        num_key_value_heads=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    model = YiVLForConditionalGeneration(YiVLConfig(text_config=text, vision_config=vision)).to(torch.bfloat16)
    adapted = add_adapter(
        model, targets=find_targets(model, targets), rank=8, alpha=32, dropout=0.05, use_dora=use_dora
    ).train()  # fmt: skip
    use_packed_attention(model)
    recompute_layers(model, recompute)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> _Kept:
        box = _Kept(tensor)
        kept.add(box)
        return box

    embeds = torch.randn(1, num_tokens, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    before = _storages()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda box: box.tensor):
        outputs = model.model.language_model(
            inputs_embeds=embeds, position_ids=torch.arange(num_tokens)[None], use_cache=False, max_length_q=num_tokens,
            cu_seq_lens_q=torch.tensor([0, num_tokens], dtype=torch.int32),
        )  # fmt: skip
    gc.collect()
    tensors = [box.tensor for box in kept]
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    # What is kept of products lies in a table of Python's, not among what autograd saves.
    sizes |= {place: size for place, size in _storages().items() if place not in before and recompute == "selective"}
    num_bytes = sum(size for place, size in sizes.items() if place not in own)
    del outputs
    shape = decoder_shape(
        model.config, {name: tuple(value.shape) for name, value in adapted.named_parameters() if value.requires_grad}
    )
    # A CPU keeps four bytes of what dropout does to a value, where a GPU keeps one.
    by_token = shape.plain_bytes(recompute, 2)[0] + (3 * shape.adapted_inputs if recompute == "none" else 0)
    planned = by_token * num_tokens + shape.plain_weight_bytes(recompute, 2)[0]
    return num_bytes, planned * NUM_LAYERS


@pytest.mark.parametrize("targets", ["default", ALL_LINEARS])
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_autograd_keeps_what_is_planned(targets: str, use_dora: bool, recompute: Any) -> None:
    (few, planned_few), (many, planned_many) = (_count(tokens, targets, recompute, use_dora=use_dora) for tokens in (64, 192))
    assert planned_many - planned_few == pytest.approx(many - few, rel=0.1), "by token"
    weights, planned_weights = (many - 3 * (many - few) / 2), (planned_many - 3 * (planned_many - planned_few) / 2)
    assert weights == pytest.approx(planned_weights, rel=0.05, abs=200_000), "whatever the tokens"
    assert (planned_weights > 1e6) == use_dora
