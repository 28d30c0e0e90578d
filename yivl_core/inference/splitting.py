"""The device `split`: the model of record over all GPUs of the machine, and CPU memory where those are not enough.

Its layers run one after another, wherever they are, so this is slow; it is for models that fit no GPU alone.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import psutil
import torch

from yivl_core.errors import ConfigurationError
from yivl_core.inference.configuration import EngineSettings
from yivl_core.inference.generation import RECORD_BATCH_SIZE, RecordEngine
from yivl_core.inference.kv_cache import KeyValueCache
from yivl_core.inference.memory import PLAIN_ALLOCATOR_FACTOR
from yivl_core.model.adapters import load_adapter, num_adapter_values
from yivl_core.model.configuration import YiVLConfig, read_config
from yivl_core.model.files import CheckpointFiles
from yivl_core.model.gpu_memory import CONTEXT_BYTES, SHARE_OF_FREE
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.spreading import Places, find_places, home, spread
from yivl_core.model.weights import expected_shapes, load_model
from yivl_core.processing.processor import Processor

# The libraries' workspaces, on each GPU.
_LIBRARY_BYTES = 500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """What goes where.

    Attributes:
        places: the device of each part of the model.
        num_rows: how many records are answered together.
    """

    places: Places
    num_rows: int

    @property
    def num_offloaded(self) -> int:
        """Parts in CPU memory."""
        return sum(device is None for device in self.places.values())

    def __str__(self) -> str:
        """What a user is told."""
        layers = Counter(
            "in CPU memory" if device is None else f"on {device}" for part, device in self.places.items() if ".layers." in part
        )
        listed = ", ".join(f"{number} {place}" for place, number in layers.items())
        return f"{self.num_rows} records at a time with the model of record, its layers: {listed}"


def first_gpu() -> torch.device:
    """Where a split model is given its inputs.

    Raises:
        ConfigurationError: this machine has no GPU.
    """
    if not torch.cuda.is_available():
        raise ConfigurationError(
            "device 'split' spreads a model over GPUs, and this machine has none that torch can use; give auto or cpu"
        )
    return torch.device("cuda", 0)


def require_split(settings: EngineSettings) -> None:
    """Nothing, if the model of record knows what the settings ask for; looked at before anything is written.

    Raises:
        ConfigurationError: it does not.
    """
    asked = ["batch_invariant"] if settings.batch_invariant else []
    asked += ["quantization"] if settings.quantization != "none" else []
    if asked:
        raise ConfigurationError(
            f"device 'split': the model of record answers, which does not know {', '.join(asked)}; leave that out, or use one GPU"
        )


def plan_split(settings: EngineSettings, base: CheckpointFiles, adapter: str | Path | None, dtype: torch.dtype) -> SplitPlan:
    """Where the parts of a checkpoint's model go, worked out before anything is loaded.

    Args:
        settings: of the engine; `gpu_memory` holds for each GPU.
        base: the checkpoint.
        adapter: adapter folder to put on it.
        dtype: of weights and arithmetic.

    Raises:
        CheckpointError: a folder is broken.
        ConfigurationError: the settings ask for what the model of record does not know, or there is not enough memory.
    """
    require_split(settings)
    config = read_config(base)
    gpu_bytes = [_usable_bytes(number, settings.gpu_memory) for number in range(torch.cuda.device_count())]
    cpu_bytes = int(psutil.virtual_memory().available * SHARE_OF_FREE)
    sizes = [settings.batch_size] if settings.batch_size else _halvings(RECORD_BATCH_SIZE)
    plans = []
    for num_rows in sizes:
        # All of the adapter is in float32, and read on the first GPU before it goes to its layers.
        work_bytes = _work_bytes(config, dtype, num_rows) + (4 * num_adapter_values(adapter) if adapter else 0)
        places = find_places(
            config,
            dtype,
            gpu_bytes=[max(0, size - work_bytes) for size in gpu_bytes],
            cpu_bytes=cpu_bytes,
            cache_bytes=_cache_bytes(config, dtype, num_rows),
        )
        if places:
            plans.append(SplitPlan(places=places, num_rows=num_rows))
    if not plans:
        raise ConfigurationError(_refusal(config, dtype, sizes[-1], gpu_bytes, cpu_bytes))
    # Fewer records together are faster than weights that are copied for each token; where those are copied anyway, more are.
    return min(plans, key=lambda plan: (plan.num_offloaded > 0, -plan.num_rows))


def load_split_engine(
    plan: SplitPlan, base: CheckpointFiles, processor: Processor, *, adapter: str | Path | None, dtype: torch.dtype
) -> RecordEngine:
    """An engine with a checkpoint's model, each tensor of which is read to its place.

    Args:
        plan: what goes where.
        base: the checkpoint.
        processor: of the checkpoint.
        adapter: adapter folder to put on it, without merging; of any kind that adapts layers.
        dtype: of weights and arithmetic.

    Raises:
        CheckpointError: a folder is broken, or the two do not fit each other.
    """
    model = load_model(base, dtype=dtype, device=partial(home, plan.places))
    if adapter:  # before the hooks: it goes where the layers are that it adapts, and the hooks are to move it too
        model = cast(YiVLForConditionalGeneration, load_adapter(model, Path(adapter)).get_base_model())
    return RecordEngine(spread(model, plan.places), processor, plan.num_rows)


def _usable_bytes(gpu: int, gpu_memory_gb: float | None) -> int:
    """What the model may take of a GPU: without what CUDA and the libraries take."""
    free, _ = torch.cuda.mem_get_info(gpu)
    usable = int(free * SHARE_OF_FREE) + CONTEXT_BYTES  # this process's context is taken already, and counts as ours
    if gpu_memory_gb is not None:
        if gpu_memory_gb * 1e9 > usable:
            raise ConfigurationError(
                f"gpu_memory {gpu_memory_gb:g}: cuda:{gpu} has {usable / 1e9:.1f} GB free, in GB of 10^9 bytes; give less, or "
                "leave it out to use what is free"
            )
        usable = int(gpu_memory_gb * 1e9)
    return max(0, usable - CONTEXT_BYTES - _LIBRARY_BYTES)


def _halvings(size: int) -> list[int]:
    """A size, its half, and so on down to 1."""
    return [size >> shift for shift in range(size.bit_length())]


def _work_bytes(config: YiVLConfig, dtype: torch.dtype, num_rows: int) -> int:
    """What the longest prompts take on a GPU beside keys and values: an MLP with its residual or the tower, masks, embeddings."""
    text, vision = config.text_config, config.vision_config
    length: int = text.max_position_embeddings
    tokens = num_rows * length
    decoder = tokens * (2 * text.hidden_size + 3 * text.intermediate_size)
    tower = tokens * (2 * vision.hidden_size + 2 * vision.intermediate_size)  # as if all of it were images
    embeds = 2 * tokens * text.hidden_size
    mask_bytes = num_rows * length**2 * (1 + dtype.itemsize)
    pixel_bytes = tokens // config.num_image_tokens * 3 * vision.image_size**2 * (1 + 2 * 4 + dtype.itemsize)
    work_bytes = (max(decoder, tower) + embeds) * dtype.itemsize + mask_bytes + pixel_bytes
    return int(PLAIN_ALLOCATOR_FACTOR * (work_bytes + _cache_bytes(config, dtype, num_rows)))  # it is copied when it grows


def _cache_bytes(config: YiVLConfig, dtype: torch.dtype, num_rows: int) -> int:
    """Keys and values of one layer for the longest prompts with their answers."""
    text = config.text_config
    per_token = KeyValueCache.bytes_per_token(
        num_layers=1,
        num_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        dtype=dtype,
    )
    return int(num_rows * text.max_position_embeddings * per_token)


def _refusal(config: YiVLConfig, dtype: torch.dtype, num_rows: int, gpu_bytes: Sequence[int], cpu_bytes: int) -> str:
    weight_bytes = sum(math.prod(shape) for shape in expected_shapes(config).values()) * dtype.itemsize
    cache_bytes = config.text_config.num_hidden_layers * _cache_bytes(config, dtype, num_rows)
    room = ", ".join(f"{size / 1e9:.1f} GB on cuda:{number}" for number, size in enumerate(gpu_bytes))
    return (
        f"the model does not fit, not even split: there are {room}, and {cpu_bytes / 1e9:.1f} GB of CPU memory for weights "
        f"({weight_bytes / 1e9:.1f} GB); keys and values of {num_rows} record(s) ({cache_bytes / 1e9:.1f} GB) have to be on GPUs "
        f"with {_work_bytes(config, dtype, num_rows) / 1e9:.1f} GB on each for a step, and vision tower and token embeddings on "
        "cuda:0; give a lower batch_size or a higher gpu_memory where those are set, dtype bfloat16, or more memory"
    )
