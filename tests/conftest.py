"""What tests in several folders need."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# One thread for each process, set before torch is loaded: tests run beside each other and beside child processes, their tensors
# are tiny, and sums come out in the same order in every process.
os.environ["OMP_NUM_THREADS"] = "1"

# Ctrl-C is heard, here and in child processes, also where a shell runs the tests in the background and has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long one example takes says nothing on a busy machine; in CI the examples are the same each time.
settings.register_profile("yivl", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("yivl")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _hidden_gpu() -> Iterator[pytest.MonkeyPatch]:
    """Tests mean the CPU, also on a machine with a GPU, and so do the fixtures that they share."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _hide_gpu(monkeypatch)
        yield monkeypatch


@pytest.fixture(autouse=True)
def _gpu_for_those_marked(request: pytest.FixtureRequest, _hidden_gpu: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests that are marked `gpu` see it."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    _hidden_gpu.undo()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("torch.cuda._cached_device_count", None, raising=False)  # it may have been counted while hidden
        yield
    _hide_gpu(_hidden_gpu)


def _hide_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for child processes
    if "torch" in sys.modules:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Images are kept, and remembered, in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("YIVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with test data that is not part of the project (`YIVL_TEST_DATA`, default `../shared`)."""
    path = (REPOSITORY / os.environ.get("YIVL_TEST_DATA", "../shared")).resolve()
    if not (path / "data").is_dir():
        pytest.skip(f"no test data at {path}; set YIVL_TEST_DATA to the folder that holds fixtures/ and data/")
    return path


@pytest.fixture(scope="session")
def reference(shared_data: Path) -> Path:
    """The folder with the tiny checkpoints and the original code's outputs on them."""
    return shared_data / "fixtures" / "yivl_reference"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of 0.3 million parameters in the published layout; not to be written to."""
    from yivl_core.model.random_checkpoint import write_random_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_random_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def nano() -> Path:
    """The checkpoint of the repository that reads lines of text; not to be written to."""
    return REPOSITORY / "data" / "nano"
