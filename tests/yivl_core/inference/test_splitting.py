"""A model over several devices: what is planned by their memory, what is refused, and answers equal to those of the whole model.

Without a GPU the CPU takes the place of one: weights that stand in CPU memory leave the model and come back all the same.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftConfig
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.errors import ConfigurationError, OutputError
from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import EngineSettings, InferenceConfig, InferenceSummary
from yivl_core.inference.generation import RecordEngine
from yivl_core.inference.memory import plan_memory
from yivl_core.inference.requests import Completion, Request
from yivl_core.inference.sampling import SamplingParams
from yivl_core.inference.splitting import SplitPlan, load_split_engine, plan_split
from yivl_core.model.adapters import load_adapter
from yivl_core.model.configuration import YiVLConfig, read_config
from yivl_core.model.files import open_checkpoint
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.spreading import Places
from yivl_core.model.weights import load_model
from yivl_core.outputs.manifest import read_manifest
from yivl_core.outputs.predictions import read_predictions
from yivl_core.processing.processor import Processor
from yivl_core.training.configuration import TrainingSummary

# config.json of 01-ai/Yi-VL-34B: 70 GB of weights in 16 bits.
LARGE = YiVLConfig(
    text_config=LlamaConfig(
        vocab_size=64000, max_position_embeddings=4096, hidden_size=7168, intermediate_size=20480, num_hidden_layers=60,
        num_attention_heads=56, num_key_value_heads=8,
    ),
    vision_config=CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=448, patch_size=14
    ),
)  # fmt: skip
TightPlaces = Callable[[YiVLConfig], Places]
Answered = Callable[[RecordEngine, Sequence[Request]], list[Completion]]
SaveRandomAdapter = Callable[[Path, Path, PeftConfig], Path]


# Plans


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Callable[..., SplitPlan]:
    """Plans the large model for GPUs and a CPU with so many GB free."""

    def make(gpus: list[float], cpu: float, *, adapter: Path | None = None, **settings: Any) -> SplitPlan:
        class Memory:
            available = int(cpu * 1e9)

        monkeypatch.setattr("yivl_core.inference.splitting.psutil.virtual_memory", Memory)
        monkeypatch.setattr("yivl_core.inference.splitting.read_config", lambda _: LARGE)
        monkeypatch.setattr("torch.cuda.device_count", lambda: len(gpus))
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda gpu: (int(gpus[gpu] * 1e9), int(gpus[gpu] * 1e9)))
        return plan_split(EngineSettings(**settings), open_checkpoint(tiny_checkpoint), adapter, torch.bfloat16)

    return make


def layers(plan: SplitPlan) -> dict[str, int]:
    """How many are on each device."""
    devices = [str(device) for part, device in plan.places.items() if ".layers." in part]
    return {device: devices.count(device) for device in devices}


def test_gpus_with_room_for_all_share_the_layers(plan: Callable[..., SplitPlan]) -> None:
    found = plan([80, 80], 64)
    assert layers(found) == {"cuda:0": 29, "cuda:1": 31}
    assert str(found) == "8 records at a time with the model of record, its layers: 29 on cuda:0, 31 on cuda:1"


def test_fewer_records_together_rather_than_layers_in_cpu_memory(plan: Callable[..., SplitPlan]) -> None:
    found = plan([48, 48], 64)
    assert found.num_rows == 4
    assert found.num_offloaded == 0
    kept = plan([48, 48], 64, batch_size=8)
    assert kept.num_rows == 8
    assert layers(kept)["None"] > 0


def test_more_records_together_where_layers_are_in_cpu_memory_anyway(plan: Callable[..., SplitPlan]) -> None:
    found = plan([24], 100)
    assert found.num_rows == 8
    assert layers(found).keys() == {"cuda:0", "None"}
    assert re.search(r"its layers: \d+ on cuda:0, \d+ in CPU memory$", str(found))
    alone = plan([24], 100, batch_size=1)
    assert layers(alone)["cuda:0"] > layers(found)["cuda:0"] > 0


def test_gpu_memory_is_the_most_of_each_gpu(plan: Callable[..., SplitPlan]) -> None:
    assert plan([80, 80], 64, gpu_memory="48GB").num_rows == 4
    assert layers(plan([80, 80], 64, gpu_memory=24))["None"] > 0
    with pytest.raises(ConfigurationError, match=r"gpu_memory 40: cuda:1 has 29\.4 GB free, in GB of 10\^9 bytes; give less, or"):
        plan([80, 30], 64, gpu_memory=40)


def test_room_for_the_adapter_is_left_on_each_gpu(plan: Callable[..., SplitPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yivl_core.inference.splitting.num_adapter_values", lambda _: 1_000_000_000)
    one, other = plan([30, 40], 64, batch_size=1), plan([30, 40], 64, batch_size=1, adapter=Path("adapter"))
    layer_bytes = 1.15e9
    assert 8e9 - 2 * layer_bytes < (other.num_offloaded - one.num_offloaded) * layer_bytes < 8e9 + 2 * layer_bytes


def test_a_model_that_fits_no_gpu_is_told_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (24_000_000_000, 24_000_000_000))
    with pytest.raises(ConfigurationError, match=r"the model does not fit: .*, or device split$"):
        plan_memory(LARGE, torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize(("gpus", "cpu"), [([24], 40), ([2], 200), ([2, 80], 200)], ids=["weights", "GPU", "first GPU"])
def test_too_little_memory_everywhere_is_refused_with_the_numbers(
    gpus: list[float], cpu: float, plan: Callable[..., SplitPlan]
) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"the model does not fit, not even split: there are .* on cuda:{len(gpus) - 1}, and {0.95 * cpu:.1f} GB of CPU "
        r"memory for weights \(70\.2 GB\); keys and values of 1 record\(s\) \(1\.0 GB\) have to be on GPUs with 1\.1 GB on each",
    ):
        plan(gpus, cpu)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_invariant": True}, "batch_invariant"),
        ({"quantization": "fp8"}, "quantization"),
        ({"batch_invariant": True, "quantization": "fp8", "gpu_memory": 20}, "batch_invariant, quantization"),
    ],
)
def test_settings_that_the_model_of_record_does_not_know_are_refused_by_name(
    settings: dict[str, Any], named: str, plan: Callable[..., SplitPlan]
) -> None:
    with pytest.raises(ConfigurationError, match=f"device 'split': the model of record answers, which does not know {named}; "):
        plan([80], 64, **settings)


# Answers


@pytest.fixture(scope="module")
def processor(nano: Path) -> Processor:
    return Processor.from_checkpoint(nano)


@pytest.fixture(scope="module")
def places(nano: Path, tight_places: TightPlaces) -> Places:
    """Half of the layers and the head in CPU memory, the others on a GPU whose place the CPU takes."""
    found = tight_places(read_config(open_checkpoint(nano)))
    return {part: None if device is None else torch.device("cpu") for part, device in found.items()}


def test_answers_are_those_of_the_whole_model(
    nano: Path, processor: Processor, places: Places, mixed_requests: list[Request], answered: Answered
) -> None:
    """Tokens and their probabilities, bit for bit."""
    plan = SplitPlan(places=places, num_rows=3)
    engine = load_split_engine(plan, open_checkpoint(nano), processor, adapter=None, dtype=torch.float32)
    assert answered(engine, mixed_requests) == answered(RecordEngine(load_model(nano), processor, 3), mixed_requests)


def test_answers_with_an_adapter_are_those_of_the_whole_model_with_it(
    adapter_config: PeftConfig,
    nano: Path,
    processor: Processor,
    places: Places,
    mixed_requests: list[Request],
    answered: Answered,
    save_random_adapter: SaveRandomAdapter,
    tmp_path: Path,
) -> None:
    adapter = save_random_adapter(nano, tmp_path, adapter_config)
    whole = load_model(nano)
    base = answered(RecordEngine(whole, processor, 3), mixed_requests)
    whole = cast(YiVLForConditionalGeneration, load_adapter(whole, adapter).get_base_model())
    expected = answered(RecordEngine(whole, processor, 3), mixed_requests)
    assert expected != base
    plan = SplitPlan(places=places, num_rows=3)
    engine = load_split_engine(plan, open_checkpoint(nano), processor, adapter=adapter, dtype=torch.float32)
    assert answered(engine, mixed_requests) == expected


def test_sampling_and_penalties_know_nothing_of_devices(
    nano: Path, processor: Processor, places: Places, mixed_requests: list[Request], answered: Answered
) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=3)
    sampled = [replace(request, params=params) for request in mixed_requests]
    plan = SplitPlan(places=places, num_rows=4)
    engine = load_split_engine(plan, open_checkpoint(nano), processor, adapter=None, dtype=torch.float32)
    found = answered(engine, sampled)
    assert found == answered(RecordEngine(load_model(nano), processor, 4), sampled)
    assert found != answered(engine, mixed_requests)


# The whole run


def test_device_split_without_a_gpu_is_refused_before_anything_is_written(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    config = InferenceConfig(
        model=str(tiny_checkpoint), dataset=str(dataset), output=str(tmp_path / "predictions"), device="split"
    )
    with pytest.raises(ConfigurationError, match=r"device 'split' spreads a model over GPUs, and this machine has none .*; give"):
        infer_shards(config)
    assert not (tmp_path / "predictions").exists()


@pytest.fixture
def infer(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path, tight_places: TightPlaces, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., InferenceSummary]:
    """Answers twelve records; the CPU takes the place of a GPU with 40 GB."""
    found = tight_places(read_config(open_checkpoint(tiny_checkpoint)))
    places = {part: None if device is None else torch.device("cpu") for part, device in found.items()}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (40_000_000_000, 40_000_000_000))
    monkeypatch.setattr("yivl_core.inference.batch.first_gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr("yivl_core.inference.splitting.find_places", lambda *_, **__: places)

    def run(output: str, **settings: Any) -> InferenceSummary:
        values: dict[str, Any] = {"model": str(tiny_checkpoint), "dataset": str(dataset), "max_new_tokens": 8, "batch_size": 5}
        return infer_shards(InferenceConfig(**values | settings, output=str(tmp_path / output)))

    return run


def test_a_run_on_device_split_answers_as_a_run_on_one_device(
    infer: Callable[..., InferenceSummary], trained: TrainingSummary
) -> None:
    split = infer("split", device="split", adapter=trained.adapter)
    whole = infer("whole", device="cpu", adapter=trained.adapter)
    assert split.sizes == "5 records at a time with the model of record, its layers: 1 on cpu, 2 in CPU memory"
    one, other = ([row.response for row in read_predictions(summary.output)] for summary in (split, whole))
    assert one == other
    assert len(set(one)) > 1
    manifest = read_manifest(f"{split.output}/manifest.json")
    assert manifest is not None
    assert manifest["numerics"]["device"] == "split"


def test_a_run_on_one_device_is_not_gone_on_with_split(infer: Callable[..., InferenceSummary]) -> None:
    """They round differently."""
    infer("predictions", device="cpu")
    with pytest.raises(OutputError, match="device"):
        infer("predictions", device="split", resume=True)


def test_settings_that_are_refused_leave_nothing_behind(infer: Callable[..., InferenceSummary], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not know batch_invariant"):
        infer("predictions", device="split", batch_invariant=True)
    assert not (tmp_path / "predictions").exists()
