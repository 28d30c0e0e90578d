"""How much of a device's memory may be used, counted as a user sees it in `nvidia-smi`. GB are 10^9 bytes."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from yivl_core.errors import ConfigurationError

# The CUDA context with the libraries' kernels and workspaces, on an H100 with CUDA 13.
CONTEXT_BYTES = 850_000_000
# Of the free memory, what is left to others and to the allocator's rounding.
SHARE_OF_FREE = 0.95


def memory_budget(device: torch.device, gpu_memory_gb: float | None, taken: int = 0) -> int:
    """Bytes that may be used of a device.

    Args:
        device: a GPU or the CPU.
        gpu_memory_gb: most memory of a GPU to use, in GB; None: what is free.
        taken: bytes that this process has taken already and that count.

    Raises:
        ConfigurationError: so much is not free.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available * SHARE_OF_FREE) + taken
    free, _ = torch.cuda.mem_get_info(device)
    # The context of this process is taken already, and counts as ours.
    usable = int(free * SHARE_OF_FREE) + CONTEXT_BYTES + taken
    if gpu_memory_gb is None:
        return usable
    if gpu_memory_gb * 1e9 > usable:
        raise ConfigurationError(
            f"gpu_memory {gpu_memory_gb:g}: {device} has {gigabytes(usable)} free, in GB of 10^9 bytes; give less, or leave it "
            "out to use what is free"
        )
    return int(gpu_memory_gb * 1e9)


@contextmanager
def limited_memory(device: torch.device, gpu_memory_gb: float | None) -> Iterator[None]:
    """Within it torch takes no more of a GPU than is left of a limit beside the context; the limit is that of the process."""
    if gpu_memory_gb is None:
        yield
        return
    number = torch.cuda.current_device() if device.index is None else device.index
    _, total = torch.cuda.mem_get_info(number)
    torch.cuda.set_per_process_memory_fraction((gpu_memory_gb * 1e9 - CONTEXT_BYTES) / total, number)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)


def require_gpu(device: torch.device, gpu_memory_gb: float | None) -> None:
    """Nothing, if a limit of GPU memory means something for a device.

    Raises:
        ConfigurationError: it does not.
    """
    if gpu_memory_gb is not None and device.type != "cuda":
        raise ConfigurationError(f"gpu_memory {gpu_memory_gb:g} is for GPUs, and the device is {device}; leave it out")


def can_multiply_in_float8(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device has 8-bit products beside a dtype."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9) and dtype == torch.bfloat16


def gigabytes(num_bytes: int) -> str:
    """Bytes as a person reads them."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
