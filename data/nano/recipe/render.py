"""Renders training lines: pictures, and records with question and answer.

    python data/nano/recipe/render.py --fonts .fonts --output lines --num-lines 100000 --seed 1 --num-workers 8

Writes `images/PPPP/NNNNNNNN.jpg`, 1,000 to a folder, and `train.jsonl` in the order of the index. Line `i` depends on the seed
and on `i` only, so neither the number of workers nor the number of lines changes it. A few go on: one more question about the
same picture, or one about another (`NNNNNNNN-2.jpg`), so that the model can hold a conversation.
"""

import argparse
import json
import multiprocessing
import random
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from questions import choose_question
from rendering import LineRenderer, encode_jpeg
from texts import TextSampler

BLOCK_LINES = 1_000
MAX_ROUNDS = 4
SHARE_GOING_ON = 0.08  # after each round
SHARE_SAME_PICTURE = 0.5  # of later rounds
_SEED_STEP = 2**40  # lines of one seed never meet those of another


class Round(NamedTuple):
    """A question about a picture (a JPEG; None: that of the round before), and its answer."""

    jpeg: bytes | None
    question: str
    answer: str


class LineMaker:
    """Makes the line of an index, with what is asked about it.

    Args:
        fonts_folder: what fonts.py has written.
        seed: which lines, 0 or more.
    """

    def __init__(self, fonts_folder: Path, seed: int) -> None:
        self._sampler = TextSampler((fonts_folder / "words.txt").read_text(encoding="ascii").split())
        self._renderer = LineRenderer(fonts_folder)
        self._seed = seed

    def make(self, index: int) -> list[Round]:
        """A conversation, mostly of one round."""
        rng = random.Random(self._seed * _SEED_STEP + index)
        rounds: list[Round] = []
        text = ""
        while not rounds or (len(rounds) < MAX_ROUNDS and rng.random() < SHARE_GOING_ON):
            jpeg = None
            if not rounds or rng.random() >= SHARE_SAME_PICTURE:
                text = self._sampler.sample(rng)
                jpeg = encode_jpeg(self._renderer.render(text, rng), rng)
            rounds.append(Round(jpeg, *choose_question(text, rng)))
        return rounds


def render_lines(fonts_folder: Path, output: Path, num_lines: int, seed: int, num_workers: int) -> Path:
    """Write `num_lines` pictures and train.jsonl to `output`; return the path of train.jsonl.

    Args:
        fonts_folder: what fonts.py has written.
        output: a folder, made if absent.
        num_lines: how many lines, from index 0 on.
        seed: which lines, 0 or more.
        num_workers: processes; 1 renders in this one.
    """
    require_fonts(fonts_folder)
    (output / "images").mkdir(parents=True, exist_ok=True)
    blocks = range((num_lines + BLOCK_LINES - 1) // BLOCK_LINES)
    render = partial(render_block, output=output, num_lines=num_lines)
    start_worker(fonts_folder, seed)  # of several, too: a pool whose workers cannot start would start others for ever
    if num_workers == 1:
        report_blocks(map(render, blocks), num_lines)
    else:
        with multiprocessing.get_context("spawn").Pool(num_workers, start_worker, (fonts_folder, seed)) as pool:
            report_blocks(pool.imap_unordered(render, blocks), num_lines)
    return join_parts(output, len(blocks))


def require_fonts(fonts_folder: Path) -> None:
    """Nothing, if this is a folder that fonts.py has written; else the end of this script."""
    for name in ("words.txt", "fonts.json"):
        if not (fonts_folder / name).is_file():
            sys.exit(f"{fonts_folder}: {name} is missing; make the folder with `fonts.py --output {fonts_folder}`")


_makers: list[LineMaker] = []


def start_worker(fonts_folder: Path, seed: int) -> None:
    """Load fonts and words once for this process."""
    _makers[:] = [LineMaker(fonts_folder, seed)]


def render_block(block: int, output: Path, num_lines: int) -> int:
    """Write the pictures of a block and its part of train.jsonl; return its number of lines."""
    [maker] = _makers
    indices = range(block * BLOCK_LINES, min((block + 1) * BLOCK_LINES, num_lines))
    folder = output / "images" / f"{block:04}"
    folder.mkdir(exist_ok=True)
    records = []
    for index in indices:
        rounds = maker.make(index)
        images = []
        for number, jpeg in enumerate((jpeg for jpeg, _, _ in rounds), start=1):
            path = folder / (f"{index:08}.jpg" if number == 1 else f"{index:08}-{number}.jpg")
            images.append(None if jpeg is None else path.relative_to(output).as_posix())
            if jpeg is not None:
                path.write_bytes(jpeg)
        *history, (question, answer) = [(question, answer) for _, question, answer in rounds]
        records.append(json.dumps({"query": question, "response": answer, "history": history, "images": images}))
    part_path(output, block).write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
    return len(records)


def report_blocks(counts: Iterable[int], num_lines: int) -> None:
    """Wait for the blocks, telling on stderr how many lines are done."""
    done = 0
    for count in counts:
        done += count
        print(f"\r{done}/{num_lines} lines", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def part_path(output: Path, block: int) -> Path:
    """Where the records of a block wait to be joined."""
    return output / f"train.{block:04}.part"


def join_parts(output: Path, num_blocks: int) -> Path:
    """Write train.jsonl from the parts of all blocks, and delete them."""
    path = output / "train.jsonl"
    joined = output / "train.jsonl.part"
    parts = [part_path(output, block) for block in range(num_blocks)]
    with joined.open("w", encoding="utf-8") as file:
        for part in parts:
            file.write(part.read_text(encoding="utf-8"))
    joined.replace(path)  # in one step: who finds it takes it for whole
    for part in parts:
        part.unlink()
    return path


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and render."""
    parser = argparse.ArgumentParser(description="Render training lines.")
    parser.add_argument("--fonts", type=Path, default=Path(".fonts"), help="what fonts.py has written (default: .fonts)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--num-lines", type=int, required=True, help="number of lines")
    parser.add_argument("--seed", type=int, default=0, help="which lines (default: 0)")
    parser.add_argument("--num-workers", type=int, default=multiprocessing.cpu_count(), help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    for name, least in (("num_lines", 1), ("num_workers", 1), ("seed", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} has to be {least} or more")
    render_lines(options.fonts, options.output, options.num_lines, options.seed, options.num_workers)


if __name__ == "__main__":
    main()
