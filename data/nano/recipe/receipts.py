"""How well the model reads lines of real receipts, before and after tuning on such lines: the figures of the model card.

    YIVL_TEST_DATA=../shared python data/nano/recipe/receipts.py --model data/nano --output receipts --on val

Needs the lines (`$YIVL_TEST_DATA/data/sroie_lines`), which are no part of this repository. `--on val` reads the 1,536 lines of 60
receipts, which are for the final figures alone; `--on dev` trains on fewer receipts and reads the others, for choosing settings.
"""

import argparse
import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from questions import READ_AS_PRINTED, READ_IN_CAPITALS
from recipe import run, validate

from yivl_core.evaluation.metrics.edits import score_answer
from yivl_core.evaluation.texts.normalisation import normalise
from yivl_core.outputs.predictions import read_predictions

NUM_DEV_RECEIPTS = 50
NUM_DRAWS = 4_000
BARE, BARE_IN_CAPITALS = "zero-shot", "zero-shot-in-capitals"
COMMON: dict[str, Any] = {
    "batch_size": 128,
    "row_tokens": 32_000,
    "max_grad_norm": 1.0,
    "weight_decay": 0.01,
    "keep": "last",
    "val_fraction": 0,
    "cache_samples": True,
}
TUNINGS: dict[str, dict[str, Any]] = {
    "default": {"learning_rate": 2e-3, "num_epochs": 10, "augmentation": 0.5},
    "all": {"target_modules": "all", "lora_rank": 16, "learning_rate": 1e-3, "num_epochs": 10, "augmentation": 0.5},
    "full": {"tuner": "full", "learning_rate": 3e-4, "num_epochs": 10, "augmentation": 0.5},
}


def measure(model: Path, output: Path, part: str, tunings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The figures of the bare model, asked in two ways, and of each tuning, by name.

    Args:
        model: checkpoint folder.
        output: folder to work in, for this part alone; what is there is not made again.
        part: `val` or `dev`.
        tunings: names in `TUNINGS`.
    """
    write_lines(Path(os.environ["YIVL_TEST_DATA"]) / "data" / "sroie_lines", output, part)
    for name in ("train", part, BARE):
        validate(output / f"{name}.jsonl", output / f"{name}-validated")
    answers = {name: answer(output, lines, name, str(model), None) for name, lines in ((BARE, BARE), (BARE_IN_CAPITALS, part))}
    for name in tunings:
        folder = output / f"run-{name}"
        places = {"model": str(model), "dataset": str(output / "train-validated"), "output": str(folder)}
        run("train", output / f"train-{name}.json", **COMMON | TUNINGS[name] | places, resume=True)
        is_full = TUNINGS[name].get("tuner") == "full"
        tuned, adapter = (folder / "model", None) if is_full else (model, str(folder / "adapter"))
        answers[name] = answer(output, part, name, str(tuned), adapter)
    return {name: figures(rows, answers[BARE]) for name, rows in answers.items()}


def write_lines(source: Path, output: Path, part: str) -> None:
    """Unpack the lines into train.jsonl and, beside it, those that are read: by the tuned models, and by the bare one.

    The labels are in capitals, so that is what tuning asks for. The bare model is asked for the text as printed, which it reads
    with fewer errors (on rendered lines, case aside).
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "val") if part == "val" else ("train",):
        folder = output / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(source.glob(f"{split}-*.parquet"))
        if not paths:
            sys.exit(f"{source}: there is no {split}-*.parquet; set YIVL_TEST_DATA to the folder that holds data/sroie_lines")
        tables = [pq.read_table(path, columns=["image", "file_name", "text", "receipt_id"]) for path in paths]
        rows[split] = [row for table in tables for row in table.to_pylist()]
        for row in rows[split]:
            (folder / row["file_name"]).write_bytes(row["image"])
            row["address"] = f"images/{split}/{row['file_name']}"
    if part == "dev":
        receipts = sorted({row["receipt_id"] for row in rows["train"]})
        dev = set(random.Random(0).sample(receipts, NUM_DEV_RECEIPTS))
        rows["dev"] = [row for row in rows["train"] if row["receipt_id"] in dev]
        rows["train"] = [row for row in rows["train"] if row["receipt_id"] not in dev]
    rows[BARE] = rows[part]
    for name, lines in rows.items():
        question = READ_AS_PRINTED if name == BARE else READ_IN_CAPITALS
        records = [
            {"query": question, "response": row["text"], "images": [row["address"]], "cluster_id": row["receipt_id"]}
            for row in lines
        ]
        (output / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def answer(output: Path, lines: str, name: str, model: str, adapter: str | None) -> dict[str, np.ndarray]:
    """The lines answered: edits, reference characters, exact answers and lines of each cluster, such as a receipt."""
    folder = output / f"answers-{name}"
    settings = {"model": model, "adapter": adapter, "dataset": str(output / f"{lines}-validated"), "output": str(folder)}
    run("infer", output / f"infer-{name}.json", **settings, max_new_tokens=40, batch_size=128, resume=True)
    clusters: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    for row in read_predictions(str(folder)):
        score = score_answer(None if row.response is None else normalise(row.response), [normalise(row.reference)])
        clusters[row.cluster_id] += (score.edits, score.reference_characters, score.num_exact, 1)
    return dict(sorted(clusters.items()))


def figures(rows: dict[str, np.ndarray], bare: dict[str, np.ndarray]) -> dict[str, Any]:
    """CER, exact match and the change of CER against the bare model, in percent, with 95 % intervals over receipts."""
    ours, theirs = np.stack(list(rows.values())), np.stack(list(bare.values()))
    draws = np.random.default_rng(0).integers(0, len(ours), (NUM_DRAWS, len(ours)))
    samples = np.stack([ours[draws].sum(axis=1), theirs[draws].sum(axis=1)])  # [2, draws, 4]
    points = np.stack([ours.sum(axis=0), theirs.sum(axis=0)])[:, None]
    result = {}
    for name, of in {
        "cer": lambda sums: sums[0, :, 0] / sums[0, :, 1],
        "exact": lambda sums: sums[0, :, 2] / sums[0, :, 3],
        "change": lambda sums: sums[0, :, 0] / sums[0, :, 1] - sums[1, :, 0] / sums[1, :, 1],
    }.items():
        low, high = np.percentile(100 * of(samples), [2.5, 97.5])
        result[name] = {"value": 100 * float(of(points)[0]), "low": float(low), "high": float(high)}
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| tuned | settings | CER % | exact match % | change of CER |", "|---|---|---|---|---|"]
    for name, values in results.items():
        settings = ", ".join(f"{key} {value}" for key, value in TUNINGS.get(name, {}).items())
        cells = [
            f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
            for value in (values["cer"], values["exact"], values["change"])
        ]
        lines.append(f"| {name} | {settings} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description="Measure the model on lines of real receipts.")
    parser.add_argument("--model", type=Path, default=Path("data/nano"), help="checkpoint folder (default: data/nano)")
    parser.add_argument("--output", type=Path, required=True, help="folder to work in")
    parser.add_argument("--on", choices=("val", "dev"), default="val", help="which receipts are read (default: val)")
    parser.add_argument("--tunings", nargs="*", choices=TUNINGS, default=list(TUNINGS), help="which tunings (default: all)")
    options = parser.parse_args(arguments)
    if "YIVL_TEST_DATA" not in os.environ:
        sys.exit("set YIVL_TEST_DATA to the folder that holds data/sroie_lines")
    output = options.output / options.on
    output.mkdir(parents=True, exist_ok=True)
    results = measure(options.model, output, options.on, options.tunings)
    (output / "figures.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
