"""What tests of engines share: one thread, and the reference's tiny model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import ModelInputs, Processor


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


@pytest.fixture(scope="session")
def forced_logprobs() -> Callable[[YiVLForConditionalGeneration, Processor, ModelInputs, Sequence[int]], torch.Tensor]:
    """Log-probabilities of an answer by one forward pass of the model of record over prompt and answer."""

    @torch.no_grad()
    def compute(
        model: YiVLForConditionalGeneration, processor: Processor, inputs: ModelInputs, token_ids: Sequence[int]
    ) -> torch.Tensor:
        input_ids = torch.from_numpy(np.concatenate([inputs.input_ids, np.array(token_ids)])).unsqueeze(0)
        squares = inputs.pixels.squares()
        pixel_values = processor.preprocessor.normalise(squares) if len(squares) else None
        logits = model(input_ids=input_ids, pixel_values=pixel_values).logits[0, len(inputs.input_ids) - 1 : -1]
        return logits.log_softmax(dim=-1).gather(-1, torch.tensor(token_ids)[:, None]).squeeze(-1)

    return compute
