"""The original code's outputs, and the published configurations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model

NUM_IMAGE_TOKENS = 36


@pytest.fixture(scope="session")
def golden(reference: Path) -> dict[str, torch.Tensor]:
    return load_file(reference / "golden.safetensors")


@pytest.fixture(scope="session", params=["checkpoint", "checkpoint_bin"])
def reference_model(request: pytest.FixtureRequest, reference: Path) -> YiVLForConditionalGeneration:
    return load_model(reference / request.param)


def expand(values: list[int], input_ids: list[int]) -> list[int]:
    """The original widens each image (-200) inside the model; our ids hold all its tokens from the start."""
    pairs = zip(values, input_ids, strict=True)
    return [value for value, token in pairs for _ in range(NUM_IMAGE_TOKENS if token == -200 else 1)]


def case_inputs(case: dict[str, Any], golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Tensors of a golden case, with the pixels that the original saw."""
    images = [golden[f"pixel_values.{name}"] for name in case["images"]]
    return {
        "input_ids": torch.tensor([expand(case["input_ids"], case["input_ids"])]),
        "labels": torch.tensor([expand(case["labels"], case["input_ids"])]),
        "pixel_values": torch.stack(images) if images else None,
    }
