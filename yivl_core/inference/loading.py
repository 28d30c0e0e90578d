"""From a checkpoint folder to an engine that answers."""

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, cast

import torch

from yivl_core.errors import ConfigurationError
from yivl_core.inference.configuration import EngineSettings
from yivl_core.inference.engine import InferenceEngine
from yivl_core.inference.generation import RECORD_BATCH_SIZE, RecordEngine
from yivl_core.inference.memory import MemoryPlan, plan_memory, require_possible
from yivl_core.inference.requests import Completion, Request
from yivl_core.inference.runner import ModelRunner
from yivl_core.inference.splitting import SplitPlan, load_split_engine
from yivl_core.model.adapters import is_plain_adapter, is_plain_lora, load_adapter, num_adapter_values
from yivl_core.model.configuration import read_config
from yivl_core.model.files import CheckpointFiles
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import Processor


class Engine(Protocol):
    """What answers requests."""

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[int, Completion | None]]:
        """Answers with the place of their request, as they end; None where logits were no finite numbers."""


def require_engine(settings: EngineSettings, adapter: str | Path | None, device: torch.device, dtype: torch.dtype) -> None:
    """Nothing, if a device and an adapter's kind go with what the settings ask for; looked at before anything is written.

    Raises:
        CheckpointError: the adapter's folder is broken.
        ConfigurationError: they do not.
    """
    is_fp8, is_plain = settings.quantization == "fp8", settings.attention == "sdpa"
    require_possible(device, dtype, gpu_memory_gb=settings.gpu_memory, is_fp8=is_fp8, is_plain=is_plain)
    if adapter and not is_plain_adapter(Path(adapter)):
        _require_nothing_of_the_engine(settings, adapter)


def plan_engine(
    settings: EngineSettings, base: CheckpointFiles, adapter: str | Path | None, device: torch.device, dtype: torch.dtype
) -> MemoryPlan:
    """The sizes of an engine with a checkpoint's model, by the memory that is free now: before its weights are loaded.

    Raises:
        CheckpointError: the adapter's folder is broken.
        ConfigurationError: the model does not fit into memory.
    """
    if device.type == "cuda":
        gc.collect()  # what an earlier engine of this process holds would count as taken
        torch.cuda.empty_cache()
    return plan_memory(
        read_config(base),
        dtype,
        device,
        num_rows=settings.batch_size,
        gpu_memory_gb=settings.gpu_memory,
        is_invariant=settings.batch_invariant,
        is_fp8=settings.quantization == "fp8",
        is_plain=settings.attention == "sdpa",
        num_adapter_values=num_adapter_values(adapter) if adapter else 0,
    )


def load_engine(
    settings: EngineSettings,
    base: CheckpointFiles,
    processor: Processor,
    plan: MemoryPlan | SplitPlan,
    *,
    adapter: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Engine, str]:
    """An engine with a checkpoint's model, and what it chose, in words.

    An adapter that is no plain LoRA is run with the model of record, and so is a model that is split.

    Args:
        settings: of the engine, which `require_engine` has let pass.
        base: the checkpoint.
        processor: of the checkpoint.
        plan: of `plan_engine`, or of `plan_split`.
        adapter: adapter folder to put on it, without merging.
        device: where it runs, unless it is split.
        dtype: of weights and arithmetic.

    Raises:
        CheckpointError: a folder is broken, or the two do not fit each other.
    """
    if isinstance(plan, SplitPlan):
        return load_split_engine(plan, base, processor, adapter=adapter, dtype=dtype), str(plan)
    model = load_model(base, dtype=dtype, device=device)
    if adapter:
        model = cast(YiVLForConditionalGeneration, load_adapter(model, Path(adapter)).get_base_model())
        if not is_plain_adapter(Path(adapter)):
            batch_size = settings.batch_size or RECORD_BATCH_SIZE
            return RecordEngine(model, processor, batch_size), f"{batch_size} records at a time with the model of record"
        assert is_plain_lora(model), f"{adapter}: its files say that it is plain"
    return make_engine(model, processor, plan), str(plan)


def _require_nothing_of_the_engine(settings: EngineSettings, adapter: str | Path) -> None:
    """Nothing, if the model of record can do what is asked for."""
    asked = [name for name in ("gpu_memory", "batch_invariant") if getattr(settings, name)]
    asked += ["quantization"] if settings.quantization != "none" else []
    if asked:
        raise ConfigurationError(
            f"{adapter}: this adapter is no plain LoRA, so the model of record answers, which does not know {', '.join(asked)}; "
            "leave that out, or merge the adapter where that is possible"
        )


def make_engine(model: YiVLForConditionalGeneration, processor: Processor, plan: MemoryPlan) -> InferenceEngine:
    """An engine with this model, which is emptied."""
    runner = ModelRunner(model, processor.preprocessor, plan.settings)
    return InferenceEngine(runner, processor.tokenizer)
