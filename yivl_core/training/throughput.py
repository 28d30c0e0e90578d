"""How fast a run is, and what that is of what the device could do: samples, tokens and operations a second, waiting, memory.

Operations are those that the training needs: work that is done twice to save memory is not counted.
"""

import math
import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.gpu_memory import CONTEXT_BYTES
from yivl_core.training.layer_memory import decoder_shape, tower_shape
from yivl_core.training.packing import PackedBatch
from yivl_core.training.tuning import part_of

# What is measured, not learned: equal runs differ in these.
MEASURED = ("samples_per_s", "tokens_per_s", "tflops", "share_of_peak", "data_wait_s", "memory_gb")
_GPU_SIDE, _CPU_SIDE = 8192, 768
_PEAK_S, _CPU_PEAK_S = 0.3, 0.05


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product on a device that is warm."""
    side, seconds = (_GPU_SIDE, _PEAK_S) if device.type == "cuda" else (_CPU_SIDE, _CPU_PEAK_S)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        _wait(device)
        started = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        _wait(device)
        best = min(best, (time.perf_counter() - started) / 4)
    return 2 * side**3 / best


class OperationCount:
    """Counts the operations of rows: two for each value that a token passes forward, as many for its gradient's way back.

    A tuned weight's own gradient takes as many again, and an adapter's values all three.

    Args:
        config: of the model.
        trained: names and shapes of what is trained.
    """

    def __init__(self, config: YiVLConfig, trained: Mapping[str, tuple[int, ...]]) -> None:
        text, decoder, tower = config.text_config, decoder_shape(config, {}), tower_shape(config, {})
        patches, parts = config.num_image_tokens, {part_of(name) for name in trained}
        own = Counter[str]()
        for name, shape in trained.items():
            if len(shape) == 2 and "embed" not in name:
                part = "head" if "lm_head" in name else part_of(name)
                own[part] += (6 if ".lora_" in name else 2) * math.prod(shape)
        self._for_token = decoder.operations * decoder.num_layers + own["llm"]
        # Forward two products of queries, or weights, with half of a sample; back four.
        self._for_pair = 6 * decoder.num_heads * decoder.head_dim * decoder.num_layers
        self._for_learned = 4 * text.hidden_size * text.vocab_size + own["head"]
        tower_forward = tower.num_layers * (patches + 1) * (tower.operations // 2 + 4 * tower.width * (patches + 1))
        projector_forward = 2 * patches * text.hidden_size * (tower.width + text.hidden_size)
        self._for_pixels = tower_forward * (2 if "vision" in parts else 1) + own["vision"] * (patches + 1)
        self._for_features = projector_forward * (2 if parts & {"vision", "projector"} else 1) + own["projector"] * patches

    def count(self, rows: Sequence[PackedBatch]) -> float:
        """Operations of a step, forward and back."""
        return float(
            sum(
                self._for_token * sum(row.lengths)
                + self._for_pair * sum(length**2 for length in row.lengths)
                + self._for_learned * row.num_learned
                + self._for_pixels * row.pixels.num_images
                + self._for_features * (row.pixels.num_images if row.features is None else len(row.features))
                for row in rows
            )
        )


class Stopwatch:
    """Times of steps between lines of the log, without what is not a step: evaluations, checkpoints, what comes before the first.

    Args:
        device: that trains.
        peak: operations a second of a large matrix product.
        operations: counts those of rows.
    """

    def __init__(self, device: torch.device, peak: float, operations: OperationCount) -> None:
        self._device, self._peak, self._operations = device, peak, operations
        self._reset()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it data are waited for."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started
        self._seconds += time.perf_counter() - started

    @contextmanager
    def step(self, rows: Sequence[PackedBatch]) -> Iterator[None]:
        """Within it a step is made."""
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started
        self._samples += sum(row.num_samples for row in rows)
        self._tokens += sum(sum(row.lengths) for row in rows)
        self._done += self._operations.count(rows)

    def figures(self) -> dict[str, float]:
        """Of the steps since the last call; the last of them has to be over on the device too."""
        figures = {
            "samples_per_s": self._samples / self._seconds,
            "share_of_peak": self._done / self._seconds / self._peak,
            "memory_gb": peak_memory(self._device) / 1e9,
            "tokens_per_s": self._tokens / self._seconds,
            "tflops": self._done / self._seconds / 1e12,
            "data_wait_s": self._waited,
        }
        self._reset()
        return figures

    def _reset(self) -> None:
        self._seconds, self._waited, self._samples, self._tokens, self._done = 0.0, 0.0, 0, 0, 0.0


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has had so far: of the GPU with what CUDA itself takes, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux tells kilobytes


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
