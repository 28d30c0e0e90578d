"""Joined linear layers against torch's own, and with adapters on them against PEFT's own forward."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from yivl_core.data.records import Record
from yivl_core.inference.configuration import EngineSettings
from yivl_core.inference.engine import InferenceEngine
from yivl_core.inference.generation import RecordEngine
from yivl_core.inference.linear import FusedLinear
from yivl_core.inference.loading import Engine, load_engine, make_engine, plan_engine
from yivl_core.inference.memory import plan_memory
from yivl_core.inference.requests import Request
from yivl_core.model.adapters import (
    _MORE_THAN_PRODUCTS,
    _STARTS_OF_VARIANTS,
    find_targets,
    is_plain_adapter,
    is_plain_lora,
    load_adapter,
)
from yivl_core.model.files import open_checkpoint
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import Processor
from yivl_core.training.configuration import TrainingSummary

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of plain PEFT 0.21


@pytest.fixture(scope="module", params=["packed", "plain"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """How weights are held: in oneDNN's own order, or as they are, which is the way of a GPU."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "plain":
            monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        elif not torch.backends.mkldnn.is_available():
            pytest.skip("this build of torch has no oneDNN")
        yield request.param


def make_layers(widths: Sequence[int], biases: Sequence[bool], num_inputs: int, seed: int = 0) -> list[nn.Linear]:
    torch.manual_seed(seed)
    return [nn.Linear(num_inputs, width, bias=bias) for width, bias in zip(widths, biases, strict=True)]


def random_inputs(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def side_by_side(layers: Sequence[nn.Module], inputs: torch.Tensor) -> torch.Tensor:
    """Outputs of each layer by itself."""
    return torch.cat([layer(inputs) for layer in layers], dim=-1)


def added(fused: FusedLinear, residual: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The sum, with what is left to whoever reads it."""
    total, pending = fused.add_to(residual.clone(), inputs)
    return total if pending is None else total + pending


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# Plain layers


layers_of_any_width = st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=4)
leading = st.sampled_from([(1,), (2,), (17,), (3, 5), (1, 1), (2, 3, 4)])


@given(layers_of_any_width, st.integers(1, 40), leading)
def test_joined_layers_give_what_each_gives_by_itself(
    way: str, shapes: list[tuple[int, bool]], num_inputs: int, shape: tuple[int, ...]
) -> None:
    layers = make_layers([width for width, _ in shapes], [bias for _, bias in shapes], num_inputs)
    inputs = random_inputs(*shape, num_inputs)
    expected = side_by_side(layers, inputs)
    fused = FusedLinear(*layers)
    assert fused.num_outputs == sum(width for width, _ in shapes)
    assert_close(fused(inputs), expected)
    assert_close(fused.gelu(inputs), functional.gelu(expected))
    rows, expected_rows = inputs.flatten(0, -2), expected.flatten(0, -2)
    residual = random_inputs(*expected_rows.shape, seed=2)
    assert_close(added(fused, residual, rows), residual + expected_rows)


def test_layers_are_emptied_so_that_no_weight_is_held_twice(way: str) -> None:
    layers = make_layers([5, 6], [True, False], 7)
    before = [weakref.ref(layer.weight) for layer in layers]
    fused = FusedLinear(*layers)
    assert [layer.weight for layer in layers] == [None, None]
    assert [weight() for weight in before] == [None, None]
    _, pending = fused.add_to(torch.zeros(1, 11), random_inputs(1, 7))
    assert (pending is None) == (way == "packed"), "each way was met"


def test_a_part_of_a_larger_tensor_is_read_as_what_it_shows(way: str) -> None:
    """As the projector reads patches, without the first token of each image."""
    layers = make_layers([6, 9], [True, True], 8)
    inputs = random_inputs(3, 5, 8)[:, 1:]
    assert not inputs.is_contiguous()
    expected = side_by_side(layers, inputs)
    fused = FusedLinear(*layers)
    assert_close(fused(inputs), expected)
    assert_close(fused(random_inputs(4, 16)[:, ::2]), fused(random_inputs(4, 16)[:, ::2].contiguous()))


def test_inputs_are_left_as_they_were(way: str) -> None:
    fused, inputs = FusedLinear(*adapted_layers()), random_inputs(4, 24)
    before = inputs.clone()
    fused(inputs)
    fused.gelu(inputs)
    fused.add_to(torch.zeros(4, fused.num_outputs), inputs)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("is_adapted", [False, True])
def test_bfloat16_differs_by_rounding_alone(way: str, is_adapted: bool) -> None:
    layers = adapted_layers() if is_adapted else make_layers([24, 8, 16], [True, False, True], 24)
    inputs = random_inputs(40, 24).bfloat16()
    residual = random_inputs(40, 48, seed=2).bfloat16()
    for layer in layers:
        layer.bfloat16()
    expected = side_by_side([layer.float() for layer in layers], inputs.float())
    fused = FusedLinear(*[layer.bfloat16() for layer in layers])
    assert fused(inputs).dtype == torch.bfloat16
    torch.testing.assert_close(fused(inputs).float(), expected, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(fused.gelu(inputs).float(), functional.gelu(expected), rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(added(fused, residual, inputs).float(), residual.float() + expected, rtol=2**-6, atol=2**-6)


# Adapters


class Projections(nn.Module):
    """Three layers that read the same input, and two of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = make_layers([24, 8, 16], [True, False, True], 24)
        self.embedding, self.transposed = nn.Embedding(10, 24), Conv1D(24, 24)


def with_adapter(config: PeftConfig) -> PeftModel:
    """The layers with an adapter whose every part is random."""
    model = get_peft_model(cast(Any, Projections()), config)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def adapted_layers(**settings: Any) -> list[nn.Module]:
    """The three layers, with adapters on them; unless told otherwise, on each one of another rank and scale."""
    base = with_adapter(LoraConfig(**{"r": 4, "lora_alpha": 6, **(settings or DIFFERENT)})).get_base_model()
    return [base.first, base.second, base.third]


ALL = {"target_modules": ["first", "second", "third"]}
DIFFERENT = {**ALL, "rank_pattern": {"second": 7, "third": 1}, "alpha_pattern": {"third": 30}}
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": ALL,
    "all, of different ranks and scales": DIFFERENT,
    "all, rank-stabilised": {**DIFFERENT, "use_rslora": True},
    "first": {"target_modules": ["first"]},
    "second": {"target_modules": ["second"]},
    "first and third": {"target_modules": ["first", "third"], "rank_pattern": {"first": 9}},
    "third, rank-stabilised": {"target_modules": ["third"], "r": 9, "use_rslora": True},
    "with dropout": {**ALL, "lora_dropout": 0.5},
    "with biases of the base": {**ALL, "bias": "all"},
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("shape", [(1,), (11,), (2, 3)])
def test_with_an_adapter_on_some_layers_they_give_what_peft_gives(way: str, shape: tuple[int, ...], name: str) -> None:
    layers, inputs = adapted_layers(**ADAPTERS[name]), random_inputs(*shape, 24)
    expected = side_by_side(layers, inputs)
    plain = side_by_side([getattr(layer, "base_layer", layer) for layer in layers], inputs)
    assert (expected - plain).abs().max() > 0.1, "the adapter matters"
    fused = FusedLinear(*layers)
    assert_close(fused(inputs), expected)
    assert_close(fused.gelu(inputs), functional.gelu(expected))
    rows, expected_rows = inputs.flatten(0, -2), expected.flatten(0, -2)
    residual = random_inputs(*expected_rows.shape, seed=2)
    assert_close(added(fused, residual, rows), residual + expected_rows)


def test_a_float32_adapter_on_a_bfloat16_base_is_used_in_the_dtype_of_the_base(way: str) -> None:
    layers = adapted_layers()
    for layer in layers:
        layer.base_layer.bfloat16()
    inputs = random_inputs(9, 24).bfloat16()
    expected = side_by_side(layers, inputs)
    fused = FusedLinear(*layers)
    assert fused(inputs).dtype == torch.bfloat16
    torch.testing.assert_close(fused(inputs), expected.bfloat16(), rtol=2**-5, atol=2**-5)


def test_what_is_no_linear_layer_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="Embedding is no plain LoRA"):
        FusedLinear(nn.Embedding(3, 4))


LINEAR: dict[str, Any] = {"r": 4, "target_modules": ["first", "third"]}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LINEAR),
        LoraConfig(**LINEAR, use_rslora=True, rank_pattern={"third": 2}, alpha_pattern={"first": 3}),
        LoraConfig(**LINEAR, bias="all", lora_dropout=0.5),
    ],
)
def test_products_beside_linear_layers_are_a_plain_lora(config: PeftConfig) -> None:
    assert is_plain_lora(with_adapter(config).get_base_model())


def test_no_adapter_is_plain() -> None:
    assert is_plain_lora(Projections())


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LINEAR, use_dora=True),
        LoraConfig(**LINEAR, lora_bias=True),
        LoraConfig(r=4, target_modules=["first", "embedding"]),
        LoraConfig(r=4, target_modules=["embedding"]),
        LoraConfig(r=4, target_modules=["transposed"], fan_in_fan_out=True),
        LoraConfig(**LINEAR, modules_to_save=["second"]),
        LoraConfig(**LINEAR, trainable_token_indices={"embedding": [1, 2]}),
        IA3Config(target_modules=["first"], feedforward_modules=[]),
    ],
    ids=["dora", "lora_bias", "embedding and linear", "embedding", "transposed", "modules_to_save", "tokens", "ia3"],
)
def test_everything_else_that_an_adapter_can_do_is_none(config: PeftConfig) -> None:
    assert not is_plain_lora(with_adapter(config).get_base_model())


# Adapters in the engine, without merging


def make_requests(processor: Processor) -> list[Request]:
    """Eight, with none to two images, as the records that the trained adapter was trained on."""
    found = []
    for number in range(8):
        num_images = (1, 1, 2, 0)[number % 4]
        pixels = np.random.default_rng(number).integers(0, 256, (num_images, 9, 14, 3), dtype=np.uint8)
        record = Record(query="<image>" * num_images + f"What is it? ({number})", images=("x",) * num_images)
        inputs = processor.process(record, [Image.fromarray(image) for image in pixels], with_response=False)
        found.append(Request(sample_id=str(number), inputs=inputs, max_new_tokens=10))
    return found


def ids(engine: Engine, processor: Processor) -> list[tuple[int, ...]]:
    completions = sorted(dict(engine.generate(make_requests(processor))).items())
    found = [completion.token_ids for _, completion in completions if completion is not None]
    assert len(found) == 8
    return found


def engine_with(checkpoint: Path, adapter: str | Path | None, **settings: Any) -> tuple[Engine, str]:
    base, device, dtype = open_checkpoint(checkpoint), torch.device("cpu"), torch.float32
    asked, processor = EngineSettings(**{"batch_size": 3, **settings}), Processor.from_checkpoint(checkpoint)
    plan = plan_engine(asked, base, adapter, device, dtype)
    return load_engine(asked, base, processor, plan, adapter=adapter, device=device, dtype=dtype)


def assert_answers_as_peft(engine: Engine, checkpoint: Path, adapter: str | Path) -> None:
    """The same as the model of record with the adapter as PEFT itself puts it on, and not those of the base."""
    processor = Processor.from_checkpoint(checkpoint)
    adapted = PeftModel.from_pretrained(load_model(checkpoint), str(adapter)).eval().get_base_model()
    answers = ids(RecordEngine(cast(YiVLForConditionalGeneration, adapted), processor, 8), processor)
    assert ids(engine, processor) == answers
    assert ids(RecordEngine(load_model(checkpoint), processor, 8), processor) != answers


def save_random_adapter(checkpoint: Path, folder: Path, target_modules: str, **settings: Any) -> Path:
    model = load_model(checkpoint)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=find_targets(model, target_modules), **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def test_the_engine_answers_with_a_trained_adapter_as_peft_does(trained: TrainingSummary, tiny_checkpoint: Path) -> None:
    engine, sizes = engine_with(tiny_checkpoint, trained.adapter)
    assert isinstance(engine, InferenceEngine)
    assert sizes.startswith("3 records at a time, ")
    assert_answers_as_peft(engine, tiny_checkpoint, trained.adapter)


def test_of_the_adapter_only_what_is_run_is_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = save_random_adapter(tiny_checkpoint, tmp_path, "all")
    model = cast(YiVLForConditionalGeneration, load_adapter(load_model(tiny_checkpoint), adapter).get_base_model())
    halves = [weakref.ref(parameter) for name, parameter in model.named_parameters() if "lora_" in name]
    plan = plan_memory(model.config, torch.float32, torch.device("cpu"), num_rows=2, is_loaded=True)
    engine = make_engine(model, Processor.from_checkpoint(tiny_checkpoint), plan)
    del model
    gc.collect()
    assert len(halves) > 20
    assert [half for half in halves if half() is not None] == []
    assert len(dict(engine.generate(make_requests(Processor.from_checkpoint(tiny_checkpoint))))) == 8


TOWER_AND_PROJECTOR = r".*vision_tower\.encoder\.layers\.0\..*(v_proj|fc1)|.*mm_projector\.3"


@pytest.mark.parametrize(
    ("target_modules", "settings"),
    [
        ("all", {"use_rslora": True, "rank_pattern": {"k_proj": 7, "up_proj": 1}, "alpha_pattern": {"v_proj": 3}}),
        (r"lm_head|.*language_model\.layers\.[01]\..*(v|up|down)_proj", {"lora_alpha": 16}),
        (TOWER_AND_PROJECTOR, {"lora_alpha": 30, "bias": "all"}),
    ],
    ids=["all", "decoder and head", "tower and projector"],
)
def test_the_engine_answers_with_an_adapter_on_any_layers_as_peft_does(
    target_modules: str, settings: dict[str, Any], way: str, reference: Path, tmp_path: Path
) -> None:
    adapter = save_random_adapter(reference / "checkpoint", tmp_path, target_modules, **settings)
    engine, _ = engine_with(reference / "checkpoint", adapter)
    assert isinstance(engine, InferenceEngine)
    assert_answers_as_peft(engine, reference / "checkpoint", adapter)


# Targets, settings, and whether it is plain.
KINDS: dict[str, tuple[str, Any, bool]] = {
    "plain": (TOWER_AND_PROJECTOR, {}, True),
    "scaled by the root": (TOWER_AND_PROJECTOR, {"use_rslora": True, "rank_pattern": {"v_proj": 3}}, True),
    "biases": (TOWER_AND_PROJECTOR, {"bias": "all"}, True),
    "transposed in vain": (TOWER_AND_PROJECTOR, {"fan_in_fan_out": True}, True),
    "pissa": (TOWER_AND_PROJECTOR, {"init_lora_weights": "pissa"}, True),
    "dora": (TOWER_AND_PROJECTOR, {"use_dora": True}, False),
    "lora_bias": (TOWER_AND_PROJECTOR, {"lora_bias": True}, False),
    "mica": (TOWER_AND_PROJECTOR, {"init_lora_weights": "mica"}, False),
    "embedding": (r".*embed_tokens", {}, False),
    "embedding and linear": (r".*(embed_tokens|v_proj)", {}, False),
    "convolution": (r".*patch_embedding", {}, False),
    "modules_to_save": (TOWER_AND_PROJECTOR, {"modules_to_save": ["lm_head"]}, False),
    "tokens": (TOWER_AND_PROJECTOR, {"trainable_token_indices": {"embed_tokens": [1, 2]}}, False),
    "ia3": ("", IA3Config(target_modules=r".*v_proj", feedforward_modules=[]), False),
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT 0.21 takes the biases for parts of matrices
@pytest.mark.parametrize("kind", ["use_dora", "lora_bias"])
def test_an_adapter_that_is_no_plain_lora_runs_with_the_model_of_record(kind: str, reference: Path, tmp_path: Path) -> None:
    checkpoint = reference / "checkpoint"
    adapter = save_random_adapter(checkpoint, tmp_path, TOWER_AND_PROJECTOR, **{kind: True})
    engine, sizes = engine_with(checkpoint, adapter)
    assert isinstance(engine, RecordEngine)
    assert sizes == "3 records at a time with the model of record"
    assert_answers_as_peft(engine, checkpoint, adapter)
    _, sizes = engine_with(checkpoint, adapter, batch_size=None)
    assert sizes == "8 records at a time with the model of record"


@pytest.mark.filterwarnings("ignore:Adapter 'default'", "ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_an_adapter_say_what_the_model_with_it_shows(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Whether it is plain is told without the model, and no other than plain ones are ever told to be."""
    target_modules, settings, is_plain = KINDS[kind]
    config = settings if isinstance(settings, PeftConfig) else LoraConfig(r=4, target_modules=target_modules, **settings)
    get_peft_model(load_model(tiny_checkpoint), config).save_pretrained(str(tmp_path), save_embedding_layers=False)
    adapted = load_adapter(load_model(tiny_checkpoint), tmp_path).get_base_model()
    assert (is_plain_adapter(tmp_path), is_plain_lora(adapted)) == (is_plain, is_plain)


def test_every_variant_of_lora_that_peft_knows_is_none_of_the_plain() -> None:
    """A later PEFT may bring more of them."""
    variants = [field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant")]
    starts = [start for field in fields(LoraConfig) for start in field.metadata.get("lora_variants", ())]
    assert len(variants) >= 5
    assert set(variants) <= set(_MORE_THAN_PRODUCTS)
    assert set(starts) <= set(_STARTS_OF_VARIANTS)
