"""Whether a training can fit into memory and onto the disk, by the sizes alone, before any weight is read.

Of one trained parameter are kept: its value, its gradient, and what the optimizer remembers (AdamW two values, Muon one), each in
float32. What a forward pass needs on top depends on the rows, and shows in the first step.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from yivl_core.errors import ConfigurationError
from yivl_core.model.configuration import read_config
from yivl_core.model.files import CheckpointFiles
from yivl_core.model.gpu_memory import gigabytes
from yivl_core.model.nf4 import NF4_BYTES, is_held_in_nf4
from yivl_core.model.weights import expected_shapes
from yivl_core.training.configuration import TrainingConfig
from yivl_core.training.optimization import num_remembered

_FLOAT32_BYTES = 4
# Gaps in the allocator where weights stood before they were rounded to 8 bits: fitted to Yi-VL-34B on an H200.
_ROUNDING_SHARE = 0.05
_NUM_CHECKPOINTS = 3  # the best, the newest, and the one that is being written


def require_memory(
    base: CheckpointFiles,
    trained: Mapping[str, tuple[int, ...]],
    config: TrainingConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Nothing, if a training can fit.

    Args:
        base: the checkpoint that is trained on.
        trained: names and shapes of what is trained.
        config: of the training.
        dtype: of what is frozen.
        device: that it is trained on.

    Raises:
        ConfigurationError: it cannot; the message tells the numbers, in MB and GB of 10^6 and 10^9 bytes.
    """
    num_trained = _count(trained)
    needs = fixed_needs(base, trained, config, dtype)
    free_bytes = _free_memory(device)
    if sum(needs.values()) > free_bytes:
        raise ConfigurationError(
            f"{base.folder}: tuner {config.tuner!r} trains {num_trained / 1e9:.3g} billion parameters, which needs "
            f"{gigabytes(sum(needs.values()))} on {device} before the first row ({_listed(needs)}), and {gigabytes(free_bytes)} "
            "are free; " + _smaller(config) + "use a device with more memory"
        )
    checkpoint = (num_trained + _num_memories(trained, config)) * _FLOAT32_BYTES
    weight_paths = (*base.weight_paths, *base.vision_weight_paths) if _is_full(config) else ()
    result = sum(path.stat().st_size for path in weight_paths)
    files = {f"{_NUM_CHECKPOINTS} checkpoints": _NUM_CHECKPOINTS * checkpoint, "the result": result}
    output = Path(config.output)
    own_checkpoints = sum(path.stat().st_size for path in output.glob("checkpoints/*/*"))  # will be replaced
    free_disk = shutil.disk_usage(_existing_parent(output)).free + own_checkpoints
    if sum(files.values()) > free_disk:
        raise ConfigurationError(
            f"{config.output}: the training writes up to {gigabytes(sum(files.values()))} ({_listed(files)}), and "
            f"{gigabytes(free_disk)} are free on that disk; choose an output folder on a larger one"
        )


def fixed_needs(
    base: CheckpointFiles, trained: Mapping[str, tuple[int, ...]], config: TrainingConfig, dtype: torch.dtype
) -> dict[str, int]:
    """What a training takes whatever its rows, in bytes; the arguments are those of `require_memory`."""
    frozen = {name: shape for name, shape in expected_shapes(read_config(base)).items() if name not in trained}
    packed = {name: shape for name, shape in frozen.items() if config.quantization == "nf4" and is_held_in_nf4(name)}
    unpacked = 2 * max(map(math.prod, packed.values()), default=0)  # for a product: gate and up together
    num_whole = _count(frozen) - _count(packed) + unpacked
    # In 8 bits a layer's weights are held twice, by their outputs and by their inputs, which is as much as once in 16 bits.
    left_behind = _ROUNDING_SHARE if config.quantization == "fp8" else 0.0
    return {
        "frozen weights": int(num_whole * dtype.itemsize * (1 + left_behind)) + math.ceil(_count(packed) * NF4_BYTES),
        "trained weights": _count(trained) * _FLOAT32_BYTES,
        "their gradients": _count(trained) * _FLOAT32_BYTES,
        f"what {config.optimizer} remembers": _num_memories(trained, config) * _FLOAT32_BYTES,
    }


def _num_memories(trained: Mapping[str, tuple[int, ...]], config: TrainingConfig) -> int:
    return sum(num_remembered(name, shape, config) * math.prod(shape) for name, shape in trained.items())


def _smaller(config: TrainingConfig) -> str:
    if not _is_full(config):
        return "" if config.quantization == "nf4" else "set quantization nf4, or "
    switches = [name for name in ("freeze_llm", "freeze_projector", "freeze_vision_tower") if not getattr(config, name)]
    return f"use tuner lora, leave a part as it is ({', '.join(switches)}), or "


def _is_full(config: TrainingConfig) -> bool:
    return config.tuner == "full"


def _count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {gigabytes(num_bytes)}" for name, num_bytes in parts.items())
