"""The kernels of training against the same operations in plain torch, and the fast path on a GPU against float32."""

from importlib.util import find_spec
from itertools import combinations

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.model.adapters import add_adapter, find_targets
from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.nf4 import is_in_nf4, put_in_nf4, unpack_nf4
from yivl_core.training.fused import FusedDecoder, FusedTower
from yivl_core.training.layers import Kept
from yivl_core.training.layout import RowLayout, plan_slots
from yivl_core.training.operations import Activation, Dropout, Norm, Operations, TorchOperations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
PLAIN = TorchOperations()


@pytest.fixture(scope="module")
def kernels() -> Operations:
    from yivl_core.training.kernels import KernelOperations

    return KernelOperations()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def make_layout(lengths: list[int], *, has_slots: bool) -> RowLayout:
    slots, places = plan_slots(lengths) or (None, None) if has_slots else (None, None)
    return RowLayout(
        position_ids=torch.cat([torch.arange(length) for length in lengths]).cuda(),
        cu_seq_lens=torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32),
        max_length=max(lengths),
        num_samples=len(lengths),
        slots=slots if slots is None else slots.cuda(),
        places=places if places is None else places.cuda(),
    )


@pytest.mark.parametrize("width", [4096, 1280, 200])
@pytest.mark.parametrize("has_bias", [True, False])
def test_norms(width: int, has_bias: bool, kernels: Operations) -> None:
    norm = Norm(weight=1 + 0.1 * normal(width), bias=normal(width) if has_bias else None, epsilon=1e-5)
    hidden, grad, residual = (normal(333, width) for _ in range(3))
    assert distance(kernels.norm(hidden, norm), PLAIN.norm(hidden, norm)) < 3e-3
    expected = PLAIN.norm_backward(grad, hidden, norm, residual)
    assert distance(kernels.norm_backward(grad.clone(), hidden, norm, residual), expected) < 3e-3


@pytest.mark.parametrize(
    ("activation", "width", "inputs"), [("silu_product", 11008, 22016), ("gelu", 5120, 5120), ("gelu", 100, 100)]
)
def test_activations(activation: Activation, width: int, inputs: int, kernels: Operations) -> None:
    values, grad = normal(100, inputs), normal(100, width)
    assert distance(kernels.activate(values, activation), PLAIN.activate(values, activation)) < 5e-3
    expected = PLAIN.activate_backward(values, grad, activation)
    assert distance(kernels.activate_backward(values.clone(), grad, activation), expected) < 5e-3


@pytest.mark.parametrize("lengths", [[300, 77, 513], [500, 513, 490]])
@pytest.mark.parametrize("has_slots", [True, False])
def test_rotation(lengths: list[int], has_slots: bool, kernels: Operations) -> None:
    layout, rotation = make_layout(lengths, has_slots=has_slots), torch.randn(2, 700, 64, device="cuda")
    values = normal(sum(lengths), 40 * 128)
    found, expected = (each.rotate(values.clone(), rotation, 36, 128, layout) for each in (kernels, PLAIN))
    assert distance(found, expected) < 3e-3
    parts = [part.contiguous() for part in expected.unflatten(1, (-1, 128)).split([32, 4, 4], 1)]
    found, expected = (each.rotate_back(*parts, rotation, layout) for each in (kernels, PLAIN))
    assert distance(found, expected) < 3e-3


@pytest.mark.parametrize(
    ("num_tokens", "width", "num_adapters", "rank"),
    [(1000, 4096, 3, 8), (333, 4096, 2, 4), (7777, 11008, 1, 64), (50, 200, 3, 16)],
)
def test_adapters_without_dropout(num_tokens: int, width: int, num_adapters: int, rank: int, kernels: Operations) -> None:
    inputs, grad_low = normal(num_tokens, width), normal(num_tokens, num_adapters * rank)
    down, dropout = torch.randn(num_adapters * rank, width, device="cuda") * 0.02, Dropout(rate=0.0, seed=5)
    found, expected = (each.lora_down(inputs, down, num_adapters, 4.0, dropout) for each in (kernels, PLAIN))
    assert distance(found, expected) < 5e-3
    grads = [normal(num_tokens, width)] * 2
    grads = [grad.clone() for grad in grads]
    found, expected = (
        each.lora_backward(inputs, down, num_adapters, grad_low, dropout, grad)
        for each, grad in zip((kernels, PLAIN), grads, strict=True)
    )
    assert distance(found, expected) < 5e-3
    assert distance(*grads) < 5e-3


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_dropout_is_random_independent_and_the_same_again(rate: float, kernels: Operations) -> None:
    num_tokens, width, rank = 512, 4096, 8
    ones, dropout = torch.ones(num_tokens, width, device="cuda", dtype=torch.bfloat16), Dropout(rate=rate, seed=123)
    dropped = []
    for number in range(3):  # what one adapter's gradient does not reach
        down, grad_low = torch.zeros(3 * rank, width, device="cuda"), torch.zeros_like(normal(num_tokens, 3 * rank))
        down[number * rank], grad_low[:, number * rank] = 1, 1
        grad = torch.zeros_like(ones)
        kernels.lora_backward(ones, down, 3, grad_low, dropout, grad)
        dropped.append(1 - grad.float())
        low = kernels.lora_down(ones, down, 3, 1.0, dropout)[:, number * rank]
        assert distance(low * (1 - rate), grad.float().sum(1)) < 5e-3, "forward and backward drop the same"
    for mask in dropped:
        spread = (rate * (1 - rate)) ** 0.5
        assert mask.mean().item() == pytest.approx(rate, abs=5 * spread / (num_tokens * width) ** 0.5)
        assert mask.mean(1).std().item() == pytest.approx(spread / width**0.5, rel=0.2)
        assert mask.mean(0).std().item() == pytest.approx(spread / num_tokens**0.5, rel=0.1)
        for neighbours in (mask[:, 1:] * mask[:, :-1], mask[1:] * mask[:-1]):
            assert neighbours.mean().item() == pytest.approx(rate**2, rel=0.05)
    for one, other in combinations(dropped, 2):
        assert (one * other).mean().item() == pytest.approx(rate**2, rel=0.05)


def small_model(dtype: torch.dtype, *, is_nf4: bool = False) -> tuple[YiVLForConditionalGeneration, nn.Module]:
    """Layers as wide as the published ones, few of them; values that bfloat16 holds, or of which NF4 makes such values."""
    text = LlamaConfig(
        vocab_size=1000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=320, intermediate_size=1280, num_hidden_layers=4, num_attention_heads=4, image_size=112, patch_size=14,
        hidden_act="gelu",
    )  # fmt: skip
    torch.manual_seed(1)
    model = YiVLForConditionalGeneration(YiVLConfig(text_config=text, vision_config=vision)).to("cuda", torch.bfloat16)
    if is_nf4:
        for name, value in list(model.named_parameters()):
            put_in_nf4(model, name, value.detach())
    if dtype == torch.float32:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear) and is_in_nf4(child):
                    plain = nn.Linear(child.in_features, child.out_features, bias=False)
                    plain.weight = nn.Parameter(unpack_nf4([child]))
                    setattr(module, name, plain)
        model = model.float()
    torch.manual_seed(2)
    adapted = add_adapter(model, targets=find_targets(model, "all"), rank=8, alpha=32, dropout=0.0).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model, adapted


def gradients(adapted: nn.Module, output: torch.Tensor, slope: torch.Tensor) -> dict[str, torch.Tensor]:
    output.backward(slope.to(output.dtype))
    found = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    adapted.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("lengths", [[400, 390, 410], [300, 77, 513]])
@pytest.mark.parametrize("kept", [Kept(), Kept(attention=False, middle=False, mlp=False)])
@pytest.mark.parametrize(
    "quantization",
    ["none", "fp8", pytest.param("nf4", marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="no bitsandbytes"))],
)
def test_the_decoder_is_as_near_to_float32_as_rounding_allows(
    lengths: list[int], kept: Kept, quantization: str, kernels: Operations
) -> None:
    is_fp8, is_nf4 = quantization == "fp8", quantization == "nf4"
    layout, learned = make_layout(lengths, has_slots=True), torch.arange(100, 700, device="cuda")
    embeds, slope = 0.02 * normal(sum(lengths), 1024), normal(600, 1024)
    model, adapted = small_model(torch.float32, is_nf4=is_nf4)
    exact = FusedDecoder(model, PLAIN, [Kept()] * 4)(embeds.float(), layout, learned, drops=False)
    expected = gradients(adapted, exact, slope)
    model, adapted = small_model(torch.bfloat16, is_nf4=is_nf4)
    decoder = FusedDecoder(model, kernels, [kept] * 4, is_fp8=is_fp8)
    found = decoder(embeds, layout, learned, drops=False)
    assert distance(found, exact) < (0.2 if is_fp8 else 0.02)
    grads = gradients(adapted, found, slope)
    assert grads.keys() == expected.keys()
    far = {name: distance(grads[name], expected[name]) for name in expected}
    assert sum(far.values()) / len(far) < (0.4 if is_fp8 else 0.03), far


def test_the_tower_is_as_near_to_float32_as_rounding_allows(kernels: Operations) -> None:
    pixels, slope = normal(5, 3, 112, 112), normal(5, 64, 320)
    model, adapted = small_model(torch.float32)
    exact = FusedTower(model, PLAIN, [Kept()] * 3)(pixels.float(), drops=False)
    expected = gradients(adapted, exact, slope)
    model, adapted = small_model(torch.bfloat16)
    found = FusedTower(model, kernels, [Kept()] * 3)(pixels, drops=False)
    assert distance(found, exact) < 0.02
    grads = gradients(adapted, found, slope)
    assert grads.keys() == expected.keys()
    assert max(distance(grads[name], expected[name]) for name in expected) < 0.05
