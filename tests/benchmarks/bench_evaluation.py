"""How long a report of many short answers takes, on a CPU.

    python tests/benchmarks/bench_evaluation.py

The references are the receipt lines of the test data (YIVL_TEST_DATA), over and over, in clusters of twenty; a fifth of the
answers is damaged in one to three characters, by a seeded generator. Reports are made by `evaluate_predictions` in a process of
its own, whose start counts, with the metrics of reading, slices, intervals, samples, and all three files. jiwer gives CER and WER
of the same pairs, with neither intervals nor anything else.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from yivl_core.evaluation.configuration import EvaluationConfig
from yivl_core.outputs.predictions import Prediction, PredictionImage, write_part

PART_ROWS = 1000


def main() -> None:
    """Print a line of JSON for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--num-peer-rows", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old"), Path(folder, "new")
        for place, seed in ((old, 0), (new, 1)):
            _write(place, arguments.num_rows, seed)
        names = ["report", "report beside a baseline"]
        for name, baseline in zip(names, [None, str(old)], strict=True):
            config = EvaluationConfig(predictions=str(new), baseline=baseline, output=str(Path(folder, name)))
            _print(name, arguments.num_rows, _measure(_report, config))
        _print("jiwer, CER and WER", arguments.num_peer_rows, _measure(_peer, arguments.num_peer_rows))


def _print(name: str, num_rows: int, measured: tuple[float, int]) -> None:
    seconds, num_bytes = measured
    figures = {"rows": num_rows, "s": round(seconds, 1), "rows/s": round(num_rows / seconds), "MB": num_bytes // 10**6}
    print(json.dumps({"way": name} | figures), flush=True)


def _measure(work: Callable[[Any], None], argument: Any) -> tuple[float, int]:
    """Seconds, and the most memory of one process."""
    context = multiprocessing.get_context("spawn")
    results, ours = context.Pipe(duplex=False)
    started = time.perf_counter()
    process = context.Process(target=_run, args=(work, argument, ours))
    process.start()
    ours.close()  # so that a process that dies ends the wait
    num_bytes = results.recv()
    process.join()
    return time.perf_counter() - started, num_bytes


def _run(work: Callable[[Any], None], argument: Any, results: Any) -> None:
    work(argument)
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    results.send(max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024)


def _report(config: EvaluationConfig) -> None:
    from yivl_core.evaluation.report import evaluate_predictions

    evaluate_predictions(config)


def _peer(num_rows: int) -> None:
    import jiwer

    references, answers = zip(*islice(_pairs(1), num_rows), strict=True)
    jiwer.process_characters(list(references), list(answers))
    jiwer.process_words(list(references), list(answers))


def _pairs(seed: int) -> Iterator[tuple[str, str]]:
    generator = random.Random(seed)
    folder = Path(os.environ.get("YIVL_TEST_DATA", "../shared"), "data", "sroie_lines")
    texts = pq.read_table(folder / "train-00000-of-00004.parquet", columns=["text"])["text"].to_pylist()
    for text in cycle(texts):
        yield text, _damaged(text, generator) if generator.random() < 0.2 else text


def _damaged(text: str, generator: random.Random) -> str:
    characters = list(text)
    for _ in range(generator.randint(1, 3)):
        characters[generator.randrange(len(characters))] = generator.choice(["", "0", "X", "x "])
    return "".join(characters)


def _write(output: Path, num_rows: int, seed: int) -> None:
    pairs = enumerate(islice(_pairs(seed), num_rows))
    for part in range(-(-num_rows // PART_ROWS)):
        rows = [_row(number, *pair) for number, pair in islice(pairs, PART_ROWS)]
        write_part(str(output), f"part-{part:05d}.parquet", rows)


def _row(number: int, reference: str, answer: str) -> Prediction:
    image = PredictionImage(uri=f"lines/{number}.jpg", sha256=f"{number:064x}", width=200, height=32)
    return Prediction(
        sample_id=f"line-{number}",
        cluster_id=f"receipt-{number // 20}",
        record_index=number,
        source=f"lines.jsonl:{number + 1}",
        query="Read the text in the image.",
        history=(),
        system=None,
        images=(image,),
        reference=reference,
        references=(),
        meta="{}",
        response=answer,
        finish_reason="stop",
        prompt_tokens=1104,
        completion_tokens=8,
    )


if __name__ == "__main__":
    main()
