"""How well the model reads rendered lines that it was not trained on, by question and length: what choices are made by.

python data/nano/recipe/rendered.py --model data/nano --fonts .fonts --output rendered
"""

import argparse
import json
from pathlib import Path

import numpy as np
from questions import READ_AS_PRINTED, READ_IN_CAPITALS
from receipts import answer
from recipe import NUM_VAL_LINES, VAL_SEED, run_script, validate
from render import require_fonts

QUESTIONS = {
    "as-printed": READ_AS_PRINTED,
    "capitals": READ_IN_CAPITALS,
    "other-words": "Please write down what you see in this picture",
    "no-question": "OCR",
}
BAND_CHARACTERS = 8


def measure(model: Path, fonts_folder: Path, output: Path, num_workers: int) -> dict[str, dict[str, np.ndarray]]:
    """Edits, reference characters, exact answers and lines, by question and band of lengths.

    Args:
        model: checkpoint folder.
        fonts_folder: what fonts.py has written.
        output: folder to work in; what is there is not made again.
        num_workers: processes that render.
    """
    lines = output / "lines"
    if not (lines / "train.jsonl").exists():
        run_script("render.py", fonts=fonts_folder, output=lines, num_lines=NUM_VAL_LINES, seed=VAL_SEED, num_workers=num_workers)
    records = [json.loads(line) for line in (lines / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    alone = [record for record in records if not record["history"]]
    results = {}
    for name, question in QUESTIONS.items():
        asked = [record | {"query": question, "cluster_id": _band(record["response"])} for record in alone]
        (lines / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked), encoding="utf-8")
        validate(lines / f"{name}.jsonl", output / f"{name}-validated")
        bands = answer(output, name, name, str(model), None)
        results[name] = bands | {"all": np.sum(list(bands.values()), axis=0)}
    return results


def _band(text: str) -> str:
    first = len(text) // BAND_CHARACTERS * BAND_CHARACTERS
    return f"{first:02} to {first + BAND_CHARACTERS - 1:02}"


def table(results: dict[str, dict[str, np.ndarray]]) -> str:
    """The figures as Markdown."""
    lines = ["| question | characters | lines | CER % | exact match % |", "|---|---|---|---|---|"]
    for name, bands in results.items():
        for band, (edits, characters, num_exact, num_lines) in bands.items():
            figures = f"{num_lines:.0f} | {100 * edits / characters:.2f} | {100 * num_exact / num_lines:.1f}"
            lines.append(f"| {QUESTIONS[name]} | {band} | {figures} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description="Measure the model on rendered lines.")
    parser.add_argument("--model", type=Path, default=Path("data/nano"), help="checkpoint folder (default: data/nano)")
    parser.add_argument("--fonts", type=Path, default=Path(".fonts"), help="what fonts.py has written (default: .fonts)")
    parser.add_argument("--output", type=Path, required=True, help="folder to work in")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that render (default: 2)")
    options = parser.parse_args(arguments)
    require_fonts(options.fonts)
    options.output.mkdir(parents=True, exist_ok=True)
    print(table(measure(options.model, options.fonts, options.output, options.num_workers)))


if __name__ == "__main__":
    main()
