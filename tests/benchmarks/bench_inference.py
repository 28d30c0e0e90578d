"""Images a second of the inference engine on one GPU, from JPEG files on disk, beside transformers' `generate` in the same run.

    python tests/benchmarks/bench_inference.py --images 512 --new-tokens 64 --generate-batches 128 256

Weights are random and of the published shape; every answer has the full number of tokens, but for `--mixed`, where answers have
16 to `--new-tokens` of them. `generate` gets its pixels prepared, in memory; the engine starts from the files.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from shapes import TEXT_SHAPES, measure_peaks, operations_per_image, profiled, random_model, random_processor, write_photographs

from yivl_core.data.images import ImageReference, ImageStore
from yivl_core.data.records import Record
from yivl_core.inference.engine import InferenceEngine
from yivl_core.inference.invariance import find_variant
from yivl_core.inference.loading import make_engine
from yivl_core.inference.memory import plan_memory
from yivl_core.inference.preparation import preparing
from yivl_core.inference.requests import Request
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.processor import ModelInputs, Processor

# Yi's tokenizer makes about so many of the text before the image, and the prompt's length is the one that peers were measured at.
PREFIX_TOKENS, PROMPT_TOKENS = 66, 1105
CUDA = torch.device("cuda")

Prepare = Callable[[Iterable[Path]], Iterator[ModelInputs]]


def main() -> None:
    """Measure what the arguments ask for, and print a line of JSON for each figure."""
    arguments = _parse()
    dtype = getattr(torch, arguments.dtype)
    processor = random_processor()
    with tempfile.TemporaryDirectory() as folder, preparing(partial(_inputs, processor, ImageStore()), CUDA) as prepare:
        files = write_photographs(arguments.folder or Path(folder), arguments.images)
        print(json.dumps({"files": len(files), "bytes": sum(path.stat().st_size for path in files) // len(files)}), flush=True)
        model = random_model(arguments.shape, dtype, "cuda")
        operations = operations_per_image(model, PROMPT_TOKENS, arguments.new_tokens)
        product, copy = measure_peaks(dtype)
        print(json.dumps({"TFLOP/s": product, "TB/s": copy, "TFLOP an image": operations / 1e12,
                          "bound by operations, images/s": product * 1e12 / operations}), flush=True)  # fmt: skip
        best = 0.0
        for batch_size in arguments.generate_batches:
            rate = _measure_generate(model, processor, prepare, files, batch_size, arguments.new_tokens)
            best = max(best, rate)
            print(json.dumps({"what": "generate", "batch": batch_size, "images/s": rate}), flush=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        plan = plan_memory(
            model.config, dtype, CUDA, num_rows=arguments.batch_size, gpu_memory_gb=arguments.gpu_memory,
            is_invariant=arguments.batch_invariant, is_fp8=arguments.fp8, is_loaded=True,
        )  # fmt: skip
        print(json.dumps({"plan": str(plan)}), flush=True)
        engine = make_engine(model, processor, plan)
        reserved = torch.cuda.memory_reserved()
        print(json.dumps({"prepared without a model, images/s": _measure_preparation(prepare, files)}), flush=True)
        started = time.perf_counter()
        _run(engine, prepare, files[:32], 8)
        print(json.dumps({"warm-up, s": time.perf_counter() - started}), flush=True)
        for _ in range(arguments.repeats):
            figures = _measure_engine(engine, prepare, files, arguments)
            if best:
                figures["ratio to generate"] = figures["images/s"] / best
            print(json.dumps(figures), flush=True)
        if arguments.profile:
            # One token: prefills alone; 17 tokens: with 16 decodes.
            for new_tokens in (1, 17):
                for line in profiled(lambda limit=new_tokens: _run(engine, prepare, files[:256], limit)):
                    print(json.dumps({"profile": f"{min(256, len(files))} images, {new_tokens} tokens", **line}), flush=True)
        if arguments.verify_invariance:
            requests = [
                Request(sample_id=path.stem, inputs=_inputs(processor, ImageStore(), path), max_new_tokens=arguments.new_tokens)
                for path in files[: arguments.verify_invariance]
            ]
            print(json.dumps({"probed": len(requests), "differing": len(find_variant(engine, requests))}), flush=True)
        print(json.dumps({**_memory(plan.total_bytes), "taken before the first request": reserved / 1e9}), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(TEXT_SHAPES), default="6b")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--mixed", action="store_true", help="answers of 16 to --new-tokens tokens")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--gpu-memory", type=float, help="GB of 10^9 bytes")
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--fp8", action="store_true", help="8-bit matrix products")
    parser.add_argument("--verify-invariance", type=int, default=0, help="records to answer in several ways")
    parser.add_argument("--generate-batches", type=int, nargs="*", default=[128, 256])
    parser.add_argument("--profile", action="store_true", help="which kernels take the time")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the JPEG files are kept; default: a temporary folder")
    return parser.parse_args()


def _inputs(processor: Processor, store: ImageStore, path: Path) -> ModelInputs:
    """One file as the engine gets it: pixels from the file, and a prompt of the published length."""
    image = store.load(ImageReference(uri=path.name, address=path.name, root=path.parent)).image
    pixels = processor.process(Record(query="words", images=(path.name,)), [image], with_response=False).pixels
    own = np.random.default_rng(int(path.stem)).integers(3, 60_000, PROMPT_TOKENS - PREFIX_TOKENS - 1024)
    shared = np.random.default_rng(0).integers(3, 60_000, PREFIX_TOKENS)
    return ModelInputs(
        input_ids=np.concatenate([shared, np.full(1024, -200), own]), labels=None, pixels=pixels, num_shared=PREFIX_TOKENS
    )


def _run(engine: InferenceEngine, prepare: Prepare, files: list[Path], new_tokens: int, *, is_mixed: bool = False) -> int:
    """Answers all files; the number of tokens written."""
    lengths = random.Random(0)

    def requests(prepared: Iterable[ModelInputs]) -> Iterator[Request]:
        for number, inputs in enumerate(prepared):
            limit = lengths.randint(16, new_tokens) if is_mixed else new_tokens
            yield Request(sample_id=str(number), inputs=inputs, max_new_tokens=limit)
        if is_mixed:
            print(json.dumps({"share of rows in use until the last image was taken": engine.mean_slot_use}), flush=True)

    completions = [completion for _, completion in engine.generate(requests(prepare(files)))]
    assert len(completions) == len(files)
    assert None not in completions
    return sum(completion.num_tokens for completion in completions if completion)


def _measure_preparation(prepare: Prepare, files: list[Path]) -> float:
    """Images a second that are made ready where nothing else is done."""
    for _ in prepare(files[:64]):  # which starts the processes
        pass
    started = time.perf_counter()
    return sum(1 for _ in prepare(files)) / (time.perf_counter() - started)


def _measure_engine(
    engine: InferenceEngine, prepare: Prepare, files: list[Path], arguments: argparse.Namespace
) -> dict[str, float | str]:
    engine.counts = type(engine.counts)()
    started = time.perf_counter()
    num_tokens = _run(engine, prepare, files, arguments.new_tokens, is_mixed=arguments.mixed)
    seconds = time.perf_counter() - started
    return {
        "what": "engine",
        "images/s": len(files) / seconds,
        "tokens/s": num_tokens / seconds,
        "tokens an answer": num_tokens / len(files),
        "mean share of rows in use": engine.mean_slot_use,
        "prefills": engine.counts.num_prefills,
        "decodes": engine.counts.num_decodes,
        "waited for images, s": engine.counts.waited_s,
        "GPU idle between steps, s": engine.counts.idle_s,
        "took, s": seconds,
    }


@torch.inference_mode()
def _measure_generate(
    model: YiVLForConditionalGeneration,
    processor: Processor,
    prepare: Prepare,
    files: list[Path],
    batch_size: int,
    new_tokens: int,
) -> float:
    """Images a second of transformers' own loop, in batches of prompts of one length, after one step that is not counted."""
    ready = list(prepare(files[: 2 * batch_size]))

    def run(batch: list[ModelInputs], limit: int) -> None:
        input_ids = torch.from_numpy(np.stack([inputs.input_ids for inputs in batch])).cuda()
        pixels = UnpaddedPixels.joined([inputs.pixels for inputs in batch]).to(CUDA).squares()
        model.generate(
            input_ids, pixel_values=processor.preprocessor.normalise(pixels).to(model.dtype),
            attention_mask=torch.ones_like(input_ids), max_new_tokens=limit, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        torch.cuda.synchronize()

    run(ready[:batch_size], 2)
    started = time.perf_counter()
    for start in range(0, len(ready), batch_size):
        run(ready[start : start + batch_size], new_tokens)
    return len(ready) / (time.perf_counter() - started)


def _memory(planned_bytes: int) -> dict[str, float]:
    """GB of 10^9 bytes: what was planned, and the peak that the process reserved, with what CUDA takes beside it."""
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    return {
        "planned GB": planned_bytes / 1e9,
        "peak GB": (torch.cuda.max_memory_reserved() + outside) / 1e9,
        "of which outside of torch": outside / 1e9,
    }


if __name__ == "__main__":
    main()
