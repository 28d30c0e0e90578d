"""Lines a second of the inference engine on a CPU, with the project's own model, beside transformers' `generate` in the same run.

    python tests/benchmarks/bench_cpu.py --dtypes float32 bfloat16 --generate-batches 8 32 64

The input are the 1,536 receipt lines of the test data (YIVL_TEST_DATA). Both start from the JPEG files in memory, and write the
same tokens up to the stop.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from shapes import profiled

from yivl_core.data.records import Record
from yivl_core.inference.engine import InferenceEngine
from yivl_core.inference.loading import make_engine
from yivl_core.inference.memory import plan_memory
from yivl_core.inference.preparation import preparing
from yivl_core.inference.requests import Completion, Request
from yivl_core.model.weights import load_model
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.processor import ModelInputs, Processor

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "data" / "nano"
MAX_NEW_TOKENS = 40


def main() -> None:
    """Measure what the arguments ask for, and print a line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1536)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--generate-batches", type=int, nargs="*", default=[8, 32, 64])
    parser.add_argument("--profile", action="store_true", help="which operators take the time")
    arguments = parser.parse_args()
    files = read_lines()[0][: arguments.lines]
    processor = Processor.from_checkpoint(MODEL)
    for name in arguments.dtypes:
        dtype = getattr(torch, name)
        texts, best = _measure_engine(processor, files, dtype)
        rates = []
        for batch_size in arguments.generate_batches:
            written, rate = _measure_generate(processor, files, dtype, batch_size)
            equal = sum(one == other for one, other in zip(texts, written, strict=True))
            rates.append(rate)
            print(
                json.dumps({"what": "generate", "dtype": name, "batch": batch_size, "lines/s": rate, "equal": equal}), flush=True
            )
        if arguments.profile:
            for line in profiled(lambda used=dtype: _measure_engine(processor, files, used)):
                print(json.dumps({"profile": name, **line}), flush=True)
        result = {"what": "engine", "dtype": name, "lines/s": best, "ratio": best / max(rates, default=best)}
        print(json.dumps(result), flush=True)


def lines_folder() -> Path:
    """Where the receipt lines are."""
    return (REPOSITORY / os.environ.get("YIVL_TEST_DATA", "../shared")).resolve() / "data" / "sroie_lines"


def read_lines() -> tuple[list[bytes], list[str]]:
    """The JPEG files of the receipt lines that are kept for evaluation, and the texts on them."""
    table = pq.read_table(lines_folder() / "val-00000-of-00001.parquet", columns=["image", "text"])
    return table["image"].to_pylist(), table["text"].to_pylist()


def _inputs(processor: Processor, file: bytes) -> ModelInputs:
    record = Record(query="Read the text in the image.", images=("line.jpg",))
    with Image.open(io.BytesIO(file)) as image:
        return processor.process(record, [image.convert("RGB")], with_response=False)


def load_lines_engine(processor: Processor, dtype: torch.dtype, device: torch.device, *, is_fp8: bool = False) -> InferenceEngine:
    """An engine with the project's own model."""
    model = load_model(MODEL, dtype=dtype, device=device)
    return make_engine(model, processor, plan_memory(model.config, dtype, device, is_fp8=is_fp8, is_loaded=True))


def answer_lines(engine: InferenceEngine, processor: Processor, files: list[bytes]) -> list[Completion | None]:
    """The answer to each line; None where its logits were no finite numbers."""

    def requests(prepared: Iterable[ModelInputs]) -> Iterator[Request]:
        for number, inputs in enumerate(prepared):
            yield Request(sample_id=str(number), inputs=inputs, max_new_tokens=MAX_NEW_TOKENS)

    with preparing(partial(_inputs, processor), engine.runner.device) as prepare:
        completions = dict(engine.generate(requests(prepare(files))))
    return [completions[number] for number in range(len(files))]


def _measure_engine(processor: Processor, files: list[bytes], dtype: torch.dtype) -> tuple[list[tuple[int, ...]], float]:
    """The tokens of each line, and lines a second."""
    engine = load_lines_engine(processor, dtype, torch.device("cpu"))
    started = time.perf_counter()
    found = answer_lines(engine, processor, files)
    rate = len(files) / (time.perf_counter() - started)
    return [completion.token_ids for completion in found if completion], rate


@torch.inference_mode()
def _measure_generate(
    processor: Processor, files: list[bytes], dtype: torch.dtype, batch_size: int
) -> tuple[list[tuple[int, ...]], float]:
    """The same by transformers' own loop, in batches of prompts of one length."""
    model = load_model(MODEL, dtype=dtype)
    stop_id = processor.tokenizer.encode("\n###")[-1]
    written: list[tuple[int, ...]] = []
    started = time.perf_counter()
    for start in range(0, len(files), batch_size):
        batch = [_inputs(processor, file) for file in files[start : start + batch_size]]
        input_ids = torch.stack([torch.from_numpy(inputs.input_ids) for inputs in batch])
        pixels = UnpaddedPixels.joined([inputs.pixels for inputs in batch]).squares()
        ids = model.generate(
            input_ids, pixel_values=processor.preprocessor.normalise(pixels).to(dtype), attention_mask=torch.ones_like(input_ids),
            max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=[processor.tokenizer.eos_id, stop_id], pad_token_id=0,
        )  # fmt: skip
        for row in ids[:, input_ids.shape[1] :].tolist():
            end = next((place + 1 for place, token in enumerate(row) if token in (processor.tokenizer.eos_id, stop_id)), len(row))
            written.append(tuple(row[:end]))
    return written, len(files) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
