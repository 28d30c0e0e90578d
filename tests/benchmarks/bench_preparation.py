"""Images a second that threads and processes make ready for a model, from JPEG files of two megapixels; no model runs.

python tests/benchmarks/bench_preparation.py --workers 1 4 8 16
"""

import argparse
import json
import os
import tempfile
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from yivl_core.data.images import ImageReference, ImageStore
from yivl_core.processing.processor import Processor
from yivl_core.workers import worker_context

_worker: tuple[Processor, ImageStore]


def main() -> None:
    """Print a line of JSON for each kind and number of workers."""
    from shapes import random_processor, write_photographs  # here, since processes import this file and need none of it

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="where the JPEG files are kept; default: a temporary folder")
    arguments = parser.parse_args()
    start = random_processor(), ImageStore()
    context = worker_context("yivl_core.inference.preparation")
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(arguments.folder or Path(folder), arguments.images)
        for number in arguments.workers:
            print(_line("threads", number, ThreadPoolExecutor(number, initializer=_start, initargs=start), files), flush=True)
            print(_line("processes", number, ProcessPoolExecutor(number, context, _start, start), files), flush=True)


def _line(kind: str, number: int, pool: Executor, files: list[Path]) -> str:
    with pool:
        while len(set(pool.map(_name, range(4 * number)))) < number:
            pass  # some have not started yet
        started = time.perf_counter()
        for _ in pool.map(_make_ready, files):
            pass
        return json.dumps({kind: number, "images/s": len(files) / (time.perf_counter() - started)})


def _start(processor: Processor, store: ImageStore) -> None:
    global _worker
    _worker = processor, store


def _name(_: int) -> tuple[int, int]:
    time.sleep(0.05)
    return os.getpid(), threading.get_ident()


def _make_ready(path: Path) -> bytes:
    processor, store = _worker
    image = store.load(ImageReference(uri=path.name, address=path.name, root=path.parent)).image
    return processor.preprocessor.to_squares([image]).rows.numpy().tobytes()


if __name__ == "__main__":
    main()
