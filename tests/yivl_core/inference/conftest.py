"""What tests of engines share: one thread, and the reference's tiny model."""

from pathlib import Path

import pytest
import torch

from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import Processor


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(reference: Path) -> YiVLForConditionalGeneration:
    """The model of record; not to be emptied."""
    return load_model(reference / "checkpoint")


@pytest.fixture(scope="module")
def processor(reference: Path) -> Processor:
    return Processor.from_checkpoint(reference / "checkpoint")
