"""What each way to train faster or in less memory changes in what the project's own model learns.

    python tests/benchmarks/bench_training_quality.py

`data/nano` is tuned on the receipt lines of the test data (YIVL_TEST_DATA) for 200 steps: by autograd through the model of
record, and by the fast path with each of its ways, with the same order and seeds; and the fast path with further seeds of order,
adapter and dropout, which say how far two equal runs lie apart. Losses are nats a token: of the last 20 steps, and of 1,536
lines that are not learned. `apart` is the largest difference between the curves of two runs, in means of 20 steps.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import torch
from bench_cpu import MODEL, lines_folder

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.training.configuration import TrainingConfig
from yivl_core.training.fused import FusedModel
from yivl_core.training.sft import train_adapter

QUESTION = "Read the text in the image in capitals."
WINDOW = 20
WAYS: dict[str, dict[str, Any]] = {
    "autograd, model of record": {},
    "fast path": {},
    "fast path, all computed again": {"recompute": "full"},
    "fast path, attention computed again": {"recompute": "selective"},
    "fast path, short rows": {"row_tokens": 2048},
    "fast path, processes": {"num_workers": 4},
    "fast path, 8 bits": {"quantization": "fp8"},
}


def main() -> None:
    """Print a line of JSON for each run, and one for what lies between them."""
    arguments = _parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"dataset": _lines(folder, "train"), "val_dataset": _lines(folder, "val")}
        num_train = sum(1 for _ in (Path(places["dataset"]) / "records.jsonl").open())
        common = {
            "model": str(MODEL), **places, "batch_size": arguments.batch_size, "learning_rate": 2e-3, "keep": "last",
            "num_epochs": arguments.steps * arguments.batch_size / num_train, "eval_steps": arguments.steps, "num_workers": 0,
            "device": arguments.device,
        }  # fmt: skip
        curves: dict[str, list[float]] = {}
        for way, settings in WAYS.items():
            if "quantization" not in settings or torch.cuda.is_available():
                curves[way] = _train(way, TrainingConfig(**common | settings, output=str(folder / way), seed=0))
        seeds = [curves["fast path"]]
        for seed in range(1, arguments.seeds):
            way = f"fast path, seed {seed}"
            seeds.append(_train(way, TrainingConfig(**common, output=str(folder / way), seed=seed)))
    spread = max(_apart(one, other) for one, other in combinations(seeds, 2))
    plain = curves["autograd, model of record"]
    print(
        json.dumps({"apart by seed": spread, "apart": {way: _apart(curve, plain) for way, curve in curves.items()}}), flush=True
    )


def _lines(folder: Path, part: str) -> str:
    """The validated dataset of a part of the lines."""
    images = folder / "images" / part
    images.mkdir(parents=True)
    rows = []
    for path in sorted(lines_folder().glob(f"{part}-*.parquet")):
        for row in pq.read_table(path, columns=["image", "file_name", "text"]).to_pylist():
            (images / row["file_name"]).write_bytes(row["image"])
            rows.append({"query": QUESTION, "response": row["text"], "images": [f"images/{part}/{row['file_name']}"]})
    (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = folder / f"{part}-validated"
    return validate_dataset(ValidationConfig(dataset=(str(folder / f"{part}.jsonl"),), output=str(output))).output


def _train(way: str, config: TrainingConfig) -> list[float]:
    by_autograd = mock.patch.object(FusedModel, "fits", return_value=False) if way.startswith("autograd") else nullcontext()
    with by_autograd:
        summary = train_adapter(config)
    lines = list(map(json.loads, (Path(config.output) / "metrics.jsonl").read_text().splitlines()))
    curve = [line["loss"] for line in lines if "loss" in line]
    figures = {"way": way, "steps": len(curve), "loss": sum(curve[-WINDOW:]) / WINDOW, "val_loss": summary.val_loss}
    print(json.dumps(figures | {"val_token_accuracy": summary.val_token_accuracy}), flush=True)
    return curve


def _apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(_means(one), _means(other), strict=True))


def _means(curve: list[float]) -> Iterator[float]:
    return (sum(curve[start : start + WINDOW]) / WINDOW for start in range(0, len(curve) - WINDOW + 1, WINDOW))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
