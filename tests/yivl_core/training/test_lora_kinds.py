"""rsLoRA, DoRA, LoRA+ and QLoRA against plain PEFT, and against what bitsandbytes itself makes of weights."""

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from yivl_core.data.dataset import ValidatedDataset
from yivl_core.errors import ConfigurationError
from yivl_core.model.adapters import find_targets
from yivl_core.model.files import open_checkpoint
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.nf4 import NF4_BYTES, is_held_in_nf4
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.progress import Progress
from yivl_core.training.configuration import TrainingConfig, TrainingSettings, TrainingSummary
from yivl_core.training.fused import FusedModel
from yivl_core.training.layers import Kept
from yivl_core.training.loss import recompute_layers, row_loss, use_packed_attention
from yivl_core.training.memory import fixed_needs
from yivl_core.training.optimization import Optimizers
from yivl_core.training.packing import pack
from yivl_core.training.samples import Samples
from yivl_core.training.tuning import Tuning, prepare_tuning

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of plain PEFT 0.21
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (pip install 'yivl[quant]')"
)
Train = Callable[..., TrainingSummary]
CPU = torch.device("cpu")
KINDS: dict[str, dict[str, bool]] = {
    "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}, "both": {"use_rslora": True, "use_dora": True},
}  # fmt: skip


def make_config(checkpoint: Path, **settings: Any) -> TrainingConfig:
    values: dict[str, Any] = {"target_modules": "all", "lora_rank": 4, "lora_alpha": 6, "lora_dropout": 0.0}
    return TrainingConfig(**{"model": str(checkpoint), "dataset": "", "output": "", "learning_rate": 1e-3} | values | settings)


def start(config: TrainingConfig, dtype: torch.dtype = torch.float32) -> Tuning:
    return prepare_tuning(open_checkpoint(config.model), config, dtype, CPU)


def plain_peft(checkpoint: Path, **kind: bool) -> PeftModel:
    model = load_model(checkpoint)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=find_targets(model, "all"), **kind))


@torch.no_grad()
def draw_alike(tuning: Tuning, plain: PeftModel) -> None:
    """Give both the same adapter, which does something, and of DoRA other lengths than the weights have."""
    torch.manual_seed(1)
    theirs = {name: value for name, value in plain.named_parameters() if value.requires_grad}
    parameters = tuning.parameters()
    assert parameters.keys() == theirs.keys()
    for name, value in parameters.items():
        if value.ndim == 1:
            value.mul_(0.8 + 0.4 * torch.rand_like(value))
        else:
            value.normal_(std=0.1)
        theirs[name].copy_(value)


@pytest.fixture(scope="module")
def samples(dataset: Path, tiny_checkpoint: Path) -> list[ModelInputs]:
    """One with an image, one with two, and one with none."""
    found = Samples(ValidatedDataset.open(str(dataset)), tiny_checkpoint, TrainingSettings(), 4096)
    return [found.reader.load(index) for index in (1, 2, 3)]


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> Processor:
    return Processor.from_checkpoint(tiny_checkpoint)


def packed_step(
    model: YiVLForConditionalGeneration, samples: list[ModelInputs], processor: Processor, *, is_fused: bool | None = None
) -> float:
    """The summed loss as a training has it, its gradients left in the model."""
    fused = None
    if FusedModel.fits(model) if is_fused is None else is_fused:
        fused = FusedModel(
            model, [Kept()] * model.config.text_config.num_hidden_layers, [Kept()] * model.config.num_vision_layers
        )
    else:
        use_packed_attention(model)
    [row] = pack(samples, 10_000)
    loss = row_loss(model, row, processor.preprocessor, fused=fused).total
    loss.backward()
    return loss.item()


def single_steps(model: PeftModel, samples: list[ModelInputs], processor: Processor) -> float:
    """The same by plain PEFT and the model's own loss, sample by sample."""
    total = 0.0
    for sample in samples:
        assert sample.labels is not None
        labels = torch.from_numpy(sample.labels).unsqueeze(0)
        pixel_values = processor.preprocessor.normalise(sample.pixels.squares()) if sample.pixels.num_images else None
        outputs = model(input_ids=torch.from_numpy(sample.input_ids).unsqueeze(0), pixel_values=pixel_values, labels=labels)
        loss = outputs.loss * (labels[0, 1:] != -100).sum()
        loss.backward()
        total += loss.item()
    return total


def assert_equal_gradients(tuning: Tuning, plain: PeftModel) -> None:
    theirs = dict(plain.named_parameters())
    for name, parameter in tuning.parameters().items():
        expected, found = theirs[name].grad, parameter.grad
        assert expected is not None
        assert found is not None
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_plain_peft(
    kind: str, tiny_checkpoint: Path, samples: list[ModelInputs], processor: Processor
) -> None:
    tuning, plain = start(make_config(tiny_checkpoint, **KINDS[kind])), plain_peft(tiny_checkpoint, **KINDS[kind])
    draw_alike(tuning, plain)
    assert FusedModel.fits(tuning.model) == (kind == "rsLoRA")
    expected = single_steps(plain, samples, processor)
    assert packed_step(tuning.model, samples, processor) == pytest.approx(expected, rel=1e-5)
    assert_equal_gradients(tuning, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_what_the_papers_say(kind: str, tiny_checkpoint: Path) -> None:
    """Kalajdzievski, section 4: scale alpha / sqrt(r). Liu et al., equation 5: W' = m (W + BA) / |W + BA|, by outputs."""
    tuning = start(make_config(tiny_checkpoint, **KINDS[kind]))
    draw_alike(tuning, plain_peft(tiny_checkpoint, **KINDS[kind]))
    path = "model.mm_projector.0"
    layer = tuning.model.get_submodule(path)
    values = {name.split(".lora_")[1]: value for name, value in tuning.parameters().items() if f".{path}." in name}
    scale = 6 / 4**0.5 if "use_rslora" in KINDS[kind] else 6 / 4
    base: Any = layer.base_layer
    weight = base.weight + scale * values["B.default.weight"] @ values["A.default.weight"]
    if "use_dora" in KINDS[kind]:
        weight = values["magnitude_vector.default.weight"][:, None] * weight / weight.square().sum(dim=1, keepdim=True).sqrt()
    inputs = torch.randn(5, weight.shape[1])
    torch.testing.assert_close(layer(inputs), inputs @ weight.t() + base.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("use_dora", "weight_decay"), [(False, 0.1), (True, 0.0)])
def test_lora_plus_steps_as_the_optimizer_of_peft_does(use_dora: bool, weight_decay: float, tiny_checkpoint: Path) -> None:
    config = make_config(tiny_checkpoint, use_dora=use_dora, weight_decay=weight_decay, loraplus_lr_ratio=16)
    tuning, plain = start(config), plain_peft(tiny_checkpoint, use_dora=use_dora)
    draw_alike(tuning, plain)
    ours, theirs = Optimizers(tuning.parameters(), config), dict(plain.named_parameters())
    ours.set_rate(1.0)
    peft = create_loraplus_optimizer(
        plain, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=weight_decay
    )  # fmt: skip
    for _ in range(3):
        for name, parameter in tuning.parameters().items():
            parameter.grad = torch.randn_like(parameter)
            theirs[name].grad = parameter.grad.clone()
        ours.step(torch.amp.GradScaler(enabled=False))
        peft.step()
    for name, parameter in tuning.parameters().items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-8, msg=name)


def first_step(checkpoint: Path, **settings: Any) -> tuple[dict[str, float], Optimizers]:
    """How far AdamW's first step moves A and B of each part: its learning rate, whatever the gradient."""
    config = make_config(checkpoint, weight_decay=0, **settings)
    parameters = start(config).parameters()
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizers = Optimizers(parameters, config)
    optimizers.set_rate(1.0)
    for value in parameters.values():
        value.grad = torch.ones_like(value)
    optimizers.step(torch.amp.GradScaler(enabled=False))
    moved: dict[str, float] = {}
    for name, value in parameters.items():
        part = next((part for part in ("vision_tower", "mm_projector") if part in name), "language_model")
        moved[f"{part} {name.split('.lora_')[1][0]}"] = (value - before[name]).abs().mean().item()
    return moved, optimizers


def test_lora_plus_moves_b_so_many_times_as_far_as_a(tiny_checkpoint: Path) -> None:
    parts = ("language_model", "mm_projector", "vision_tower")
    plain, _ = first_step(tiny_checkpoint)
    assert plain == pytest.approx({f"{part} {half}": 1e-3 for part in parts for half in "AB"}, rel=1e-3)
    faster, optimizers = first_step(tiny_checkpoint, loraplus_lr_ratio=8, vision_learning_rate=2e-4)
    rates = {"language_model": 1e-3, "mm_projector": 1e-3, "vision_tower": 2e-4}
    assert faster == pytest.approx(
        {f"{part} {half}": rates[part] * (8 if half == "B" else 1) for part in parts for half in "AB"}, rel=1e-3
    )
    assert optimizers.highest_rate == 1e-3


# QLoRA


@pytest.fixture
def rounded() -> Callable[[YiVLForConditionalGeneration], None]:
    """Rounds the decoder's weights of a model as bitsandbytes does, and keeps them in float32."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    @torch.no_grad()
    def round_weights(model: YiVLForConditionalGeneration) -> None:
        for name, value in model.named_parameters():
            if is_held_in_nf4(name.replace(".base_layer", "")):
                value.copy_(dequantize_4bit(*quantize_4bit(value, quant_type="nf4", compress_statistics=True)))

    return round_weights


@needs_bitsandbytes
def test_linear_layers_of_the_decoder_and_no_others_are_held_in_4_bits(
    tiny_checkpoint: Path, rounded: Callable[[YiVLForConditionalGeneration], None]
) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    config = make_config(tiny_checkpoint, quantization="nf4", target_modules="default")
    model, expected = start(config).model, load_model(tiny_checkpoint)
    rounded(expected)
    weights = {name.replace(".base_layer", ""): value for name, value in model.named_parameters() if ".lora_" not in name}
    held = {name: value for name, value in weights.items() if isinstance(value, Params4bit)}
    assert held.keys() == {name for name in weights if re.search(r"language_model\.layers\..*_proj\.weight", name)}
    assert len(held) == 3 * 7
    num_bytes = 0
    for name, value in expected.named_parameters():
        if name not in held:
            assert torch.equal(weights[name], value), name
            continue
        state = held[name].quant_state
        assert (state.quant_type, state.nested, held[name].dtype) == ("nf4", True, torch.uint8)
        assert torch.equal(dequantize_4bit(held[name].data, state), value), name
        num_bytes += held[name].nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    num_values = sum(value.numel() for name, value in expected.named_parameters() if name in held)
    assert num_bytes == pytest.approx(NF4_BYTES * num_values, rel=0.002)
    assert pytest.approx(0.516, abs=5e-4) == NF4_BYTES


@needs_bitsandbytes
@pytest.mark.parametrize(("use_dora", "is_fused"), [(False, True), (False, False), (True, False)])
def test_a_step_beside_4_bits_is_that_of_plain_peft_beside_rounded_weights(
    use_dora: bool,
    is_fused: bool,
    tiny_checkpoint: Path,
    samples: list[ModelInputs],
    processor: Processor,
    rounded: Callable[[YiVLForConditionalGeneration], None],
) -> None:
    tuning = start(make_config(tiny_checkpoint, quantization="nf4", use_dora=use_dora))
    plain = plain_peft(tiny_checkpoint, use_dora=use_dora)
    draw_alike(tuning, plain)
    whole = single_steps(plain, samples, processor)
    plain.zero_grad()
    rounded(plain.get_base_model())
    expected = single_steps(plain, samples, processor)
    assert FusedModel.fits(tuning.model) == (not use_dora)
    assert packed_step(tuning.model, samples, processor, is_fused=is_fused) == pytest.approx(expected, rel=1e-4)
    assert_equal_gradients(tuning, plain)
    assert expected == pytest.approx(whole, rel=0.02), "near the loss of the weights as they are"
    assert expected != pytest.approx(whole, rel=1e-4)


@needs_bitsandbytes
def test_an_evaluation_leaves_a_backward_pass_on_every_cpu(
    tiny_checkpoint: Path, samples: list[ModelInputs], processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes packs weights for good when a CPU with AVX512-BF16 evaluates, and has no gradients from then on."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    monkeypatch.setattr("bitsandbytes.nn.modules._convert_weight_packed_for_cpu", lambda *_: pytest.fail("it was packed"))
    tuning = start(make_config(tiny_checkpoint, quantization="nf4"))
    with torch.no_grad():
        use_packed_attention(tuning.model.eval())
        row_loss(tuning.model, pack(samples, 10_000)[0], processor.preprocessor)
    packed_step(tuning.model.train(), samples, processor, is_fused=False)


@needs_bitsandbytes
def test_products_with_4_bits_are_not_made_again_where_products_are_kept(
    tiny_checkpoint: Path, samples: list[ModelInputs], processor: Processor
) -> None:
    class Count(TorchDispatchMode):
        num_products = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.num_products += func is torch.ops.bitsandbytes.gemm_4bit.default
            return func(*args, **kwargs or {})

    counts: dict[str, int] = {}
    for recompute in ("none", "selective", "full"):
        tuning = start(make_config(tiny_checkpoint, quantization="nf4", target_modules="default"))
        recompute_layers(tuning.model, recompute)  # type: ignore[arg-type]
        with Count() as count:
            packed_step(tuning.model, samples, processor, is_fused=False)
        counts[recompute] = count.num_products
    assert counts["none"] == counts["selective"] == 3 * 7
    assert counts["full"] > 1.5 * counts["none"]


def test_weights_in_4_bits_are_foreseen_in_memory(tiny_checkpoint: Path) -> None:
    base = open_checkpoint(tiny_checkpoint)
    needs = [
        fixed_needs(base, {}, make_config(tiny_checkpoint, quantization=quantization), torch.bfloat16)["frozen weights"]
        for quantization in ("none", "nf4")
    ]
    sizes = [value.numel() for name, value in load_model(tiny_checkpoint).named_parameters() if is_held_in_nf4(name)]
    assert needs[0] - needs[1] == pytest.approx((2 - NF4_BYTES) * sum(sizes) - 4 * max(sizes), abs=2)


@needs_bitsandbytes
def test_a_qlora_run_learns_and_goes_on_to_an_equal_result(train: Train) -> None:
    class Killed(Exception):
        pass

    losses: list[float] = []

    def stop(event: Progress) -> None:
        if event.done == 4 and "loss" in event.figures:
            raise Killed

    settings: dict[str, Any] = {
        "quantization": "nf4", "target_modules": "all", "learning_rate": 0.01, "num_epochs": 2, "save_steps": 2, "keep": "last",
    }  # fmt: skip
    whole = train(**settings, on_progress=lambda event: losses.append(event.figures.get("loss", 0)))
    losses = [loss for loss in losses if loss]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.2
    with pytest.raises(Killed):
        train(**settings, output="killed", on_progress=stop)
    assert train(**settings, output="killed", resume=True).result_digest == whole.result_digest


# What cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuner": "full", "quantization": "nf4"}, "`quantization` is a setting of the tuner 'lora', and `tuner` is 'full'"),
        ({"tuner": "full", "use_dora": True}, "`use_dora` is a setting of the tuner 'lora', and `tuner` is 'full'"),
        ({"tuner": "full", "use_rslora": True}, "`use_rslora` is a setting of the tuner 'lora', and `tuner` is 'full'"),
        ({"tuner": "full", "loraplus_lr_ratio": 4}, "`loraplus_lr_ratio` is a setting of the tuner 'lora', and"),
        ({"use_dora": True, "quantization": "fp8"}, "`quantization` fp8 is for plain LoRA, and `use_dora` is given; leave one"),
        ({"loraplus_lr_ratio": 0.5}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSettings(**settings)


def test_without_bitsandbytes_it_is_said_how_to_install_it(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"'nf4' needs the package bitsandbytes.* run pip install 'yivl\[quant\]', or"):
        train(quantization="nf4")
    assert not (tmp_path / "run").exists()


@needs_bitsandbytes
def test_a_device_that_bitsandbytes_cannot_serve_is_refused(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("bitsandbytes.nn.Linear4bit.forward", fail)
    message = r"'nf4': bitsandbytes cannot work on cpu in float32 \(no kernel image is available\); install a version of it"
    with pytest.raises(ConfigurationError, match=message):
        train(quantization="nf4")
    assert not (tmp_path / "run").exists()


def test_8_bits_are_refused_where_the_fast_path_is_not_taken(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'fp8' is for plain LoRA .* not for their head \(given: target_modules 'lm_"):
        train(quantization="fp8", target_modules="lm_head")
    assert not (tmp_path / "run").exists()
