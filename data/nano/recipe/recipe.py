"""From nothing to the weights of yi-vl-nano: renders lines of text, and trains every weight on them.

    python data/nano/recipe/recipe.py --fonts .fonts --output nano-run

Fonts and words come from `fonts.py`, which needs a Debian system with its package lists; the rest needs no network. The result is
the checkpoint folder OUTPUT/run/model. A run that was stopped goes on where it stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from render import require_fonts

from yivl_core.data.dataset import is_validated_dataset

NUM_LINES, NUM_VAL_LINES = 760_000, 2_000
SEED, VAL_SEED = 1, 2
BATCH_SIZE = 512
TRAINING: dict[str, Any] = {
    "tuner": "full",
    "optimizer": "muon",
    "learning_rate": 5e-3,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "lr_schedule": "cosine",
    "warmup_ratio": 0.04,
    "batch_size": BATCH_SIZE,
    "num_epochs": 4.1,
    "cache_samples": True,
    "row_tokens": 400 * BATCH_SIZE,  # a step is one row
    "augmentation": 0.5,
    "eval_steps": 1000,
    "log_steps": 50,
    "keep": "last",
    "compile": True,
    "max_shard_bytes": 14_900_000,  # of tensors; their names come on top
}


def make_model(fonts_folder: Path, output: Path, num_workers: int) -> None:
    """Render, validate and train; what is there already is not made again."""
    with ThreadPoolExecutor() as beside:
        # Rendering gives way to what is done beside it, since all of that is wanted before the lines are.
        lines = beside.submit(make_dataset, fonts_folder, output, "lines", NUM_LINES, SEED, num_workers, niceness=10)
        small = [
            beside.submit(make_dataset, fonts_folder, output, "val", NUM_VAL_LINES, VAL_SEED, num_workers=1),
            beside.submit(make_start, output / "start"),
        ]
        for task in small:
            task.result()
        # While lines are rendered, torch's compiler does what the training would wait for, and finds it in its cache then.
        if not (output / "run").exists():
            train(output, "val", "warm-up", num_epochs=2 * TRAINING["batch_size"] / NUM_VAL_LINES, num_workers=1)
        lines.result()
    train(output, "lines", "run", num_workers=max(1, num_workers - 1))


def train(output: Path, name: str, run_name: str, **settings: Any) -> None:
    """Train the start checkpoint on the validated lines of a name."""
    places = {"model": "start", "dataset": f"{name}-validated", "val_dataset": "val-validated", "output": run_name}
    settings |= {setting: str(output / place) for setting, place in places.items()}
    run("train", output / f"{run_name}.json", **TRAINING | settings, resume=True)


def make_dataset(
    fonts_folder: Path, output: Path, name: str, num_lines: int, seed: int, num_workers: int, niceness: int = 0
) -> None:
    """The lines of a seed, rendered and validated."""
    records = output / name / "train.jsonl"
    if not records.exists():
        options = {"fonts": fonts_folder, "output": output / name, "num_lines": num_lines, "seed": seed}
        run_script("render.py", niceness, **options, num_workers=num_workers)
    validate(records, output / f"{name}-validated", num_workers)


def make_start(folder: Path) -> None:
    """The checkpoint that the training starts from."""
    if not folder.exists():
        run_script("start.py", output=folder, seed=SEED)


def validate(records: Path, folder: Path, num_workers: int | None = None) -> None:
    """The validated dataset of a jsonl file, unless it is there."""
    if not is_validated_dataset(str(folder)):
        run("validate", folder.with_suffix(".json"), dataset=[str(records)], output=str(folder), num_workers=num_workers)


def run_script(name: str, niceness: int = 0, **options: Any) -> None:
    """A script of this folder in a process of its own, whose workers then load no more than it needs."""
    arguments = [part for option, value in options.items() for part in (f"--{option.replace('_', '-')}", str(value))]
    command = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    subprocess.run(["nice", "-n", str(niceness), *command], check=True)


def run(command: str, settings_path: Path, **settings: Any) -> None:
    """One of yivl's commands in a process of its own, without Prefect; its progress goes to stderr."""
    settings_path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "yivl_core", command, str(settings_path)], check=True, stdout=sys.stderr)
    print(f"{command} took {time.perf_counter() - started:.0f} s", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(description="Make the model from nothing.")
    parser.add_argument("--fonts", type=Path, default=Path(".fonts"), help="what fonts.py has written (default: .fonts)")
    parser.add_argument("--output", type=Path, required=True, help="folder to work in")
    parser.add_argument("--num-workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    require_fonts(options.fonts)
    options.output.mkdir(parents=True, exist_ok=True)
    make_model(options.fonts, options.output, options.num_workers)


if __name__ == "__main__":
    main()
