import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from yivl_core.model.attention import packed_attention
from yivl_core.model.files import open_checkpoint
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model, read_tensors, write_checkpoint

from .conftest import case_inputs

CASES = [
    "text_only_en", "text_only_zh", "one_image_en", "one_image_zh", "two_images_one_turn", "multi_turn_two_images",
    "multi_turn_one_image", "literal_hash", "placeholder_inside_text", "literal_placeholder_enough_images",
    "special_tokens_in_text", "odd_text",
]  # fmt: skip


def test_the_list_of_cases_is_complete(golden_cases: dict[str, Any]) -> None:
    assert sorted(golden_cases["cases"]) == sorted(CASES)


def test_image_features_equal_the_original(
    reference_model: YiVLForConditionalGeneration, golden: dict[str, torch.Tensor]
) -> None:
    names = [name.removeprefix("image_features.") for name in golden if name.startswith("image_features.")]
    assert len(names) >= 9
    pixels = torch.stack([golden[f"pixel_values.{name}"] for name in names])
    with torch.no_grad():
        vision = reference_model.model.get_vision_features(pixels)
        features = reference_model.model.get_image_features(pixels)
    for row, name in enumerate(names):
        torch.testing.assert_close(vision[row], golden[f"vision_selected.{name}"], atol=1e-4, rtol=0)
        torch.testing.assert_close(features[row], golden[f"image_features.{name}"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_loss_equal_the_original(
    name: str, reference_model: YiVLForConditionalGeneration, golden_cases: dict[str, Any], golden: dict[str, torch.Tensor]
) -> None:
    case = golden_cases["cases"][name]
    inputs = case_inputs(case, golden)
    with torch.no_grad():
        outputs = reference_model(**inputs)
        hidden = reference_model.model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).last_hidden_state
    assert inputs["input_ids"].shape[1] == case["expanded_length"]
    torch.testing.assert_close(outputs.logits[0, -1], golden[f"{name}.logits_last"], atol=2e-4, rtol=0)
    torch.testing.assert_close(
        outputs.logits[0][:, golden["logit_columns"].long()], golden[f"{name}.logits_cols"], atol=2e-4, rtol=0
    )
    torch.testing.assert_close(hidden[0], golden[f"{name}.final_hidden"], atol=2e-4, rtol=0)
    assert outputs.loss.item() == pytest.approx(case["loss"], abs=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_greedy_ids_equal_the_original(
    name: str, reference_model: YiVLForConditionalGeneration, golden_cases: dict[str, Any], golden: dict[str, torch.Tensor]
) -> None:
    case = golden_cases["cases"][name]
    inputs = case_inputs(case, golden)
    input_ids = inputs["input_ids"]
    ids = reference_model.generate(
        input_ids, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(input_ids),
        max_new_tokens=32, do_sample=False, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    assert ids[0, input_ids.shape[1] :].tolist() == case["greedy"]["new_ids_without_stop_string"]


def test_the_selected_state_is_that_of_the_whole_tower(
    reference_model: YiVLForConditionalGeneration, golden: dict[str, torch.Tensor]
) -> None:
    pixels = golden["pixel_values.wide.jpg"].unsqueeze(0)
    with torch.no_grad():
        whole = reference_model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        ours = reference_model.model.get_vision_features(pixels)
    torch.testing.assert_close(ours, whole, atol=2e-5, rtol=0)  # sums over a patch in another order


def test_logits_change_with_the_image(
    reference_model: YiVLForConditionalGeneration, golden_cases: dict[str, Any], golden: dict[str, torch.Tensor]
) -> None:
    inputs = case_inputs(golden_cases["cases"]["one_image_en"], golden)
    with torch.no_grad():
        one = reference_model(**inputs).logits[0, -1]
        other = reference_model(**inputs | {"pixel_values": golden["pixel_values.tall.png"].unsqueeze(0)}).logits[0, -1]
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("num_images", [0, 2])
def test_images_and_their_places_have_to_agree(
    num_images: int, reference_model: YiVLForConditionalGeneration, golden_cases: dict[str, Any], golden: dict[str, torch.Tensor]
) -> None:
    inputs = case_inputs(golden_cases["cases"]["one_image_en"], golden)
    pixels = inputs["pixel_values"].repeat(num_images, 1, 1, 1)
    with pytest.raises(ValueError, match=f"36 places for image tokens in input_ids, but {36 * num_images} image features"):
        reference_model(input_ids=inputs["input_ids"], pixel_values=pixels)


def test_an_export_in_the_transformers_layout_opens_through_the_auto_classes(reference: Path, tmp_path: Path) -> None:
    source = open_checkpoint(reference / "checkpoint")
    write_checkpoint(tmp_path, source, read_tensors(source), layout="transformers")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "yi_vl"
    assert AutoConfig.from_pretrained(tmp_path).model_type == "yi_vl"
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(opened) is YiVLForConditionalGeneration
    expected = load_model(reference / "checkpoint").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in opened.state_dict().items())
    assert opened.model.language_model.rotary_emb.inv_freq.equal(load_model(tmp_path).model.language_model.rotary_emb.inv_freq)


@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated")
def test_the_published_layout_is_not_taken_for_ours_by_the_auto_classes(reference: Path, tmp_path: Path) -> None:
    shutil.copy(reference / "checkpoint" / "config.json", tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "llava"


def test_packed_attention_equals_each_sample_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(12, 4, 8, generator=generator)
    key, value = torch.randn(2, 12, 2, 8, generator=generator)
    ends = [0, 5, 6, 12]
    packed = packed_attention(query, key, value, torch.tensor(ends, dtype=torch.int32), 6, 0.3)
    for start, end in pairwise(ends):
        q, k, v = (tensor[start:end] for tensor in (query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)))
        scores = torch.einsum("qhe,khe->hqk", q, k) * 0.3
        scores = scores.masked_fill(torch.ones(end - start, end - start).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(packed[start:end], torch.einsum("hqk,khe->qhe", scores.softmax(-1), v))
