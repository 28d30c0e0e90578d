"""What tests in several folders need."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Threads that wait for each other do not spin: tests run beside each other and beside child processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# How long one example takes says nothing on a busy machine.
settings.register_profile("yivl", deadline=None)
settings.load_profile("yivl")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _hidden_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests mean the CPU, also on a machine with a GPU, unless they are marked `gpu`."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for child processes
        if "torch" in sys.modules:
            monkeypatch.setattr("torch.cuda.is_available", lambda: False)


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
