"""A model over GPUs and CPU memory answers as on one GPU.

Skipped where there is no GPU; what needs two says so where there is one.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftConfig

from yivl_core.inference import splitting
from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary
from yivl_core.inference.generation import RecordEngine
from yivl_core.inference.requests import Completion, Request
from yivl_core.inference.sampling import SamplingParams
from yivl_core.inference.splitting import SplitPlan, load_split_engine
from yivl_core.model.adapters import load_adapter, num_adapter_values
from yivl_core.model.configuration import YiVLConfig, read_config
from yivl_core.model.files import open_checkpoint
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.spreading import Places
from yivl_core.model.weights import load_model
from yivl_core.outputs.predictions import read_predictions
from yivl_core.processing.processor import Processor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")]

ROWS = 3
Answered = Callable[[RecordEngine, Sequence[Request]], list[Completion]]
SaveRandomAdapter = Callable[[Path, Path, PeftConfig], Path]


def require_two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs that torch can use, and there are {torch.cuda.device_count()}")


@pytest.fixture(params=["GPU and CPU memory", "two GPUs", "two GPUs and CPU memory"])
def places(request: pytest.FixtureRequest, nano: Path, tight_places: Callable[[YiVLConfig], Places]) -> Places:
    """Where the project's own model goes: of its five layers some to the first GPU, and the others elsewhere."""
    found = dict(tight_places(read_config(open_checkpoint(nano))))
    others = [part for part, device in found.items() if device is None]
    assert len([part for part in others if ".layers." in part]) >= 2
    if request.param == "GPU and CPU memory":
        return found
    require_two_gpus()
    return found | dict.fromkeys(others if request.param == "two GPUs" else others[:1], torch.device("cuda", 1))


def split_engine(nano: Path, places: Places, adapter: Path | None = None, dtype: torch.dtype = torch.float32) -> RecordEngine:
    plan = SplitPlan(places=places, num_rows=ROWS)
    return load_split_engine(plan, open_checkpoint(nano), Processor.from_checkpoint(nano), adapter=adapter, dtype=dtype)


def whole_engine(nano: Path, adapter: Path | None = None, dtype: torch.dtype = torch.float32) -> RecordEngine:
    model = load_model(nano, device="cuda:0", dtype=dtype)
    if adapter:
        model = cast(YiVLForConditionalGeneration, load_adapter(model, adapter).get_base_model())
    return RecordEngine(model, Processor.from_checkpoint(nano), ROWS)


def assert_equal(actual: list[Completion], expected: list[Completion]) -> None:
    """In their tokens, and nearly in their probabilities."""
    assert [completion.token_ids for completion in actual] == [completion.token_ids for completion in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, repetition_penalty=1.3, seed=5)])
def test_answers_are_those_of_one_gpu(
    params: SamplingParams, places: Places, nano: Path, mixed_requests: list[Request], answered: Answered
) -> None:
    requests = [replace(request, params=params) for request in mixed_requests]
    assert_equal(answered(split_engine(nano, places), requests), answered(whole_engine(nano), requests))


TARGETS = r".*(self_attn\.[qv]_proj|mlp\.down_proj|mlp\.fc1|mm_projector\.3|lm_head)"
DORA = LoraConfig(target_modules=TARGETS, use_dora=True)


def test_answers_with_an_adapter_are_those_of_one_gpu(
    adapter_config: PeftConfig,
    places: Places,
    nano: Path,
    mixed_requests: list[Request],
    answered: Answered,
    save_random_adapter: SaveRandomAdapter,
    tmp_path: Path,
) -> None:
    adapter = save_random_adapter(nano, tmp_path, adapter_config)
    expected = answered(whole_engine(nano, adapter), mixed_requests)
    assert_equal(answered(split_engine(nano, places, adapter), mixed_requests), expected)
    assert expected != answered(whole_engine(nano), mixed_requests)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_answer_too(
    dtype: torch.dtype, places: Places, nano: Path, mixed_requests: list[Request], answered: Answered
) -> None:
    completions = answered(split_engine(nano, places, dtype=dtype), mixed_requests)
    assert all(completion.num_tokens > 0 for completion in completions)


def test_each_gpu_holds_the_weights_of_its_parts_alone(places: Places, nano: Path) -> None:
    sizes = {name: parameter.nbytes for name, parameter in load_model(nano).named_parameters()}
    gpus = sorted({device.index for device in places.values() if device is not None})
    gc.collect()  # models of earlier tests
    before = {gpu: torch.cuda.memory_allocated(gpu) for gpu in gpus}
    engine = split_engine(nano, places)
    for gpu in gpus:
        parts = tuple(f"{part}." for part, device in places.items() if device == torch.device("cuda", gpu))
        expected = sum(size for name, size in sizes.items() if name.startswith(parts))
        assert expected <= torch.cuda.memory_allocated(gpu) - before[gpu] < expected + 500_000, "blocks are rounded up"
    del engine


# The whole run


@pytest.fixture
def infer(nano: Path, repository: Path, tmp_path: Path) -> Callable[..., InferenceSummary]:
    """Reads twelve strips of handwriting."""
    images = str(repository / "data" / "handwritten_numbers" / "images")

    def run(output: str, **settings: Any) -> InferenceSummary:
        config = InferenceConfig(
            model=str(nano), output=str(tmp_path / output), images=images, prompt="Read the number in the image.", limit=12,
            max_new_tokens=16, dtype="float32", **settings,
        )  # fmt: skip
        summary = infer_shards(config)
        assert (summary.num_records, summary.num_failed) == (12, 0)
        return summary

    return run


def answers(summary: InferenceSummary) -> list[str | None]:
    return [row.response for row in read_predictions(summary.output)]


@pytest.mark.parametrize("config", [None, DORA], ids=["no adapter", "DoRA"])
def test_a_run_shares_the_layers_between_two_gpus(
    config: PeftConfig | None,
    infer: Callable[..., InferenceSummary],
    nano: Path,
    save_random_adapter: SaveRandomAdapter,
    tmp_path: Path,
) -> None:
    require_two_gpus()
    adapter = str(save_random_adapter(nano, tmp_path / "adapter", config)) if config else None
    split = infer("split", device="split", gpu_memory="3GB", batch_size=4, adapter=adapter)
    assert " on cuda:0, " in split.sizes
    assert split.sizes.endswith(" on cuda:1")
    found = answers(split)
    assert found == answers(infer("whole", device="cuda:0", batch_size=4, adapter=adapter))
    assert len(set(found)) > 3, "they should follow from the images"


@pytest.mark.parametrize("config", [None, DORA], ids=["no adapter", "DoRA"])
def test_a_run_takes_cpu_memory_for_what_one_gpu_may_not_hold(
    config: PeftConfig | None,
    infer: Callable[..., InferenceSummary],
    nano: Path,
    save_random_adapter: SaveRandomAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Room for tower, embeddings, all keys and values, the copy of a layer, and about two layers of five."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    adapter = str(save_random_adapter(nano, tmp_path / "adapter", config)) if config else None
    needed = splitting.CONTEXT_BYTES + splitting._LIBRARY_BYTES + 46_000_000
    needed += splitting._work_bytes(read_config(open_checkpoint(nano)), torch.float32, 1)
    needed += 4 * num_adapter_values(adapter) if adapter else 0
    split = infer("split", device="split", gpu_memory=needed / 1e9, batch_size=1, adapter=adapter)
    assert " on cuda:0, " in split.sizes
    assert split.sizes.endswith(" in CPU memory")
    found = answers(split)
    assert found == answers(infer("whole", device="cuda:0", batch_size=1, adapter=adapter))
    assert len(set(found)) > 3, "they should follow from the images"
