"""Answers of batches against the original code's and transformers' own generation."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from yivl_core.inference.generation import Completion, Request, generate
from yivl_core.inference.sampling import SamplingParams
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import ModelInputs, Processor

GREEDY = SamplingParams()
MAX_NEW_TOKENS = 32


@pytest.fixture(scope="module")
def cases(golden_cases: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = golden_cases["cases"]
    assert len(found) == 12
    return found


@pytest.fixture(scope="module")
def model(reference: Path) -> YiVLForConditionalGeneration:
    return load_model(reference / "checkpoint")


@pytest.fixture(scope="module")
def processor(reference: Path) -> Processor:
    return Processor.from_checkpoint(reference / "checkpoint")


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


def expected_completion(case: dict[str, Any]) -> Completion:
    greedy = case["greedy"]
    reason: Literal["stop", "length"] = "length" if greedy["finish"] == "length" else "stop"
    return Completion(text=greedy["text"], finish_reason=reason, num_tokens=len(greedy["new_ids"]))


NAMES = [
    "text_only_en", "text_only_zh", "one_image_en", "one_image_zh", "two_images_one_turn", "multi_turn_two_images",
    "multi_turn_one_image", "literal_hash", "placeholder_inside_text", "literal_placeholder_enough_images",
    "special_tokens_in_text", "odd_text",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_equals_the_original_alone(
    name: str, cases: dict[str, Any], requests: dict[str, Request], model: YiVLForConditionalGeneration, processor: Processor
) -> None:
    [completion] = generate(model, processor, [requests[name]], GREEDY, MAX_NEW_TOKENS)
    assert completion == expected_completion(cases[name])


@pytest.mark.parametrize("size", [5, 12])
@pytest.mark.parametrize("step", [1, -1])
def test_greedy_text_equals_the_original_in_a_batch(
    size: int,
    step: int,
    cases: dict[str, Any],
    requests: dict[str, Request],
    model: YiVLForConditionalGeneration,
    processor: Processor,
) -> None:
    """Prompts of 150 to 241 tokens with none to two images, which end after 16 to 32 tokens."""
    names = NAMES[::step]
    for start in range(0, len(names), size):
        batch = names[start : start + size]
        completions = generate(model, processor, [requests[name] for name in batch], GREEDY, MAX_NEW_TOKENS)
        assert completions == [expected_completion(cases[name]) for name in batch]


def test_an_answer_is_cut_at_the_limit(
    requests: dict[str, Request], cases: dict[str, Any], model: YiVLForConditionalGeneration, processor: Processor
) -> None:
    completions = generate(model, processor, [requests[name] for name in NAMES], GREEDY, 5)
    for name, completion in zip(NAMES, completions, strict=True):
        assert (completion.finish_reason, completion.num_tokens) == ("length", 5)
        assert cases[name]["greedy"]["text"].startswith(completion.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_an_answer_ends_where_the_positions_of_the_model_do(
    requests: dict[str, Request], model: YiVLForConditionalGeneration, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [requests["text_only_en"], requests["odd_text"]]
    lengths = [len(request.inputs.input_ids) for request in batch]
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", max(lengths) + 1)
    completions = generate(model, processor, batch, GREEDY, 10)
    assert [completion.num_tokens for completion in completions] == [10, 1]
    assert [completion.finish_reason for completion in completions] == ["length", "length"]


def test_a_prompt_without_room_for_an_answer_is_our_own_mistake(
    requests: dict[str, Request], model: YiVLForConditionalGeneration, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = requests["text_only_en"]
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", len(request.inputs.input_ids))
    with pytest.raises(AssertionError, match="a prompt has to leave room for an answer"):
        generate(model, processor, [request], GREEDY, 10)


def test_repetition_is_penalised_over_prompt_and_answer_as_transformers_does(
    cases: dict[str, Any], requests: dict[str, Request], model: YiVLForConditionalGeneration, processor: Processor
) -> None:
    request = requests["text_only_zh"]
    input_ids = torch.from_numpy(request.inputs.input_ids).unsqueeze(0)
    ids = model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=12, do_sample=False, repetition_penalty=3.0,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    expected = processor.tokenizer.decode(ids[0, input_ids.shape[1] :].tolist()).strip()
    batch = [requests["odd_text"], request]
    completion = generate(model, processor, batch, SamplingParams(repetition_penalty=3.0), 12)[1]
    assert completion.num_tokens == 12
    assert completion.text == expected
    assert expected not in cases["text_only_zh"]["greedy"]["text"]


SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=11)


def test_sampled_text_depends_on_the_record_and_the_seed_alone(
    requests: dict[str, Request], model: YiVLForConditionalGeneration, processor: Processor
) -> None:
    alone = [generate(model, processor, [requests[name]], SAMPLED, 12)[0] for name in NAMES]
    for names in (NAMES, NAMES[::-1]):
        together = generate(model, processor, [requests[name] for name in names], SAMPLED, 12)
        assert dict(zip(names, together, strict=True)) == dict(zip(NAMES, alone, strict=True))
    other_seed = generate(model, processor, [requests[name] for name in NAMES], SamplingParams(temperature=1.0, seed=12), 12)
    assert all(one.text != other.text for one, other in zip(alone, other_seed, strict=True))
    twin = Request(sample_id="another", inputs=requests["text_only_en"].inputs)
    assert generate(model, processor, [twin], SAMPLED, 12)[0] != alone[0]


def test_a_sample_from_one_token_is_greedy(
    requests: dict[str, Request], model: YiVLForConditionalGeneration, processor: Processor
) -> None:
    batch = [requests[name] for name in NAMES]
    one = generate(model, processor, batch, SamplingParams(temperature=1.0, top_k=1), 8)
    assert one == generate(model, processor, batch, GREEDY, 8)


def test_the_answer_follows_from_the_image(
    requests: dict[str, Request], model: YiVLForConditionalGeneration, processor: Processor
) -> None:
    inputs = requests["one_image_en"].inputs
    other = ModelInputs(input_ids=inputs.input_ids, labels=None, pixels=requests["one_image_zh"].inputs.pixels)
    one, two = generate(
        model, processor, [requests["one_image_en"], Request(sample_id="other", inputs=other)], GREEDY, MAX_NEW_TOKENS
    )
    assert one.text != two.text


def test_other_dtypes_answer_too(reference: Path, requests: dict[str, Request], processor: Processor) -> None:
    model = load_model(reference / "checkpoint", dtype=torch.bfloat16)
    completions = generate(model, processor, [requests[name] for name in NAMES], GREEDY, 4)
    assert [completion.num_tokens for completion in completions] == [4] * 12


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, SamplingParams(repetition_penalty=2.0)])
@pytest.mark.parametrize("step", [0, 2])
def test_a_row_whose_logits_are_no_numbers_has_no_answer_and_the_others_have_theirs(
    step: int,
    params: SamplingParams,
    requests: dict[str, Request],
    model: YiVLForConditionalGeneration,
    processor: Processor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As float16 gives them where it overflows."""
    batch = [requests[name] for name in NAMES[:3]]
    expected = generate(model, processor, batch, params, 4)
    calls = 0

    def overflow(_: torch.nn.Module, __: object, logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        spoilt = logits.clone()
        if calls == step:
            spoilt[1, 7] = float("nan")
        calls += 1
        return spoilt

    handle = model.lm_head.register_forward_hook(overflow)
    try:
        assert generate(model, processor, batch, params, 4) == [expected[0], None, expected[2]]
    finally:
        handle.remove()
