"""What a run over a folder of many small images takes besides the model, which is replaced by one that answers at once.

    python tests/benchmarks/bench_folder.py --num-images 100000
    python tests/benchmarks/bench_folder.py --num-images 600 --shard-size 200 --shard-seconds 20
    python tests/benchmarks/bench_folder.py --num-images 1000000 --plan-only

Beside it, the loop that a user would write: the files in order, Pillow, the model's square, parquet files of as many rows. It
digests no file, keeps no record of what was planned, and makes no prompts. Each in a process of its own, a tenth of the images
before all of them: their peaks of memory show what grows with the input. With `--plan-only` the files hold some hundred bytes,
many of the same size, and are listed and planned: nothing is decoded.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MODEL = Path(__file__).resolve().parents[2] / "data" / "nano"
PROMPT = "Read the text in the image."
NUM_FOLDERS = 100
SIZE_PX = (160, 48)
Figures = dict[str, Any]


def main() -> None:
    """Print a line of JSON for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=100_000)
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument(
        "--shard-seconds", type=float, default=0.0, help="how long the model takes for a shard; no loop is measured"
    )
    parser.add_argument("--plan-only", action="store_true", help="list and plan files that are no images; nothing is answered")
    parser.add_argument("--folder", type=Path, help="where the images are kept; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="yivl-bench-") as temporary:
        folder = arguments.folder or Path(temporary) / "images"
        _write_images(folder, arguments.num_images, are_small=arguments.plan_only)
        output = Path(temporary) / "output"
        if arguments.plan_only:
            for name, images in (("tenth", f"{folder}/0*/*.jpg"), ("all", str(folder))):
                _print("plan_shards", _measured(_plan, images, output / name))
            return
        if arguments.shard_seconds:
            paced = partial(_infer, shard_size=arguments.shard_size, shard_s=arguments.shard_seconds)
            _print("infer_shards", _measured(paced, str(folder), output))
            return
        for name, start in (("tenth", "0"), ("all", "")):
            images = f"{folder}/{start}*/*.jpg" if start else str(folder)
            found = _measured(partial(_infer, shard_size=arguments.shard_size), images, output / name)
            _print("infer_shards", found)
            plain = _measured(partial(_plain_loop, shard_size=arguments.shard_size), folder, output / f"plain-{name}", start)
            _print("plain loop", plain | {"ratio": found["images/s"] / plain["images/s"]})


def _print(what: str, figures: Figures) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


def _write_images(folder: Path, count: int, *, are_small: bool) -> None:
    """Different JPEG files of about 3 kB, the same in every run, in folders named 00 to 99."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_write_subfolder, folder, count, are_small), range(NUM_FOLDERS)))


def _write_subfolder(folder: Path, count: int, are_small: bool, number: int) -> None:
    (folder / f"{number:02}").mkdir(parents=True, exist_ok=True)
    for place in range(number, count, NUM_FOLDERS):
        path = folder / f"{number:02}" / f"line-{place:07}.jpg"
        if are_small:
            path.write_bytes(place.to_bytes(8) * (20 + place % 50))
        elif not path.exists():
            random = np.random.default_rng(place)
            strokes = random.integers(0, 256, (12, 40), dtype=np.uint8)
            Image.fromarray(strokes).resize(SIZE_PX, Image.Resampling.BICUBIC).convert("RGB").save(path, quality=80)


def _measured(run: Callable[..., Figures], *arguments: Any) -> Figures:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def _memory_mb(key: str) -> float:
    """`VmRSS`, what this process holds, or `VmHWM`, the most that it has held."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024 / 1e6


def _plain_loop(folder: Path, output: Path, start: str, *, shard_size: int) -> Figures:
    from yivl_core.processing.processor import Processor

    preprocessor = Processor.from_checkpoint(MODEL).preprocessor
    size = (preprocessor.image_size_px, preprocessor.image_size_px)
    output.mkdir(parents=True)
    held_mb, started = _memory_mb("VmRSS"), time.perf_counter()
    paths = sorted(f"{root}/{name}" for root, _, names in os.walk(folder) if Path(root).name.startswith(start) for name in names)
    for first in range(0, len(paths), shard_size):
        rows = []
        for path in paths[first : first + shard_size]:
            with Image.open(path) as image:
                picture = image.convert("RGB")
            side = max(picture.size)
            square = Image.new("RGB", (side, side), preprocessor.padding)
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            np.asarray(square.resize(size, Image.Resampling.BICUBIC))
            rows.append({"path": path, "prompt": PROMPT, "response": "text", "width": picture.width, "height": picture.height})
        pq.write_table(pa.Table.from_pylist(rows), output / f"{first}.parquet", compression="zstd")
    seconds = time.perf_counter() - started
    return {"images": len(paths), "images/s": len(paths) / seconds, "MB above start": _memory_mb("VmHWM") - held_mb}


def _plan(images: str, output: Path) -> Figures:
    from yivl_core.data.images import ImageStore
    from yivl_core.data.inputs import InputSource, open_input
    from yivl_core.outputs.shards import plan_shards

    held_mb, started = _memory_mb("VmRSS"), time.perf_counter()
    source = open_input(InputSource(images=images, prompt=PROMPT))
    plan = plan_shards(str(output), source=source, store=ImageStore(), shard_size=1000, fingerprint={"data": {}})
    seconds = time.perf_counter() - started
    stored = sum(path.stat().st_size for path in output.iterdir())
    return {"files": plan.num_records, "seconds": seconds, "files/s": plan.num_records / seconds,
            "MB above start": _memory_mb("VmHWM") - held_mb, "MB stored": stored / 1e6}  # fmt: skip


def _infer(images: str, output: Path, *, shard_size: int, shard_s: float = 0.0) -> Figures:
    import yivl_core.inference.batch as batch
    from yivl_core.inference.configuration import InferenceConfig

    seconds: dict[str, float] = {}
    config = InferenceConfig(
        model=str(MODEL), images=images, prompt=PROMPT, output=str(output), shard_size=shard_size, device="cpu", dtype="float32"
    )
    with (
        patch.object(batch, "plan_engine", lambda *_: None),
        patch.object(batch, "load_engine", lambda *_, **__: (_Engine(shard_size, shard_s), "none")),
        patch.object(batch, "plan_shards", _timed(batch.plan_shards, "plan_s", seconds)),
        patch.object(batch._Worker, "run", _timed(batch._Worker.run, "run_s", seconds)),
        patch.object(batch, "publish_shard", _timed(batch.publish_shard, "publish_s", seconds)),
        patch.object(batch, "summarise", _timed(batch.summarise, "count_s", seconds)),
    ):
        held_mb, started = _memory_mb("VmRSS"), time.perf_counter()
        summary = batch.infer_shards(config)
        seconds["all_s"] = time.perf_counter() - started
        peak_mb = _memory_mb("VmHWM")
    assert not summary.num_failed
    parts = pq.read_table(output / "predictions", columns=["preprocess_s"])
    seconds["prepare_s"] = sum(parts["preprocess_s"].to_pylist())
    engine_s = summary.num_records / shard_size * shard_s
    return {
        "images": summary.num_records,
        "images/s": summary.num_records / seconds["all_s"],
        "MB above start": peak_mb - held_mb,
        **seconds,
        # Rows are made ready beside the model: the longer of the two is theirs, the rest is what all else takes.
        "beside_s a shard": (seconds["run_s"] - max(engine_s, seconds["prepare_s"])) / summary.num_shards,
        "with plan and count": (seconds["all_s"] - max(engine_s, seconds["prepare_s"])) / summary.num_shards,
        "content_digest": summary.content_digest,
    }


def _timed(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

    return timed


class _Engine:
    """Answers each request when it gets it, and waits so long that a full shard takes its time."""

    def __init__(self, shard_size: int, shard_s: float) -> None:
        self._request_s = shard_s / shard_size

    def generate(self, requests: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The same answer to each request."""
        from yivl_core.inference.requests import Completion

        answer = Completion(text="text", finish_reason="stop", token_ids=(5, 6, 2))
        for number, _ in enumerate(requests):
            if self._request_s:  # a pause of 0 s hands the interpreter over, too
                time.sleep(self._request_s)
            yield number, answer


if __name__ == "__main__":
    main()
