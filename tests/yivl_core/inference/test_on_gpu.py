"""The engine on a GPU: kernels against plain PyTorch, and answers against the original's and the model of record's.

Skipped where there is no GPU.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from yivl_core.data.records import Record
from yivl_core.inference.configuration import EngineSettings
from yivl_core.inference.engine import InferenceEngine
from yivl_core.inference.generation import RecordEngine
from yivl_core.inference.invariance import find_variant
from yivl_core.inference.layout import DecodeLayout, PrefillLayout, Segment
from yivl_core.inference.loading import load_engine, plan_engine
from yivl_core.inference.operations import PlainOperations
from yivl_core.inference.requests import Completion, Request
from yivl_core.inference.sampling import SamplingParams
from yivl_core.model.files import open_checkpoint
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import ModelInputs, Processor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")]

CUDA = torch.device("cuda")


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the whole, relative to what is expected; NaN is never small."""
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def random_values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


@pytest.mark.parametrize("pending", ["none", "row", "whole"])
@pytest.mark.parametrize("width", [96, 1280, 4096])
def test_the_norms_agree_with_plain_pytorch(width: int, pending: str, dtype: torch.dtype) -> None:
    from yivl_core.inference.kernels import KernelOperations

    added = {"none": None, "row": random_values(width, seed=1), "whole": random_values(37, width, seed=2)}[pending]
    norm = nn.LayerNorm(width, eps=1e-5, device="cuda")
    with torch.no_grad():
        norm.weight.copy_(random_values(width, seed=3))
        norm.bias.copy_(random_values(width, seed=4))
        hidden = random_values(37, width).to(dtype)
        for name, arguments in (("rms_norm", (norm.weight, 1e-5)), ("layer_norm", (norm,))):
            kernel_hidden, plain_hidden = hidden.clone(), hidden.float()
            kernel_arguments = [argument.to(dtype) if isinstance(argument, torch.Tensor) else argument for argument in arguments]
            if name == "layer_norm":
                kernel_arguments = [nn.LayerNorm(width, eps=1e-5, device="cuda").to(dtype)]
                kernel_arguments[0].load_state_dict(norm.state_dict())
            kernel_added = None if added is None else added.to(dtype)
            actual = getattr(KernelOperations(), name)(kernel_hidden, *kernel_arguments, kernel_added)
            expected = getattr(PlainOperations(), name)(plain_hidden, *arguments, added)
            assert difference(actual, expected) < 1e-2
            assert difference(kernel_hidden, plain_hidden) < 1e-2


def test_the_product_with_silu_agrees_with_plain_pytorch(dtype: torch.dtype) -> None:
    from yivl_core.inference.kernels import KernelOperations

    gate_up = random_values(29, 2 * 11008)
    expected = PlainOperations().silu_product(gate_up.clone())
    assert difference(KernelOperations().silu_product(gate_up.to(dtype)), expected) < 1e-2


@pytest.mark.parametrize(("num_heads", "num_key_value_heads", "head_dim"), [(32, 4, 128), (56, 8, 128), (4, 2, 64), (4, 2, 16)])
def test_attention_agrees_with_plain_pytorch_in_float32(
    num_heads: int, num_key_value_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    from yivl_core.inference.kernels import KernelOperations

    keys, values = (random_values(6000, num_key_value_heads, head_dim, seed=seed).to(dtype) for seed in (1, 2))
    segments = [
        Segment(start=10, num_cached=0, num_tokens=1300),
        Segment(start=1400, num_cached=66, num_tokens=67),
        Segment(start=2000, num_cached=40, num_tokens=424),
        Segment(start=5000, num_cached=0, num_tokens=1),
    ]
    layout = PrefillLayout.of(segments, CUDA)
    num_queries = sum(segment.num_new for segment in segments)
    queries = random_values(num_queries, num_heads, head_dim, seed=3).to(dtype)
    wide = [tensor.float() for tensor in (queries, keys, values)]
    kernels, plain = KernelOperations(), PlainOperations()
    actual = kernels.prefill_attention(queries, keys, values, layout, is_last=False)
    assert difference(actual, plain.prefill_attention(*wide, layout, is_last=False)) < 5e-3
    last = [tensor[: len(segments)] for tensor in (queries, wide[0])]
    actual = kernels.prefill_attention(last[0], keys, values, layout, is_last=True)
    assert difference(actual, plain.prefill_attention(last[1], *wide[1:], layout, is_last=True)) < 5e-3

    decode = DecodeLayout(
        positions=torch.tensor([0, 63, 1023, 1024, 2500], device="cuda"),
        starts=torch.tensor([7, 100, 200, 900, 3000], device="cuda"),
        on_host=None,
        max_keys=3000,
    )
    actual = kernels.decode_attention(queries[:5], keys, values, decode)
    assert difference(actual, plain.decode_attention(wide[0][:5], *wide[1:], decode)) < 5e-3


def test_queries_and_keys_are_turned_and_stored_as_plain_pytorch_does(dtype: torch.dtype) -> None:
    from yivl_core.inference.kernels import KernelOperations

    rotation = random_values(2, 500, 32)
    qkv = random_values(50, (7 + 2 * 3) * 64)
    position_ids = torch.randint(0, 500, (50,), device="cuda")
    rows = torch.randperm(90, device="cuda")[:50]
    stored = torch.zeros(2, 2, 90, 3, 64, device="cuda")
    kernel_stored = stored.to(dtype)
    expected = PlainOperations().rotate_and_store(qkv.clone(), rotation, position_ids, rows, stored[0, 0], stored[0, 1])
    actual = KernelOperations().rotate_and_store(
        qkv.to(dtype), rotation, position_ids, rows, kernel_stored[0, 0], kernel_stored[0, 1]
    )
    assert difference(actual, expected) < 1e-2
    assert difference(kernel_stored, stored) < 1e-2


def test_eight_bits_keep_rows_to_a_few_hundredths() -> None:
    from yivl_core.inference.kernels import KernelOperations
    from yivl_core.model.row_kernels import quantise_rows

    values = random_values(33, 696).bfloat16() * torch.logspace(-3, 3, 33, device="cuda")[:, None].bfloat16()
    quantised = quantise_rows(values)
    assert quantised.values.shape == (33, 704)
    restored = quantised.values.float() * quantised.scale[:, None]
    assert (restored[:, 696:] == 0).all()
    for row in range(33):
        assert difference(restored[row, :696], values[row]) < 0.04
    gate_up = random_values(33, 2 * 696).bfloat16()
    product = KernelOperations().silu_product(gate_up, is_fp8=True)
    expected = PlainOperations().silu_product(gate_up.float())
    assert difference((product.values.float() * product.scale[:, None])[:, :696], expected) < 0.04
    activated = KernelOperations().gelu_fp8(values[:5])
    assert (
        difference((activated.values.float() * activated.scale[:, None])[:, :696], nn.functional.gelu(values[:5].float())) < 0.04
    )


# Whole answers

Load = Callable[..., InferenceEngine | RecordEngine]


@pytest.fixture
def load_nano(nano: Path) -> Load:
    """The project's own model, which reads lines of text."""

    def load(dtype: torch.dtype = torch.bfloat16, device: torch.device = CUDA, **settings: Any) -> Any:
        base = open_checkpoint(nano)
        processor = Processor.from_checkpoint(base)
        asked = EngineSettings(**settings)
        plan = plan_engine(asked, base, None, device, dtype)
        return load_engine(asked, base, processor, plan, adapter=None, device=device, dtype=dtype)[0]

    return load


@pytest.fixture(scope="module")
def lines(repository: Path, nano: Path) -> list[Request]:
    """Strips of handwriting, and one question without an image."""
    processor = Processor.from_checkpoint(nano)
    folder = repository / "data" / "handwritten_numbers" / "images"
    paths = sorted(folder.rglob("*.png"))[:60]
    assert len(paths) == 60
    requests = []
    for path in paths:
        with Image.open(path) as image:
            inputs = processor.process(
                Record(query="Read the text in the image.", images=(path.name,)), [image.convert("RGB")], with_response=False
            )
        requests.append(Request(sample_id=path.name, inputs=inputs, max_new_tokens=24))
    question = processor.process(Record(query="Who are you?"), [], with_response=False)
    return [*requests, Request(sample_id="question", inputs=question, max_new_tokens=24)]


def answered(engine: InferenceEngine | RecordEngine, requests: Sequence[Request]) -> list[Completion]:
    completions = dict(engine.generate(requests))
    found = [completions[number] for number in range(len(requests))]
    assert None not in found
    return [completion for completion in found if completion]


def test_the_time_is_counted_in_which_the_gpu_waits_for_requests(load_nano: Load, lines: list[Request]) -> None:
    engine = load_nano(batch_size=4)
    assert isinstance(engine, InferenceEngine)
    answered(engine, lines[:8])  # sets up what a step needs
    before = engine.counts.idle_s

    def slowly() -> Iterator[Request]:
        for request in lines[:8]:
            time.sleep(0.1)
            yield request

    assert len(dict(engine.generate(slowly()))) == 8
    idle_s = engine.counts.idle_s - before
    assert idle_s > 0.2  # for the first four requests there is no step before
    answered(engine, lines[:8])
    assert engine.counts.idle_s - before - idle_s < idle_s


def test_a_second_gpu_answers_as_the_first_one_does(load_nano: Load, lines: list[Request]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs that torch can use, and there are {torch.cuda.device_count()}")
    engines = [load_nano(device=torch.device("cuda", number), batch_size=7) for number in (0, 1)]
    assert torch.cuda.current_device() == 0
    assert answered(engines[1], lines) == answered(engines[0], lines)


def test_float32_gives_the_ids_of_the_original(golden_cases: dict[str, Any], reference: Path) -> None:
    base = open_checkpoint(reference / "checkpoint")
    processor = Processor.from_checkpoint(base)
    asked = EngineSettings(batch_size=5)
    plan = plan_engine(asked, base, None, CUDA, torch.float32)
    engine, _ = load_engine(asked, base, processor, plan, adapter=None, device=CUDA, dtype=torch.float32)
    cases, requests = golden_cases["cases"], []
    for name, case in cases.items():
        images = []
        for image_name in case["images"]:
            with Image.open(reference / "images" / image_name) as image:
                images.append(image.convert("RGB"))
        widths = [processor.num_image_tokens if token == -200 else 1 for token in case["input_ids"]]
        inputs = ModelInputs(
            input_ids=np.repeat(np.array(case["input_ids"]), widths),
            labels=None,
            pixels=processor.preprocessor.to_squares(images),
        )
        requests.append(Request(sample_id=name, inputs=inputs, max_new_tokens=32))
    for completion, (name, case) in zip(answered(engine, requests), cases.items(), strict=True):
        assert completion.text == case["greedy"]["text"], name
        assert completion.token_ids == tuple(case["greedy"]["new_ids"]), name


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.float16, {}),
        (torch.float16, {"attention": "sdpa"}),
        (torch.bfloat16, {"batch_invariant": True}),
        (torch.bfloat16, {"batch_size": 7}),
    ],
)
def test_answers_are_those_of_the_model_of_record(
    dtype: torch.dtype, settings: dict[str, Any], load_nano: Load, lines: list[Request], nano: Path
) -> None:
    """In float32 all of them; where numbers are rounded to 16 bits an answer may tip over that was near to."""
    expected = answered(
        RecordEngine(load_model(nano, dtype=torch.float32, device="cuda"), Processor.from_checkpoint(nano), 16), lines
    )
    actual = answered(load_nano(dtype, **settings), lines)
    equal = sum(one.text == other.text for one, other in zip(actual, expected, strict=True))
    assert equal == len(lines) if dtype is torch.float32 else equal >= 0.9 * len(lines)
    assert len({completion.text for completion in actual}) > 20, "they should follow from the images"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_logits_of_first_tokens_agree_with_the_model_of_record(
    dtype: torch.dtype, tolerance: float, load_nano: Load, lines: list[Request], nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_nano(dtype)
    assert isinstance(engine, InferenceEngine)
    given: list[torch.Tensor] = []
    whole = engine.runner.decoder.prefill

    def prefill(*arguments: Any) -> torch.Tensor:
        given.append(whole(*arguments))
        return given[-1]

    monkeypatch.setattr(engine.runner.decoder, "prefill", prefill)
    answered(engine, lines[:8])
    model, processor = load_model(nano, dtype=torch.float32, device="cuda"), Processor.from_checkpoint(nano)
    assert len(given) == 1
    for logits, request in zip(given[0][:8], lines[:8], strict=True):  # behind them stands what fills up
        pixels = processor.preprocessor.normalise(request.inputs.pixels.to(CUDA).squares())
        with torch.no_grad():
            expected = model(torch.from_numpy(request.inputs.input_ids)[None].cuda(), pixel_values=pixels).logits[0, -1]
        assert difference(logits, expected) < tolerance


@pytest.mark.parametrize(("dtype", "attention"), [(torch.bfloat16, "auto"), (torch.bfloat16, "sdpa"), (torch.float32, "auto")])
def test_invariant_answers_do_not_depend_on_company(
    dtype: torch.dtype, attention: str, load_nano: Load, lines: list[Request]
) -> None:
    sampled = SamplingParams(temperature=1.0, top_p=0.9, seed=3)
    requests = [
        *lines[:20],
        *(Request(sample_id=f"{n}", inputs=lines[n].inputs, params=sampled, max_new_tokens=24) for n in range(9)),
    ]
    engine = load_nano(dtype, attention=attention, batch_invariant=True, batch_size=13)
    assert find_variant(engine, requests) == []
    sure = [replace(request, with_logprobs=True) for request in requests]
    together, alone = answered(engine, sure), [answered(engine, [request])[0] for request in sure]
    assert together == alone, "to the last bit"


def test_sampled_answers_depend_on_the_record_and_the_seed_alone(load_nano: Load, lines: list[Request]) -> None:
    params = [SamplingParams(temperature=1.0, seed=1), SamplingParams(temperature=0.8, top_k=5, repetition_penalty=1.2, seed=2)]
    requests = [
        Request(
            sample_id=str(number), inputs=lines[number].inputs, params=params[number % 2], max_new_tokens=12, with_logprobs=True
        )
        for number in range(10)
    ]
    engine = load_nano(torch.float32)
    together = answered(engine, requests)
    ids = [completion.token_ids for completion in together]
    assert ids == [completion.token_ids for completion in answered(load_nano(torch.float32, batch_size=3), requests)]
    assert ids[::-1] == [completion.token_ids for completion in answered(engine, requests[::-1])]
    for completion in together:
        assert completion.logprobs is not None
        assert len(completion.logprobs) == completion.num_tokens
        assert all(logprob <= 0 for logprob in completion.logprobs)


def test_eight_bits_read_nearly_as_well(load_nano: Load, lines: list[Request]) -> None:
    requests = [replace(line, with_logprobs=True) for line in lines]
    usual, rounded = answered(load_nano(), requests), answered(load_nano(quantization="fp8"), requests)
    equal = sum(one.text == other.text for one, other in zip(usual, rounded, strict=True))
    assert 0.6 * len(lines) < equal
    assert all(one.logprobs != other.logprobs for one, other in zip(usual, rounded, strict=True)), "8 bits leave their mark"
