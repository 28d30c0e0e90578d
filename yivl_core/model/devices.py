"""Which device and dtype `auto` means, and whether what was asked for can work here."""

import torch

from yivl_core.errors import ConfigurationError


def resolve_device(device: str) -> torch.device:
    """The device to work on.

    Raises:
        ConfigurationError: no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device {device!r} is unknown; give auto, cpu, cuda or cuda:N") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {device!r} is not supported; give auto, cpu, cuda or cuda:N")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device {device!r}: this machine has {torch.cuda.device_count()} GPU(s) that torch can use; give auto or cpu"
        )
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and arithmetic: by default float32 on CPU, bfloat16 on a GPU that has it, else float16.

    Raises:
        ConfigurationError: float16 on the CPU, which lacks most of its arithmetic.
    """
    if dtype != "auto":
        if dtype == "float16" and device.type == "cpu":
            raise ConfigurationError("dtype float16 does not work on the CPU; give float32 or bfloat16")
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
