"""What tests of engines share: one thread, models, requests of all kinds, and adapters of any kind."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from PIL import Image

from yivl_core.data.records import Record
from yivl_core.export.configuration import MergeConfig
from yivl_core.export.merge import merge_adapter
from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary
from yivl_core.inference.loading import Engine
from yivl_core.inference.requests import Completion, Request
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.progress import Progress, ignore_progress
from yivl_core.training.configuration import TrainingSummary


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(reference: Path) -> YiVLForConditionalGeneration:
    """The model of record; not to be emptied."""
    return load_model(reference / "checkpoint")


@pytest.fixture(scope="module")
def processor(reference: Path) -> Processor:
    return Processor.from_checkpoint(reference / "checkpoint")


@pytest.fixture(scope="session")
def forced_logprobs() -> Callable[[YiVLForConditionalGeneration, Processor, ModelInputs, Sequence[int]], torch.Tensor]:
    """Log-probabilities of an answer by one forward pass of the model of record over prompt and answer."""

    @torch.no_grad()
    def compute(
        model: YiVLForConditionalGeneration, processor: Processor, inputs: ModelInputs, token_ids: Sequence[int]
    ) -> torch.Tensor:
        input_ids = torch.from_numpy(np.concatenate([inputs.input_ids, np.array(token_ids)])).unsqueeze(0)
        squares = inputs.pixels.squares()
        pixel_values = processor.preprocessor.normalise(squares) if len(squares) else None
        logits = model(input_ids=input_ids, pixel_values=pixel_values).logits[0, len(inputs.input_ids) - 1 : -1]
        return logits.log_softmax(dim=-1).gather(-1, torch.tensor(token_ids)[:, None]).squeeze(-1)

    return compute


@pytest.fixture(scope="module")
def mixed_requests(nano: Path) -> list[Request]:
    """Four for the project's own model, with none to two images."""
    processor, found = Processor.from_checkpoint(nano), []
    for number, num_images in enumerate((1, 1, 2, 0)):
        pixels = np.random.default_rng(number).integers(0, 256, (num_images, 9, 14, 3), dtype=np.uint8)
        record = Record(query="<image>" * num_images + f"What is it? ({number})", images=("x",) * num_images)
        inputs = processor.process(record, [Image.fromarray(image) for image in pixels], with_response=False)
        found.append(Request(sample_id=str(number), inputs=inputs, max_new_tokens=5, with_logprobs=True))
    return found


@pytest.fixture(scope="session")
def answered() -> Callable[[Engine, Sequence[Request]], list[Completion]]:
    """Completions in the order of their requests; all have to have one."""

    def answer(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
        completions = dict(engine.generate(requests))
        found = [completions[number] for number in range(len(requests))]
        assert None not in found
        return [completion for completion in found if completion]

    return answer


_TARGETS = r".*(self_attn\.[qv]_proj|mlp\.down_proj|mlp\.fc1|mm_projector\.3|lm_head)"


@pytest.fixture(
    params=[
        LoraConfig(target_modules=_TARGETS),
        LoraConfig(target_modules=_TARGETS, use_dora=True),
        LoraConfig(target_modules=["embed_tokens", "patch_embedding", "lm_head"]),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["norm", "lm_head", "embed_tokens"]),
        IA3Config(target_modules=_TARGETS, feedforward_modules=r".*mlp\.down_proj"),
    ],
    ids=["LoRA", "DoRA", "LoRA on embeddings", "LoRA and whole modules", "IA3"],
)
def adapter_config(request: pytest.FixtureRequest) -> PeftConfig:
    """Adapters of each kind that reads, adds to or replaces layers in its own way."""
    config: PeftConfig = request.param
    return config


@pytest.fixture(scope="session")
def save_random_adapter() -> Callable[[Path, Path, PeftConfig], Path]:
    """Writes an adapter for a checkpoint that changes its answers."""

    def save(checkpoint: Path, folder: Path, config: PeftConfig) -> Path:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # of plain PEFT 0.21
            adapted = get_peft_model(load_model(checkpoint), config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        return folder

    return save


@pytest.fixture(scope="session")
def merged(trained: TrainingSummary, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose answers differ from record to record; not to be written to."""
    return merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path_factory.mktemp("merged") / "model"))).output


@pytest.fixture
def infer(merged: str, dataset: Path, tmp_path: Path) -> Callable[..., InferenceSummary]:
    """Answers the dataset of twelve records, or another input, into a folder of the test's own."""

    def run(
        output: str = "predictions",
        shard_indices: Any = None,
        on_progress: Callable[[Progress], None] = ignore_progress,
        **settings: Any,
    ) -> InferenceSummary:
        url = output if "://" in output else str(tmp_path / output)
        values: dict[str, Any] = {"model": merged, "max_new_tokens": 8, "output": url}
        if not settings.keys() & {"images", "load_dataset_config", "dataset"}:
            values["dataset"] = str(dataset)
        return infer_shards(InferenceConfig(**values | settings), shard_indices, on_progress)

    return run
