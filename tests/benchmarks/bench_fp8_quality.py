"""What 8-bit matrix products change in the answers of the project's own model, on one GPU.

    python tests/benchmarks/bench_fp8_quality.py

The input are the 1,536 receipt lines of the test data (YIVL_TEST_DATA), read by `data/nano` in bfloat16 and with 8-bit products.
CER is the sum of Levenshtein distances over the sum of the references' characters; its 95 % interval and that of the difference
are percentiles of 10,000 bootstrap resamples of lines (B. Efron, 1979), the difference paired by line.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from bench_cpu import MAX_NEW_TOKENS, MODEL, REPOSITORY, line_inputs
from rapidfuzz.distance import Levenshtein

from yivl_core.inference.loading import make_engine
from yivl_core.inference.memory import plan_memory
from yivl_core.inference.preparation import num_threads, prepare_ahead
from yivl_core.inference.requests import Request
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import Processor

RESAMPLES = 10_000
CUDA = torch.device("cuda")


def main() -> None:
    """Print a line of JSON for each way, and one for the difference."""
    folder = (REPOSITORY / os.environ.get("YIVL_TEST_DATA", "../shared")).resolve() / "data" / "sroie_lines"
    table = pq.read_table(folder / "val-00000-of-00001.parquet", columns=["image", "text"])
    references: list[str] = table["text"].to_pylist()
    lengths = np.array([len(text) for text in references])
    processor = Processor.from_checkpoint(MODEL)
    texts = {is_fp8: _read(processor, table["image"].to_pylist(), is_fp8=is_fp8) for is_fp8 in (False, True)}
    distances = {
        is_fp8: np.array([Levenshtein.distance(text, reference) for text, reference in zip(found, references, strict=True)])
        for is_fp8, found in texts.items()
    }
    for is_fp8, found in distances.items():
        line = {"products": "fp8" if is_fp8 else "bfloat16", "lines": len(found), "CER": found.sum() / lengths.sum()}
        print(json.dumps({**line, "95 %": _interval(found, lengths)}), flush=True)
    change = distances[True] - distances[False]
    same = sum(one == other for one, other in zip(texts[True], texts[False], strict=True))
    print(
        json.dumps({"change": change.sum() / lengths.sum(), "95 %": _interval(change, lengths), "same texts": same}), flush=True
    )


def _read(processor: Processor, files: list[bytes], *, is_fp8: bool) -> list[str]:
    model = load_model(MODEL, dtype=torch.bfloat16, device=CUDA)
    engine = make_engine(model, processor, plan_memory(model.config, torch.bfloat16, CUDA, is_fp8=is_fp8, is_loaded=True))

    def requests(pool: ThreadPoolExecutor) -> Iterator[Request]:
        for number, inputs in enumerate(prepare_ahead(pool, lambda file: line_inputs(processor, file), files)):
            yield Request(sample_id=str(number), inputs=inputs, max_new_tokens=MAX_NEW_TOKENS)

    with ThreadPoolExecutor(num_threads(CUDA)) as pool:
        completions = dict(engine.generate(requests(pool)))
    found = [completions[number] for number in range(len(files))]
    return [completion.text if completion else "" for completion in found]


def _interval(errors: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> list[float]:
    generator = np.random.default_rng(0)
    drawn = (generator.integers(0, len(errors), len(errors)) for _ in range(RESAMPLES))
    rates = [errors[lines].sum() / lengths[lines].sum() for lines in drawn]
    return [float(value) for value in np.percentile(rates, [2.5, 97.5])]


if __name__ == "__main__":
    main()
