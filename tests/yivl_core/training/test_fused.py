"""The fast path of training against the model of record, and against itself."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from yivl_core.model.adapters import add_adapter, find_targets
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.training import layout as layout_module
from yivl_core.training.fused import FusedDecoder, FusedModel, FusedTower
from yivl_core.training.layers import Kept
from yivl_core.training.layout import RowLayout, plan_slots
from yivl_core.training.operations import TorchOperations

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of plain PEFT 0.21

LENGTHS = [9, 8, 10]
LEARNED = [5, 6, 8, 12, 15, 26]
ALL_KEPT = [Kept(attention=a, middle=b, mlp=c) for a in (True, False) for b in (True, False) for c in (True, False)]
Gradients = dict[str, torch.Tensor]


@pytest.fixture(params=["default", "all"])
def targets(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def adapted_model(
    checkpoint: Path, targets: str, *, dropout: float = 0.0, **kind: bool
) -> tuple[YiVLForConditionalGeneration, PeftModel]:
    """A model in float32 with an adapter whose B is no longer nought, so that A has gradients too."""
    model = load_model(checkpoint, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = add_adapter(model, targets=find_targets(model, targets), rank=4, alpha=8, dropout=dropout, **kind).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model, adapted


def take_gradients(adapted: PeftModel, **inputs: torch.Tensor) -> Gradients:
    gradients = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    gradients |= {name: value.grad for name, value in inputs.items() if value.grad is not None}
    adapted.zero_grad(set_to_none=True)
    for value in inputs.values():
        value.grad = None
    assert gradients
    return gradients


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-3, msg=f"{name} differs")


def make_layout(monkeypatch: pytest.MonkeyPatch, *, has_slots: bool) -> RowLayout:
    slots = places = None
    if has_slots:
        for name, value in {"_MIN_SLOT_TOKENS": 0, "_SLOT_MULTIPLE": 4, "_MAX_SLOT_TOKENS_A_TOKEN": 2.0}.items():
            monkeypatch.setattr(layout_module, name, value)
        planned = plan_slots(LENGTHS)
        assert planned is not None
        slots, places = planned
        assert len(slots) == 36
    return RowLayout(
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS]),
        cu_seq_lens=torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32),
        max_length=max(LENGTHS),
        num_samples=len(LENGTHS),
        slots=slots,
        places=places,
    )


@pytest.mark.parametrize("kept", ALL_KEPT)
@pytest.mark.parametrize("has_slots", [False, True])
def test_the_decoder_is_that_of_the_model_of_record(
    tiny_checkpoint: Path, targets: str, kept: Kept, has_slots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapted = adapted_model(tiny_checkpoint, targets)
    embeds = torch.randn(sum(LENGTHS), model.config.text_config.hidden_size, requires_grad=True)
    samples = [
        model.model.language_model(inputs_embeds=sample.unsqueeze(0), use_cache=False).last_hidden_state[0]
        for sample in embeds.split(LENGTHS)
    ]
    expected = torch.cat(samples)[LEARNED]
    grad = torch.randn_like(expected)
    expected.backward(grad)
    gradients = take_gradients(adapted, embeds=embeds)
    decoder = FusedDecoder(model, TorchOperations(), [kept] * model.config.text_config.num_hidden_layers)
    layout = make_layout(monkeypatch, has_slots=has_slots)
    found = decoder(embeds, layout, torch.tensor(LEARNED), drops=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found.backward(grad)
    assert_equal(take_gradients(adapted, embeds=embeds), gradients)


@pytest.mark.parametrize("kept", [Kept(), Kept(attention=False, middle=False, mlp=False)])
def test_the_tower_is_that_of_the_model_of_record(tiny_checkpoint: Path, kept: Kept) -> None:
    model, adapted = adapted_model(tiny_checkpoint, "all")
    size = model.config.vision_config.image_size
    pixel_values = torch.randn(3, 3, size, size)
    expected = model.model.get_vision_features(pixel_values)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    gradients = take_gradients(adapted)
    tower = FusedTower(model, TorchOperations(), [kept] * model.config.num_vision_layers)
    found = tower(pixel_values, drops=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found.backward(grad)
    assert_equal(take_gradients(adapted), gradients)


def test_what_is_computed_again_drops_the_same(tiny_checkpoint: Path, targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapted = adapted_model(tiny_checkpoint, targets, dropout=0.4)
    layout = make_layout(monkeypatch, has_slots=False)
    embeds = torch.randn(sum(LENGTHS), model.config.text_config.hidden_size)

    def gradients_with(kept: Kept, seed: int) -> Gradients:
        decoder = FusedDecoder(model, TorchOperations(), [kept] * model.config.text_config.num_hidden_layers)
        torch.manual_seed(seed)
        decoder(embeds, layout, torch.tensor(LEARNED), drops=True).sum().backward()
        return take_gradients(adapted)

    first = gradients_with(ALL_KEPT[0], 1)
    for kept in ALL_KEPT[1:]:
        again = gradients_with(kept, 1)
        assert all(torch.equal(again[name], value) for name, value in first.items())
    other = gradients_with(ALL_KEPT[0], 2)
    assert not any(torch.equal(other[name], value) for name, value in first.items())


def test_weights_are_held_once(tiny_checkpoint: Path) -> None:
    model, _ = adapted_model(tiny_checkpoint, "all")
    FusedModel(model, [Kept()] * model.config.text_config.num_hidden_layers, [Kept()] * model.config.num_vision_layers)
    attention = model.model.language_model.layers[0].self_attn
    storages = {attention.q_proj.weight.untyped_storage().data_ptr(), attention.v_proj.weight.untyped_storage().data_ptr()}
    assert len(storages) == 1


def test_what_is_not_a_plain_lora_does_not_fit(tiny_checkpoint: Path) -> None:
    assert FusedModel.fits(adapted_model(tiny_checkpoint, "all")[0])
    assert FusedModel.fits(adapted_model(tiny_checkpoint, "all", use_rslora=True)[0])
    assert not FusedModel.fits(adapted_model(tiny_checkpoint, "all", use_dora=True)[0])
    assert not FusedModel.fits(adapted_model(tiny_checkpoint, r"lm_head|model\.mm_projector\.0")[0])
    model, _ = adapted_model(tiny_checkpoint, "default")
    model.model.language_model.norm.weight.requires_grad_()
    assert not FusedModel.fits(model)
    model, _ = adapted_model(tiny_checkpoint, "default")
    model.config.text_config.hidden_act = "relu"
    assert not FusedModel.fits(model)
