"""The machine that a run was on, as far as it can move a result: its GPUs, and the libraries that images are decoded with.

Nothing here loads torch, fails or waits: what cannot be found out is null.
"""

import ctypes
import sys
from functools import cache
from typing import Any

from PIL import features

_IMAGE_LIBRARIES = ("avif", "jpg_2000", "libjpeg_turbo", "libtiff", "littlecms2", "webp", "zlib", "zlib_ng")
_NVML = "libnvidia-ml.so.1"  # comes with the driver
_VERSION_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE of nvml.h


def describe_gpus() -> dict[str, Any]:
    """Name of the GPU in use, how many there are, versions of CUDA and driver; all null where torch sees none or is not there."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_available():
            return {
                "gpu": str(torch.cuda.get_device_name()),
                "num_gpus": int(torch.cuda.device_count()),
                "cuda": torch.version.cuda,
                "driver": _driver_version(),
            }
    except RuntimeError:  # a GPU that is there and cannot be used
        pass
    return {"gpu": None, "num_gpus": None, "cuda": None, "driver": None}


@cache
def image_libraries() -> dict[str, str | None]:
    """Versions of what Pillow decodes with: a JPEG gives other pixels by another one. Null: this Pillow is built without it."""
    return {name: features.version(name) for name in _IMAGE_LIBRARIES}


@cache
def _driver_version() -> str | None:
    """By NVIDIA's own library, as nvidia-smi finds it, in milliseconds."""
    buffer = ctypes.create_string_buffer(_VERSION_BYTES)
    try:
        nvml = ctypes.CDLL(_NVML)
        if nvml.nvmlInit_v2():
            return None
        has_failed = nvml.nvmlSystemGetDriverVersion(buffer, _VERSION_BYTES)
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return None if has_failed else buffer.value.decode(errors="replace")
