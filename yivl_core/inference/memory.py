"""How much memory a runner will need, and how many requests fit beside each other: worked out before anything is allocated.

All is counted in bytes as a user sees them in `nvidia-smi`: weights, keys and values, the largest step, and what CUDA itself
takes. GB are 10^9 bytes.

Shapes: D width of the decoder, F width of its MLP, V vocabulary, C width of the tower, P patches.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from yivl_core.errors import ConfigurationError
from yivl_core.inference.kv_cache import KeyValueCache
from yivl_core.inference.prefixes import PREFIX_CACHE_TOKENS
from yivl_core.inference.steps import RunnerSettings
from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.gpu_memory import CONTEXT_BYTES, can_multiply_in_float8, gigabytes, memory_budget, require_gpu
from yivl_core.model.weights import expected_shapes

MAX_ROWS = 256
_CPU_ROWS = 64
# Prompts side by side up to here make matrix products faster; beyond, they only take memory.
_PREFILL_TOKENS, _CPU_PREFILL_TOKENS = 17_408, 4096
_VISION_IMAGES, _CPU_VISION_IMAGES = 16, 8
# Gaps between blocks of the allocator, and workspaces of the libraries: fitted to peaks on an H100.
_ALLOCATOR_FACTOR, _LIBRARY_BYTES = 1.1, 300_000_000
# What weights leave behind in the allocator when they are rounded to 8 bits, one after the other.
_ROUNDING_BYTES = 400_000_000
# Where steps are not recorded the allocator keeps blocks of the tower and of the decoder apart.
PLAIN_ALLOCATOR_FACTOR = 1.3
# Where layers are joined, most of the second half of their adapters is nought: 1.6 and 1.7 times the values for Yi-VL-6B's
# queries, keys and values and for its gates. PEFT's own copy, in float32, is no larger than that, and gives way to it.
_ADAPTER_FACTOR = 2
# A request has hardly ever more than this: rows beyond would stand empty.
_USUAL_TOKENS = 1152
# With fewer rows than this, memory is better spent on more of them than on larger steps.
_MANY_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Sizes that fit.

    Attributes:
        settings: of the runner.
        weight_bytes, cache_bytes, work_bytes, context_bytes: what takes memory.
    """

    settings: RunnerSettings
    weight_bytes: int
    cache_bytes: int
    work_bytes: int
    context_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return self.weight_bytes + self.cache_bytes + self.work_bytes + self.context_bytes

    def __str__(self) -> str:
        """What a user is told."""
        parts = {"weights": self.weight_bytes, "keys and values": self.cache_bytes, "steps": self.work_bytes}
        listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items())
        return (
            f"{self.settings.num_rows} records at a time, {self.settings.cache_tokens} tokens of keys and values, "
            f"{gigabytes(self.total_bytes)} of memory ({listed})"
        )


def require_possible(
    device: torch.device, dtype: torch.dtype, *, gpu_memory_gb: float | None, is_fp8: bool, is_plain: bool
) -> None:
    """Nothing, if a device knows what is asked of it, whatever the model.

    Args:
        device: that it would run on.
        dtype: of weights and arithmetic.
        gpu_memory_gb: most memory to use.
        is_fp8: whether matrix products are to be in 8 bits.
        is_plain: whether to do without kernels.

    Raises:
        ConfigurationError: it does not.
    """
    require_gpu(device, gpu_memory_gb)
    if is_fp8 and is_plain:
        raise ConfigurationError("quantization 'fp8' needs the engine's kernels; leave out attention 'sdpa', or the quantization")
    if is_fp8 and not can_multiply_in_float8(device, dtype):
        raise ConfigurationError(
            f"quantization 'fp8' needs a GPU of compute capability 8.9 or later and dtype bfloat16 (given: {device}, "
            f"{str(dtype).removeprefix('torch.')}); leave it out"
        )


def plan_memory(
    config: YiVLConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_rows: int | None = None,
    gpu_memory_gb: float | None = None,
    is_invariant: bool = False,
    is_fp8: bool = False,
    is_plain: bool = False,
    is_loaded: bool = False,
    num_adapter_values: int = 0,
) -> MemoryPlan:
    """The sizes for a model.

    Args:
        config: of the model.
        dtype: of weights and arithmetic.
        device: that it will run on.
        num_rows: most requests at a time; None: what the device is good for.
        gpu_memory_gb: most memory to use, in GB of 10^9 bytes; None: what is free.
        is_invariant: whether every step has one size.
        is_fp8: whether the layers' weights are rounded to 8 bits once they are loaded.
        is_plain: whether to do without kernels.
        is_loaded: whether the model has taken its memory already.
        num_adapter_values: parameters of an adapter that is run beside the weights.

    Raises:
        ConfigurationError: the model with one request does not fit, or the device has no 8-bit products.
    """
    is_gpu = device.type == "cuda"
    require_possible(device, dtype, gpu_memory_gb=gpu_memory_gb, is_fp8=is_fp8, is_plain=is_plain)
    wanted = num_rows or (MAX_ROWS if is_gpu else _CPU_ROWS)
    shapes = expected_shapes(config)
    adapter_bytes = _ADAPTER_FACTOR * num_adapter_values * dtype.itemsize
    loaded_bytes, weight_bytes = (_weight_bytes(shapes, dtype, is_fp8=rounded) + adapter_bytes for rounded in (False, is_fp8))
    budget = memory_budget(device, gpu_memory_gb, loaded_bytes if is_loaded else 0)
    max_positions: int = config.text_config.max_position_embeddings
    per_token = _bytes_per_token(config, dtype)
    prefill_tokens = max(max_positions, _PREFILL_TOKENS if is_gpu else _CPU_PREFILL_TOKENS)
    context_bytes, library_bytes = (CONTEXT_BYTES, _LIBRARY_BYTES) if is_gpu else (0, 0)
    library_bytes += _ROUNDING_BYTES if is_fp8 else 0
    is_recorded = is_gpu and not is_plain
    while True:
        images = max(1, min(_VISION_IMAGES if is_gpu else _CPU_VISION_IMAGES, prefill_tokens // config.num_image_tokens))
        work = partial(_work_bytes, config, dtype, prefill_tokens, images, is_recorded=is_recorded)
        work_bytes = library_bytes + work(wanted)
        left = budget - weight_bytes - work_bytes - context_bytes
        tokens = left // per_token - PREFIX_CACHE_TOKENS - 1
        # Smaller steps where the room is better spent on rows: decoding pays off by the row.
        if prefill_tokens // 2 < max_positions or tokens >= min(wanted, _MANY_ROWS) * _USUAL_TOKENS:
            break
        prefill_tokens //= 2
    needed = weight_bytes + work_bytes + context_bytes + (max_positions + PREFIX_CACHE_TOKENS + 1) * per_token
    if max(needed, loaded_bytes + context_bytes) > budget:
        remedy = "give a higher gpu_memory, a larger device, or device split" if is_gpu else "use dtype bfloat16, or more memory"
        if max(needed - work(wanted) + work(1), loaded_bytes + context_bytes) <= budget:
            remedy = f"give a batch_size below {wanted}"
        least = gigabytes(max(needed, loaded_bytes + context_bytes))
        raise ConfigurationError(
            f"the model does not fit: it needs {least} on {device} to be loaded and to answer one record of {max_positions} "
            f"tokens in steps for {wanted} (weights {gigabytes(loaded_bytes)}), and {gigabytes(budget)} may be used; {remedy}"
        )
    cache_tokens = min(tokens, wanted * max_positions)
    prefill_rows = max(1, prefill_tokens // (config.num_image_tokens + 1))
    rows = wanted
    if num_rows is None and cache_tokens < wanted * _USUAL_TOKENS:
        rows = max(1, cache_tokens // _USUAL_TOKENS)
        rows -= rows % prefill_rows if rows > prefill_rows else 0  # they are refilled in groups of that many
    return MemoryPlan(
        settings=RunnerSettings(
            num_rows=rows,
            cache_tokens=cache_tokens,
            vision_images=images,
            prefill_rows=prefill_rows,
            prefill_tokens=prefill_tokens,
            is_invariant=is_invariant,
            is_fp8=is_fp8,
            is_plain=is_plain,
        ),
        weight_bytes=weight_bytes,
        cache_bytes=(cache_tokens + PREFIX_CACHE_TOKENS + 1) * per_token,
        work_bytes=work_bytes,
        context_bytes=context_bytes,
    )


def _weight_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, *, is_fp8: bool) -> int:
    """Bytes of all parameters; with 8 bits the layers' matrices have one a parameter, and a scale for each output."""

    def size(name: str, shape: tuple[int, ...]) -> int:
        if is_fp8 and len(shape) == 2 and ".layers." in name:
            return math.prod(shape) + 4 * shape[0]
        return math.prod(shape) * dtype.itemsize

    return sum(size(name, shape) for name, shape in shapes.items())


def _bytes_per_token(config: YiVLConfig, dtype: torch.dtype) -> int:
    text = config.text_config
    return KeyValueCache.bytes_per_token(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        dtype=dtype,
    )


def _work_bytes(
    config: YiVLConfig, dtype: torch.dtype, prefill_tokens: int, images: int, num_rows: int, *, is_recorded: bool
) -> int:
    """What steps take beside weights and cache: an MLP of a prefill or a layer of the tower, and what goes in and out."""
    text, vision, image_size = config.text_config, config.vision_config, config.vision_config.image_size
    decoder = prefill_tokens * (2 * text.hidden_size + 3 * text.intermediate_size) * dtype.itemsize
    tower = images * config.num_image_tokens * (3 * vision.hidden_size + 2 * vision.intermediate_size) * dtype.itemsize
    pixels = images * 3 * image_size**2 * (1 + 2 * 4 + 2 * dtype.itemsize)
    embeds = (2 * prefill_tokens + images * config.num_image_tokens) * text.hidden_size * dtype.itemsize
    logits = num_rows * text.vocab_size * (2 * dtype.itemsize + 4 + 4 + 1)
    if is_recorded:
        return int(_ALLOCATOR_FACTOR * (max(decoder, tower) + pixels + embeds + logits))
    return int(PLAIN_ALLOCATOR_FACTOR * (decoder + tower + pixels + embeds + logits))
