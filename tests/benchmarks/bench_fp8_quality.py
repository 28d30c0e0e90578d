"""What 8-bit matrix products change in the answers of the project's own model, on one GPU.

    python tests/benchmarks/bench_fp8_quality.py

The input are the 1,536 receipt lines of the test data (YIVL_TEST_DATA), read by `data/nano` in bfloat16 and with 8-bit products.
CER is that of the reports, on the texts as they are; its 95 % interval and that of the change are percentiles of 10,000 bootstrap
resamples of lines (B. Efron, 1979), the change paired by line.
"""

import json

import numpy as np
import numpy.typing as npt
import torch
from bench_cpu import MODEL, answer_lines, load_lines_engine, read_lines

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.metrics.edits import score_answer
from yivl_core.evaluation.statistics.bootstrap import Bootstrap
from yivl_core.inference.memory import require_possible
from yivl_core.processing.processor import Processor

RESAMPLES = 10_000
CUDA = torch.device("cuda")


def main() -> None:
    """Print a line of JSON for each way, and one for the change; only why not, where the GPU has no 8-bit products."""
    try:
        require_possible(CUDA, torch.bfloat16, gpu_memory_gb=None, is_fp8=True, is_plain=False)
    except ConfigurationError as error:
        print(json.dumps({"skipped": str(error)}))
        return
    files, references = read_lines()
    lengths = np.array([len(text) for text in references])
    processor = Processor.from_checkpoint(MODEL)
    texts, edits = {}, {}
    for name in ("bfloat16", "fp8"):
        found = answer_lines(load_lines_engine(processor, torch.bfloat16, CUDA, is_fp8=name == "fp8"), processor, files)
        texts[name] = [completion and completion.text for completion in found]
        edits[name] = np.array([score_answer(text, [line]).edits for text, line in zip(texts[name], references, strict=True)])
        figures = {"products": name, "lines": len(found), "failed": found.count(None)}
        print(json.dumps(figures | _rate(edits[name], lengths)), flush=True)
    same = sum(one == other for one, other in zip(texts["bfloat16"], texts["fp8"], strict=True))
    print(json.dumps({"products": "change", "same texts": same} | _rate(edits["fp8"] - edits["bfloat16"], lengths)), flush=True)


def _rate(edits: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> dict[str, float | list[float]]:
    sums = Bootstrap(len(edits), RESAMPLES).sums(np.stack([edits, lengths], axis=1))
    rates = sums[:, 0] / sums[:, 1]
    return {"CER": float(edits.sum() / lengths.sum()), "95 %": np.percentile(rates, [2.5, 97.5]).tolist()}


if __name__ == "__main__":
    main()
