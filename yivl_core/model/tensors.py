"""Tensors in files, read one at a time: safetensors, and `.bin` files through `weights_only`, so that no pickle is executed."""

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from yivl_core.errors import CheckpointError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how the library tells the system's number


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read when it is asked for.

    Attributes:
        shape: its shape.
        dtype: its dtype in the file.
        load: reads it; the result may share memory with the file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @property
    def num_bytes(self) -> int:
        """Size in the file, in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def lazy(tensor: torch.Tensor) -> LazyTensor:
    """A tensor in memory in the form of one in a file."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def open_tensors(paths: tuple[Path, ...]) -> dict[str, LazyTensor]:
    """All tensors of some weight files by name.

    Raises:
        CheckpointError: a file is damaged, holds something else than tensors, or two files hold the same name.
    """
    tensors: dict[str, LazyTensor] = {}
    for path in paths:
        found = _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
        if twice := tensors.keys() & found.keys():
            raise CheckpointError(f"{path}: {sorted(twice)[0]} stands in another weight file too; remove left-over shards")
        tensors |= found
    return tensors


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one weight file in memory, by name.

    Raises:
        CheckpointError: as `open_tensors`.
    """
    return {name: tensor.load() for name, tensor in open_tensors((path,)).items()}


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file that whoever may read new files here may read.

    Raises:
        OSError: it cannot be written, because the disk is full for instance.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(mode)  # the library writes files that only their owner may read


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged weight file ({error}); fetch it again") from error

    def lazy_slice(name: str) -> LazyTensor:
        part = file.get_slice(name)
        if (dtype := _SAFETENSORS_DTYPES.get(part.get_dtype())) is None:
            raise CheckpointError(f"{path}: {name} is of type {part.get_dtype()}, which is not read; fetch or convert it again")
        return LazyTensor(tuple(part.get_shape()), dtype, lambda: file.get_tensor(name))

    return {name: lazy_slice(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)


def _open_bin(path: Path) -> dict[str, LazyTensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors of its own for damaged or unsafe files
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as plain tensors ({first_line}); fetch it again, nothing in it was executed"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds something else than a table of tensors; is it a training state?")
    return {name: lazy(tensor) for name, tensor in content.items()}


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
