"""What is told of GPUs and image libraries, with libraries of NVIDIA and torch that this machine may lack."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import features

from yivl_core.outputs import machine
from yivl_core.outputs.machine import describe_gpus, image_libraries

NOTHING = {"gpu": None, "num_gpus": None, "cuda": None, "driver": None}


@pytest.fixture(autouse=True)
def driver_is_not_remembered() -> Iterator[None]:
    machine._driver_version.cache_clear()
    yield
    machine._driver_version.cache_clear()


def torch_with(**cuda: Any) -> SimpleNamespace:
    usual = {"is_available": lambda: True, "get_device_name": lambda: "NVIDIA H200", "device_count": lambda: 2}
    return SimpleNamespace(cuda=SimpleNamespace(**usual | cuda), version=SimpleNamespace(cuda="13.0"))


def nvml_with(init: int = 0, version: int = 0) -> Callable[[str], SimpleNamespace]:
    """The library with the codes that its functions return, 0 for success."""

    def tell(buffer: Any, size: int) -> int:
        assert size == len(buffer) >= 80, "as nvml.h asks for"
        if not version:
            buffer.value = b"580.159.04"
        return version

    library = SimpleNamespace(nvmlInit_v2=lambda: init, nvmlSystemGetDriverVersion=tell, nvmlShutdown=lambda: 0)
    return lambda name: {"libnvidia-ml.so.1": library}[name]


def no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_gpus_are_named_with_their_number_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with())
    monkeypatch.setattr(ctypes, "CDLL", nvml_with())
    assert describe_gpus() == {"gpu": "NVIDIA H200", "num_gpus": 2, "cuda": "13.0", "driver": "580.159.04"}


@pytest.mark.parametrize(
    "load", [no_library, nvml_with(init=12), nvml_with(version=999), lambda _: object()], ids=["absent", "init", "version", "old"]
)
def test_a_driver_that_tells_nothing_is_null(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with())
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert describe_gpus() == {"gpu": "NVIDIA H200", "num_gpus": 2, "cuda": "13.0", "driver": None}


def fail() -> str:
    raise RuntimeError("CUDA error: unknown error")


@pytest.mark.parametrize("cuda", [{"is_available": lambda: False}, {"get_device_name": fail}], ids=["none", "broken"])
def test_without_a_gpu_that_works_all_is_null(cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with(**cuda))
    assert describe_gpus() == NOTHING


def test_torch_is_not_loaded_for_it() -> None:
    script = "import json, sys; from yivl_core.outputs.machine import describe_gpus; print(json.dumps(describe_gpus()))"
    done = subprocess.run([sys.executable, "-c", script + "; assert 'torch' not in sys.modules"], capture_output=True, check=True)
    assert json.loads(done.stdout) == NOTHING


def test_libraries_of_every_common_format_are_told() -> None:
    libraries = image_libraries()
    assert {"libjpeg_turbo", "zlib", "webp", "libtiff"} <= libraries.keys()
    assert libraries["zlib"] == features.version_codec("zlib")
    assert libraries["webp"] == features.version_module("webp")
