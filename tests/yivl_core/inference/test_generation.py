"""Answers of both engines against the original code's and transformers' own generation."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from yivl_core.inference.engine import InferenceEngine
from yivl_core.inference.generation import RecordEngine
from yivl_core.inference.requests import Completion, Request
from yivl_core.inference.runner import ModelRunner
from yivl_core.inference.sampling import SamplingParams
from yivl_core.inference.steps import RunnerSettings
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import ModelInputs, Processor

GREEDY = SamplingParams()
MAX_NEW_TOKENS = 32
SIZES = RunnerSettings(num_rows=5, cache_tokens=1300, prefill_rows=3, prefill_tokens=500)

Generate = Callable[[Sequence[Request], SamplingParams, int], list[Completion | None]]


@pytest.fixture(scope="module")
def cases(golden_cases: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = golden_cases["cases"]
    assert len(found) == 12
    return found


@pytest.fixture(scope="module")
def requests(cases: dict[str, Any], reference: Path, processor: Processor) -> dict[str, Request]:
    """With the ids and pixels that the original saw: it ignores EXIF orientation and drops transparency."""
    golden = load_file(reference / "golden.safetensors")
    found = {}
    for name, case in cases.items():
        images = []
        for image_name in case["images"]:
            with Image.open(reference / "images" / image_name) as image:
                images.append(image.convert("RGB"))
            normalised = processor.preprocessor.normalise(processor.preprocessor.to_squares(images[-1:]).squares())[0]
            torch.testing.assert_close(normalised, golden[f"pixel_values.{image_name}"], rtol=0, atol=1e-6)
        widths = [processor.num_image_tokens if token == -200 else 1 for token in case["input_ids"]]
        inputs = ModelInputs(
            input_ids=np.repeat(np.array(case["input_ids"]), widths),
            labels=None,
            pixels=processor.preprocessor.to_squares(images),
        )
        found[name] = Request(sample_id=name, inputs=inputs)
    return found


@pytest.fixture(scope="module")
def continuous(model: YiVLForConditionalGeneration, processor: Processor) -> InferenceEngine:
    """Five rows, so that twelve requests take turns."""
    runner = ModelRunner(copy.deepcopy(model), processor.preprocessor, SIZES)
    return InferenceEngine(runner, processor.tokenizer)


@pytest.fixture(params=["continuous", "record"])
def generate(
    request: pytest.FixtureRequest, continuous: InferenceEngine, model: YiVLForConditionalGeneration, processor: Processor
) -> Generate:
    """Answers by one of the engines, in the order of the requests."""
    engine = continuous if request.param == "continuous" else RecordEngine(model, processor, 12)

    def answer(requests: Sequence[Request], params: SamplingParams, max_new_tokens: int) -> list[Completion | None]:
        changed = [replace(each, params=params, max_new_tokens=max_new_tokens) for each in requests]
        completions = dict(engine.generate(changed))
        assert sorted(completions) == list(range(len(requests)))
        return [completions[number] for number in range(len(requests))]

    return answer


def expected_completion(case: dict[str, Any]) -> Completion:
    greedy = case["greedy"]
    reason: Literal["stop", "length"] = "length" if greedy["finish"] == "length" else "stop"
    return Completion(text=greedy["text"], finish_reason=reason, token_ids=tuple(greedy["new_ids"]))


NAMES = [
    "text_only_en", "text_only_zh", "one_image_en", "one_image_zh", "two_images_one_turn", "multi_turn_two_images",
    "multi_turn_one_image", "literal_hash", "placeholder_inside_text", "literal_placeholder_enough_images",
    "special_tokens_in_text", "odd_text",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_equals_the_original_alone(
    name: str, cases: dict[str, Any], requests: dict[str, Request], generate: Generate
) -> None:
    [completion] = generate([requests[name]], GREEDY, MAX_NEW_TOKENS)
    assert completion == expected_completion(cases[name])


@pytest.mark.parametrize("size", [5, 12])
@pytest.mark.parametrize("step", [1, -1])
def test_greedy_text_equals_the_original_in_a_batch(
    size: int,
    step: int,
    cases: dict[str, Any],
    requests: dict[str, Request],
    generate: Generate,
) -> None:
    """Prompts of 150 to 241 tokens with none to two images, which end after 16 to 32 tokens."""
    names = NAMES[::step]
    for start in range(0, len(names), size):
        batch = names[start : start + size]
        completions = generate([requests[name] for name in batch], GREEDY, MAX_NEW_TOKENS)
        assert completions == [expected_completion(cases[name]) for name in batch]


def test_an_answer_is_cut_at_the_limit(requests: dict[str, Request], cases: dict[str, Any], generate: Generate) -> None:
    completions = generate([requests[name] for name in NAMES], GREEDY, 5)
    for name, completion in zip(NAMES, completions, strict=True):
        assert completion is not None
        assert (completion.finish_reason, completion.num_tokens) == ("length", 5)
        assert cases[name]["greedy"]["text"].startswith(completion.text.rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.fixture
def limit_positions(
    monkeypatch: pytest.MonkeyPatch, model: YiVLForConditionalGeneration, continuous: InferenceEngine
) -> Callable[[int], None]:
    def limit(max_positions: int) -> None:
        monkeypatch.setattr(model.config.text_config, "max_position_embeddings", max_positions)
        monkeypatch.setattr(continuous.runner, "max_positions", max_positions)

    return limit


def test_an_answer_ends_where_the_positions_of_the_model_do(
    requests: dict[str, Request], generate: Generate, limit_positions: Callable[[int], None]
) -> None:
    batch = [requests["text_only_en"], requests["odd_text"]]
    limit_positions(max(len(request.inputs.input_ids) for request in batch) + 1)
    completions = generate(batch, GREEDY, 10)
    assert [completion and (completion.num_tokens, completion.finish_reason) for completion in completions] == [
        (10, "length"),
        (1, "length"),
    ]


def test_a_prompt_without_room_for_an_answer_is_our_own_mistake(
    requests: dict[str, Request], generate: Generate, limit_positions: Callable[[int], None]
) -> None:
    request = requests["text_only_en"]
    limit_positions(len(request.inputs.input_ids))
    with pytest.raises(AssertionError, match="a prompt has to leave room for an answer"):
        generate([request], GREEDY, 10)


def test_repetition_is_penalised_over_prompt_and_answer_as_transformers_does(
    cases: dict[str, Any],
    requests: dict[str, Request],
    model: YiVLForConditionalGeneration,
    processor: Processor,
    generate: Generate,
) -> None:
    request = requests["text_only_zh"]
    input_ids = torch.from_numpy(request.inputs.input_ids).unsqueeze(0)
    ids = model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=12, do_sample=False, repetition_penalty=3.0,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    expected = processor.tokenizer.decode(ids[0, input_ids.shape[1] :].tolist()).strip()
    batch = [requests["odd_text"], request]
    completion = generate(batch, SamplingParams(repetition_penalty=3.0), 12)[1]
    assert completion is not None
    assert completion.num_tokens == 12
    assert completion.text == expected
    assert expected not in cases["text_only_zh"]["greedy"]["text"]


SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=11)


def test_sampled_text_depends_on_the_record_and_the_seed_alone(requests: dict[str, Request], generate: Generate) -> None:
    alone = [generate([requests[name]], SAMPLED, 12)[0] for name in NAMES]
    for names in (NAMES, NAMES[::-1]):
        together = generate([requests[name] for name in names], SAMPLED, 12)
        assert dict(zip(names, together, strict=True)) == dict(zip(NAMES, alone, strict=True))
    other_seed = generate([requests[name] for name in NAMES], SamplingParams(temperature=1.0, seed=12), 12)
    assert all(one.text != other.text for one, other in zip(alone, other_seed, strict=True))
    twin = Request(sample_id="another", inputs=requests["text_only_en"].inputs)
    assert generate([twin], SAMPLED, 12)[0] != alone[0]


def test_a_sample_from_one_token_is_greedy(requests: dict[str, Request], generate: Generate) -> None:
    batch = [requests[name] for name in NAMES]
    one = generate(batch, SamplingParams(temperature=1.0, top_k=1), 8)
    assert one == generate(batch, GREEDY, 8)


def test_the_answer_follows_from_the_image(requests: dict[str, Request], generate: Generate) -> None:
    inputs = requests["one_image_en"].inputs
    other = ModelInputs(input_ids=inputs.input_ids, labels=None, pixels=requests["one_image_zh"].inputs.pixels)
    one, two = generate([requests["one_image_en"], Request(sample_id="other", inputs=other)], GREEDY, MAX_NEW_TOKENS)
    assert one.text != two.text


def test_other_dtypes_answer_too(reference: Path, requests: dict[str, Request], processor: Processor) -> None:
    model = load_model(reference / "checkpoint", dtype=torch.bfloat16)
    short = [replace(requests[name], max_new_tokens=4) for name in NAMES]
    by_record = dict(RecordEngine(model, processor, 5).generate(short))
    runner = ModelRunner(model, processor.preprocessor, SIZES)
    by_engine = dict(InferenceEngine(runner, processor.tokenizer).generate(short))
    for completions in (by_record, by_engine):
        assert [completions[number] and completions[number].num_tokens for number in range(12)] == [4] * 12


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, SamplingParams(repetition_penalty=2.0)])
@pytest.mark.parametrize("step", [0, 2])
def test_a_row_whose_logits_are_no_numbers_has_no_answer_and_the_others_have_theirs(
    step: int,
    params: SamplingParams,
    requests: dict[str, Request],
    model: YiVLForConditionalGeneration,
    continuous: InferenceEngine,
    generate: Generate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As float16 gives them where it overflows."""
    batch = [requests[name] for name in NAMES[:3]]
    expected = generate(batch, params, 4)
    calls = 0

    def overflow(logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        spoilt = logits.clone()
        if calls == step:
            spoilt[1, 7] = float("nan")
        calls += 1
        return spoilt

    head, decoder = model.lm_head.forward, continuous.runner.decoder
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: overflow(head(hidden)))
    for name in ("prefill", "decode"):
        whole = getattr(decoder, name)
        monkeypatch.setattr(decoder, name, lambda *arguments, whole=whole: overflow(whole(*arguments)))
    assert generate(batch, params, 4) == [expected[0], None, expected[2]]
