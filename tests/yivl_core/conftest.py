"""Small validated datasets with real image files, for training, export and inference."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.training.configuration import TrainingConfig, TrainingSummary

if TYPE_CHECKING:
    from yivl_core.model.configuration import YiVLConfig
    from yivl_core.model.spreading import Places

MakeDataset = Callable[..., Path]
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@pytest.fixture(scope="session")
def golden_cases(reference: Path) -> dict[str, Any]:
    """What the original code made of prompts, texts and whole cases: `cases.json` of the reference."""
    cases: dict[str, Any] = json.loads((reference / "cases.json").read_text(encoding="utf-8"))
    return cases


def draw(path: Path, seed: int) -> str:
    """Writes a small picture; pictures of different seeds differ. Returns its name."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed % 5, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> MakeDataset:
    """Writes and validates a dataset; of four records two have one image, one has two, and one has none.

    `responses` are in place of the usual ones, by the number of the record.
    """

    def make(num_records: int = 12, *, responses: Mapping[int, str | None] = MappingProxyType({}), **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("dataset")
        lines = []
        for number in range(num_records):
            num_images = (1, 1, 2, 0)[number % 4]
            images = [draw(folder / f"{number}-{place}.png", 10 * number + place) for place in range(num_images)]
            query = "<image>" * num_images + f"What is it? ({number})"
            history = [["Hello.", "Good morning."]] if number % 3 == 0 else []
            response = responses.get(number, f"It is number {number} ({WORDS[number % 8]}).")
            row = {"query": query, "response": response, "images": images, "history": history}
            lines.append(json.dumps(row) + "\n")
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        validated = folder / "validated"
        config = ValidationConfig(dataset=(str(folder / "rows.jsonl"),), output=str(validated), **settings)
        summary = validate_dataset(config)
        assert summary.num_records == num_records, summary
        return validated

    return make


@pytest.fixture(scope="session")
def trained(tiny_checkpoint: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSummary:
    """A run that has tuned decoder, projector and tower so that answers change; not to be written to."""
    import torch

    from yivl_core.training.sft import train_adapter

    torch.set_num_threads(1)
    config = TrainingConfig(
        model=str(tiny_checkpoint), dataset=str(dataset), output=str(tmp_path_factory.mktemp("trained") / "run"), batch_size=4,
        num_epochs=3, learning_rate=0.01, val_fraction=0.4, target_modules="all",
    )  # fmt: skip
    return train_adapter(config)


@pytest.fixture(scope="session")
def tight_places() -> "Callable[[YiVLConfig], Places]":
    """Places for a model in float32 on a GPU that has room for half of its layers, and in CPU memory."""
    import torch

    from yivl_core.model.spreading import find_places
    from yivl_core.model.weights import expected_shapes

    def find(config: "YiVLConfig") -> "Places":
        layer_bytes, head_bytes, rest_bytes = 0, 0, 0
        for name, shape in expected_shapes(config).items():
            size = 4 * torch.Size(shape).numel()
            layer_bytes += size if "language_model.layers." in name else 0
            head_bytes += size if name.startswith("lm_head.") else 0
            rest_bytes += size
        rest_bytes -= layer_bytes + head_bytes
        copied_bytes = max(head_bytes, layer_bytes // config.text_config.num_hidden_layers)
        gpu_bytes = [rest_bytes + copied_bytes + layer_bytes // 2]
        places = find_places(
            config, torch.float32, gpu_bytes=gpu_bytes, cpu_bytes=2 * layer_bytes + 2 * head_bytes, cache_bytes=0
        )
        assert places is not None
        assert {device for part, device in places.items() if ".layers." in part} == {torch.device("cuda", 0), None}
        return places

    return find


@pytest.fixture(scope="session")
def dataset(make_dataset: MakeDataset) -> Path:
    """Twelve records; not to be written to."""
    return make_dataset()
