"""How fast `yivl validate` is, and how much memory it takes, beside `datasets.load_dataset("json")` and a check with Pillow.

    python tests/benchmarks/bench_validation.py
    python tests/benchmarks/bench_validation.py --case text --num-rows 10000000

Cases: `text`, rows without images, a tenth of them before all, so that memory shows whether it grows; `tokens`, the same with
their lengths counted; `header` and `full`, photographs of a megapixel (JPEG, 250 kB), all of them different.

Texts are drawn from 50,000 made-up words by Zipf's law, a fifth of the rows has Chinese instead; questions have 8 words, answers
25. Lengths are counted with the tiny tokenizer of YIVL_TEST_DATA, which cuts words into more pieces than the published one does.

The peer reads the same file, and opens and decodes each image with Pillow in as many processes. It looks for no duplicate and no
wrong record, and takes a bad line for the end of all. Each run has a process of its own; memory is that of all its processes
together, at its highest, looked at once a second, at the start more often.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
CASES = ("text", "tokens", "header", "full")
NUM_WORDS = 50_000
SIZE_PX = (1152, 868)
CHINESE = "发票金额图片街道窗户后面绿色日期商店数量桌子杯子照片显示一个小的收据总计号码"
Figures = dict[str, Any]


def main() -> None:
    """Print a line of JSON for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="default: all of them")
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--num-images", type=int, default=20_000, help="for `header`; half of them for `full`")
    arguments = parser.parse_args()
    cases = arguments.case or CASES
    with tempfile.TemporaryDirectory(prefix="yivl-bench-") as temporary:
        folder = Path(temporary)
        if {"text", "tokens"} & set(cases):
            tenth, rows = folder / "tenth.jsonl", folder / "rows.jsonl"
            _write_texts(tenth, arguments.num_rows // 10)
            _write_texts(rows, arguments.num_rows)
        if "text" in cases:
            for path in (tenth, rows):
                _print("validate text", partial(_validate, path, folder / "out"))
            _print("validate text, unchanged", partial(_validate, rows, folder / "out", was_there=True))
            _print_peer("load_dataset", partial(_load, rows, folder / "cache"))
        if "tokens" in cases:
            _print("validate text, tokens counted", partial(_validate, rows, folder / "out", model=str(_tokenizer())))
        if {"header", "full"} & set(cases):
            _write_images(folder / "header.jsonl", arguments.num_images)
            lines = (folder / "header.jsonl").read_text().splitlines(keepends=True)
            (folder / "full.jsonl").write_text("".join(lines[: max(1, len(lines) // 2)]))
            for depth in ("header", "full"):
                if depth in cases:
                    images = folder / f"{depth}.jsonl"
                    validated = partial(_validate, images, folder / "out", image_depth=depth)
                    _print(f"validate images, {depth}", validated)
                    _print(f"validate images, {depth}, unchanged", partial(validated, was_there=True))
                    more = folder / "more.jsonl"
                    more.write_text(images.read_text() + '{"query": "One more?", "response": "yes"}\n')
                    one_more = partial(_validate, more, folder / "out", image_depth=depth)
                    _print(f"validate images, {depth}, one line more", one_more)
                    peer = partial(_load, images, folder / "cache", depth=depth)
                    _print_peer(f"load_dataset and Pillow, {depth}", peer)


def _validate(dataset: Path, output: Path, *, was_there: bool = False, **settings: Any) -> int:
    from yivl_core.data.configuration import ValidationConfig
    from yivl_core.data.validation import validate_dataset

    cache = str(output.with_name("verdicts"))
    summary = validate_dataset(ValidationConfig(dataset=(str(dataset),), output=str(output), cache=cache, **settings))
    assert summary.num_records == summary.num_lines
    assert summary.was_there is was_there
    return summary.num_lines


def _load(dataset: Path, cache: Path, depth: str | None = None) -> int:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(dataset), cache_dir=str(cache), split="train")
    if depth is not None:
        look = partial(_look, root=str(dataset.parent), decodes=depth == "full")
        rows = rows.map(look, num_proc=len(os.sched_getaffinity(0)), load_from_cache_file=False)
        assert all(rows["width"])
    return len(rows)


def _look(row: dict[str, Any], root: str, *, decodes: bool) -> dict[str, Any]:
    with Image.open(f"{root}/{row['images'][0]}") as image:
        if decodes:
            image.load()
        return {"width": image.width}


def _print_peer(name: str, work: Callable[[], int]) -> None:
    if find_spec("datasets") is None:
        print(json.dumps({"name": name, "skipped": "pip install -c constraints.txt '.[bench]'"}), flush=True)
    else:
        _print(name, work)


def _print(name: str, work: Callable[[], int]) -> None:
    """Do the work in a process of its own, and print what it took."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_timed, args=(work, sender))
    process.start()
    sender.close()
    peak_bytes, wait_s = 0, 0.05
    while not receiver.poll(wait_s):
        peak_bytes = max(peak_bytes, _tree_bytes(process.pid or 0))
        wait_s = min(1.0, wait_s * 1.5)  # to look takes time from those that are looked at
    num_rows, seconds = receiver.recv()
    process.join()
    figures = {"name": name, "num_rows": num_rows, "rows_per_s": round(num_rows / seconds), "peak_MB": peak_bytes // 1_000_000}
    print(json.dumps(figures), flush=True)


def _timed(work: Callable[[], int], sender: Connection) -> None:
    start = time.perf_counter()
    num_rows = work()
    sender.send((num_rows, time.perf_counter() - start))


def _tree_bytes(pid: int) -> int:
    """Memory of a process and its children; what they share counts once, as far as Linux tells."""
    num_bytes = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            num_bytes += one.memory_full_info().pss
    except psutil.Error:  # one of them has just ended
        pass
    return num_bytes


def _write_texts(path: Path, num_rows: int) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlucmfwypvbg", k=draw.randint(2, 9))) for _ in range(NUM_WORDS)]
    weights = list(np.cumsum([1 / rank for rank in range(1, NUM_WORDS + 1)]))
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            if number % 5:
                question, answer = (" ".join(draw.choices(words, cum_weights=weights, k=count)) for count in (8, 25))
            else:
                question, answer = ("".join(draw.choices(CHINESE, k=count)) for count in (16, 50))
            row = {"query": f"{question} {number}?", "response": f"{answer}."}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_images(path: Path, num_images: int) -> None:
    """Smooth colours with some grain, as a camera gives them; each file differs from the others in its first bytes alone."""
    rng = np.random.default_rng(0)
    for number in range(min(num_images, 40)):
        small = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize(SIZE_PX, Image.Resampling.BICUBIC)) + rng.normal(0, 6, (SIZE_PX[1], SIZE_PX[0], 1))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path.parent / f"{number}.jpg", quality=85)
    originals = [(path.parent / f"{number}.jpg").read_bytes() for number in range(min(num_images, 40))]
    with path.open("w") as file:
        for number in range(num_images):
            data = originals[number % len(originals)]
            comment = b"\xff\xfe\x00\x0a" + f"{number:08d}".encode()
            (path.parent / f"{number}.jpg").write_bytes(data[:2] + comment + data[2:])
            file.write(json.dumps({"query": "What is it?", "response": f"{number}", "images": [f"{number}.jpg"]}) + "\n")
    os.sync()  # or the disk would be written to while it is measured


def _tokenizer() -> Path:
    folder = (REPOSITORY / os.environ.get("YIVL_TEST_DATA", "../shared")).resolve() / "fixtures/yivl_reference/checkpoint"
    return folder if folder.is_dir() else REPOSITORY / "data/nano"


if __name__ == "__main__":
    main()
