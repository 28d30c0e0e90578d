"""What a run says of its speed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.data.records import Record
from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.files import open_checkpoint
from yivl_core.model.random_checkpoint import RandomShape, write_random_checkpoint
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.training.configuration import TrainingConfig
from yivl_core.training.loss import row_loss, use_packed_attention
from yivl_core.training.packing import PackedBatch, pack
from yivl_core.training.throughput import OperationCount, Stopwatch, measure_peak
from yivl_core.training.tuning import outline_tuning, prepare_tuning

SHAPE = RandomShape(image_size=28, num_layers=2, vision_num_layers=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images of four tokens."""
    folder = tmp_path_factory.mktemp("throughput") / "model"
    write_random_checkpoint(folder, shape=SHAPE)
    return folder


@pytest.fixture(scope="module")
def samples(checkpoint: Path) -> list[ModelInputs]:
    """Of several lengths, three with an image and one without."""
    processor, image = Processor.from_checkpoint(checkpoint), Image.new("RGB", (30, 20), "red")
    records = [Record(query="What is this?" * number, response="A square.", images=("x",), system="") for number in (1, 1, 5)]
    inputs = [processor.process(record, [image], with_response=True, max_length=None) for record in records]
    return [*inputs, processor.process(Record(query="Who?", response="Me."), [], with_response=True, max_length=None)]


@pytest.mark.parametrize(
    "settings",
    [
        {"tuner": "full"}, {"tuner": "full", "freeze_vision_tower": True}, {"tuner": "full", "freeze_llm": True},
        {"lora_dropout": 0.0}, {"lora_dropout": 0.0, "target_modules": "all", "lora_rank": 16},
    ],
)  # fmt: skip
def test_operations_are_those_that_torch_counts(settings: dict[str, Any], checkpoint: Path, samples: list[ModelInputs]) -> None:
    config = TrainingConfig(model=str(checkpoint), dataset="-", output="-", **settings)
    base = open_checkpoint(checkpoint)
    outline, tuning = outline_tuning(base, config), prepare_tuning(base, config, torch.float32, CPU)
    use_packed_attention(tuning.model.train())
    rows = pack(samples, 10_000)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for row in rows:
            row_loss(tuning.model, row, Processor.from_checkpoint(base).preprocessor).total.backward()
    # Plain attention makes the half too that causal attention leaves out.
    left_out = 6 * SHAPE.hidden_size * SHAPE.num_layers * sum(length**2 for row in rows for length in row.lengths)
    found = OperationCount(outline.model.config, outline.shapes).count(rows)
    assert found + left_out == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_sample_of_the_published_shape_takes_the_operations_that_are_known() -> None:
    """TFLOP: 24.4 of the decoder's 5.54 billion values forward and back, 0.95 of attention, 0.08 of the head, 1.5 of the tower"""
    published = YiVLConfig(
        text_config=LlamaConfig(
            vocab_size=64000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=4,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=448, patch_size=14
        ),
    )  # fmt: skip
    shapes = {f"model.language_model.layers.0.self_attn.q_proj.lora_{half}.default.weight": (8, 4096) for half in "AB"}
    row = SimpleNamespace(lengths=(1100,), num_learned=76, features=None, pixels=SimpleNamespace(num_images=1))
    assert OperationCount(published, shapes).count([cast(PackedBatch, row)]) == pytest.approx(26.9e12, rel=0.01)
    row = SimpleNamespace(lengths=(1100,), num_learned=76, features=[None], pixels=SimpleNamespace(num_images=0))
    without_tower = OperationCount(published, shapes).count([cast(PackedBatch, row)])
    assert without_tower == pytest.approx(26.9e12 - 2 * 0.63e9 * 1025 - 1.2e11, rel=0.01), "0.63 billion weights, and attention"


def test_the_peak_is_in_operations_a_second() -> None:
    assert 1e8 < measure_peak(CPU, torch.float32) < 1e15


def test_times_between_lines_are_those_of_steps_and_waiting(
    checkpoint: Path, samples: list[ModelInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def after(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("yivl_core.training.throughput.time", SimpleNamespace(perf_counter=lambda: now))
    rows = pack(samples, 10_000)
    outline = outline_tuning(open_checkpoint(checkpoint), TrainingConfig(model=str(checkpoint), dataset="-", output="-"))
    operations = OperationCount(outline.model.config, outline.shapes)
    watch = Stopwatch(CPU, 1e12, operations)
    for _ in range(2):
        with watch.waiting():
            after(0.05)
        with watch.step(rows):
            after(0.15)
        after(0.3)  # an evaluation, a checkpoint
    figures = watch.figures()
    assert figures["data_wait_s"] == pytest.approx(0.1)
    assert figures["samples_per_s"] == pytest.approx(8 / 0.4)
    assert figures["tokens_per_s"] == pytest.approx(2 * sum(map(sum, (row.lengths for row in rows))) / 0.4)
    assert figures["tflops"] == pytest.approx(2 * operations.count(rows) / 0.4 / 1e12)
    assert figures["share_of_peak"] == pytest.approx(figures["tflops"])
    assert 0.05 < figures["memory_gb"] < 100
    with watch.step(rows):
        after(0.5)
    assert watch.figures()["samples_per_s"] == pytest.approx(4 / 0.5), "each line begins anew"
