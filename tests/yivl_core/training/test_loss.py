"""Packed rows against single samples through the model of record, and against the original code's loss."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image

from yivl_core.data.dataset import ValidatedDataset
from yivl_core.model.adapters import add_adapter, find_targets
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.training.configuration import TrainingSettings
from yivl_core.training.fused import FusedModel
from yivl_core.training.layers import Kept
from yivl_core.training.loss import row_loss, use_packed_attention
from yivl_core.training.packing import PackedBatch, pack
from yivl_core.training.samples import Samples


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> Processor:
    return Processor.from_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def samples(dataset: Path, tiny_checkpoint: Path) -> list[ModelInputs]:
    """Text alone, one image and two, one round and two."""
    found = Samples(ValidatedDataset.open(str(dataset)), tiny_checkpoint, TrainingSettings(), 4096)
    return [found.reader.load(index) for index in found.indices]


@pytest.fixture
def adapted(tiny_checkpoint: Path) -> PeftModel:
    """An adapter on every linear layer, with a B that is no longer nought, so that A has gradients too."""
    model = load_model(tiny_checkpoint)
    torch.manual_seed(0)
    adapted = add_adapter(model, targets=find_targets(model, "all"), rank=4, alpha=8, dropout=0.0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return adapted.train()


def take_gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def single_losses(model: PeftModel, samples: list[ModelInputs], processor: Processor) -> Iterator[tuple[torch.Tensor, int]]:
    """Each sample alone through the model's own forward: its summed loss, and how many tokens it learns."""
    for sample in samples:
        assert sample.labels is not None
        labels = torch.from_numpy(sample.labels).unsqueeze(0)
        pixel_values = processor.preprocessor.normalise(sample.pixels.squares()) if sample.pixels.num_images else None
        outputs = model(input_ids=torch.from_numpy(sample.input_ids).unsqueeze(0), pixel_values=pixel_values, labels=labels)
        num_learned = int((labels[0, 1:] != -100).sum())
        yield outputs.loss * num_learned, num_learned


def base_of(model: PeftModel) -> YiVLForConditionalGeneration:
    return cast(YiVLForConditionalGeneration, model.get_base_model())


def packed_losses(
    model: PeftModel, rows: list[PackedBatch], processor: Processor, *, is_fused: bool = False
) -> Iterator[tuple[torch.Tensor, int]]:
    base = base_of(model)
    use_packed_attention(base)
    kept = [Kept()] * base.config.text_config.num_hidden_layers, [Kept()] * base.config.num_vision_layers
    fused = FusedModel(base, *kept) if is_fused else None
    for row in rows:
        loss = row_loss(base, row, processor.preprocessor, fused=fused)
        assert loss.num_learned == row.num_learned
        yield loss.total, loss.num_learned


def mean_loss(losses: Iterator[tuple[torch.Tensor, int]], num_learned: int) -> tuple[float, int]:
    """The loss over all learned tokens of a step, its gradients left in the model; and how many tokens those were."""
    total, count = 0.0, 0
    for loss, learned in losses:
        torch.autograd.backward(loss / num_learned)
        total, count = total + loss.item() / num_learned, count + learned
    return total, count


@pytest.mark.parametrize("row_tokens", [1, 350, 800, 10_000])
@pytest.mark.parametrize("is_fused", [False, True])
def test_packed_loss_and_gradients_equal_those_of_single_samples(
    row_tokens: int, is_fused: bool, samples: list[ModelInputs], adapted: PeftModel, processor: Processor
) -> None:
    rows = pack(samples, row_tokens)
    num_learned = sum(row.num_learned for row in rows)
    expected, num_single = mean_loss(single_losses(adapted, samples, processor), num_learned)
    expected_gradients = take_gradients(adapted)
    actual, num_packed = mean_loss(packed_losses(adapted, rows, processor, is_fused=is_fused), num_learned)
    gradients = take_gradients(adapted)
    assert num_packed == num_single == num_learned
    assert actual == pytest.approx(expected, abs=2e-6)
    assert gradients.keys() == expected_gradients.keys() == {name for name, value in adapted.named_parameters() if "lora" in name}
    for name, gradient in gradients.items():
        largest = expected_gradients[name].abs().max()
        assert largest > 0, name
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=2e-5 * float(largest), msg=name)


def test_the_rows_of_that_comparison_are_of_every_kind(samples: list[ModelInputs]) -> None:
    assert {sample.pixels.num_images for sample in samples} == {0, 1, 2}
    assert {row.num_samples for row in pack(samples, 1)} == {1}
    assert max(row.num_samples for row in pack(samples, 800)) >= 3
    assert len(pack(samples, 800)) > 1
    assert len(pack(samples, 10_000)) == 1
    assert any(row.pixels.num_images == 0 for row in pack(samples, 1))


def test_a_sample_does_not_see_its_neighbours(samples: list[ModelInputs], adapted: PeftModel, processor: Processor) -> None:
    text, other = [sample for sample in samples if not sample.pixels.num_images][:2]
    alone = [loss.item() for loss, _ in packed_losses(adapted, pack([text], 10_000), processor)]
    [row] = pack([text, other], 10_000)
    together = [loss.item() for loss, _ in packed_losses(adapted, [row], processor)]
    others = [loss.item() for loss, _ in packed_losses(adapted, pack([other], 10_000), processor)]
    assert together[0] == pytest.approx(alone[0] + others[0], abs=1e-4)
    as_one = replace(
        row,
        position_ids=torch.arange(len(row.input_ids)),
        cu_seq_lens=torch.tensor([0, len(row.input_ids)], dtype=torch.int32),
        lengths=(len(row.input_ids),),
    )
    seeing = [loss.item() for loss, _ in packed_losses(adapted, [as_one], processor)]
    assert abs(seeing[0] - together[0]) > 1e-3


def test_right_tokens_are_counted(samples: list[ModelInputs], adapted: PeftModel, processor: Processor) -> None:
    base = base_of(adapted)
    expected = 0
    with torch.no_grad():
        for sample in samples:
            pixel_values = processor.preprocessor.normalise(sample.pixels.squares()) if sample.pixels.num_images else None
            chosen = base(torch.from_numpy(sample.input_ids).unsqueeze(0), pixel_values).logits[0, :-1].argmax(-1).numpy()
            assert sample.labels is not None
            expected += int((chosen == sample.labels[1:]).sum())
        use_packed_attention(base)
        losses = [row_loss(base, row, processor.preprocessor) for row in pack(samples, 800)]
    assert sum(int(loss.num_correct) for loss in losses) == expected


def test_a_packed_row_has_the_losses_of_the_original_code(golden_cases: dict[str, Any], reference: Path) -> None:
    """The cases whose images the original reads right, all in one row."""
    cases = golden_cases["cases"]
    processor = Processor.from_checkpoint(reference / "checkpoint")
    model = load_model(reference / "checkpoint")
    use_packed_attention(model)
    samples, expected = [], 0.0
    for case in cases.values():
        if not set(case["images"]) <= {"wide.jpg", "tall.png", "square.png"}:
            continue
        images = [Image.open(reference / "images" / name).convert("RGB") for name in case["images"]]
        widths = [processor.num_image_tokens if token == -200 else 1 for token in case["input_ids"]]
        sample = ModelInputs(
            input_ids=np.repeat(np.array(case["input_ids"]), widths),
            labels=np.repeat(np.array(case["labels"]), widths),
            pixels=processor.preprocessor.to_squares(images),
        )
        samples.append(sample)
        assert sample.labels is not None
        expected += case["loss"] * int((sample.labels[1:] != -100).sum())
    [row] = pack(samples, 10_000)
    assert row.num_samples >= 8
    with torch.no_grad():
        loss = row_loss(model, row, processor.preprocessor)
    assert loss.total.item() / loss.num_learned == pytest.approx(expected / row.num_learned, abs=2e-5)
