"""Samples a second of `yivl sft` on one GPU, from JPEG files on disk, beside transformers + PEFT in the same run.

    python tests/benchmarks/bench_training.py --case free --case 19GB --peer 16 --peer 4,checkpointing

Weights are random and of the published shape, drawn on the GPU in place of being read; all else is what the process does that
`yivl sft` starts: reading, packing, dropout, clipping, AdamW, evaluation left out. Each case is a process of its own; the first
steps, with compilations and caches, are told apart. The peer has the same samples from the same files, all of one length.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from shapes import TEXT_SHAPES, measure_peaks, random_model, random_tokenizer_model, write_photographs
from torch.utils.data import DataLoader

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import ValidatedDataset
from yivl_core.data.records import Record
from yivl_core.data.validation import validate_dataset
from yivl_core.doors import DOORS
from yivl_core.model.adapters import find_targets
from yivl_core.model.files import open_checkpoint
from yivl_core.model.gpu_memory import CONTEXT_BYTES
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.random_checkpoint import RandomShape, write_small_files
from yivl_core.model.tensors import save_tensors
from yivl_core.processing.processor import Processor
from yivl_core.progress import Progress
from yivl_core.training.configuration import TrainingConfig
from yivl_core.training.planning import Planner, TrainingPlan
from yivl_core.training.samples import SampleReader
from yivl_core.training.sft import train_adapter

SAMPLE_TOKENS, BATCH_SIZE, WARM_UP_STEPS = 1105, 16, 6
CASES: dict[str, dict[str, Any]] = {
    "free": {},
    "19GB": {"gpu_memory": 19, "max_length": 2048},
    "16GB": {"gpu_memory": 16, "max_length": 2048},
    "78GB": {"gpu_memory": 78},
    "all": {"target_modules": "all"},
    "fp8": {"quantization": "fp8"},
    "fp8 19GB": {"quantization": "fp8", "gpu_memory": 19, "max_length": 2048},
    "full recomputation": {"recompute": "full"},
    "feature cache": {"feature_cache": "features"},
    "nf4": {"quantization": "nf4"},
    "nf4 12GB": {"quantization": "nf4", "gpu_memory": 12, "max_length": 2048},
    "nf4 38GB": {"quantization": "nf4", "gpu_memory": 38},
    "dora": {"use_dora": True},
    "dora 38GB": {"use_dora": True, "gpu_memory": 38},
    "tower and projector": {"tuner": "full", "freeze_llm": True},
    "tower and projector 38GB": {"tuner": "full", "freeze_llm": True, "gpu_memory": 38},
}


def main() -> None:
    """Measure what the arguments ask for, and print a line of JSON for each figure."""
    arguments = _parse()
    if arguments.work_on:
        work = json.loads(arguments.work_on)
        _PARTS[work.pop("what")](**work)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, arguments.shape, arguments.images)
        product, copy = measure_peaks(torch.bfloat16, seconds=1.0)
        print(json.dumps({"TFLOP/s": product, "TB/s": copy}), flush=True)
        torch.cuda.empty_cache()
        common = {"folder": name, "shape": arguments.shape, "num_steps": arguments.steps}
        for peer in arguments.peers:
            size, *rest = peer.split(",")
            _in_process(
                what="peer", batch_size=int(size), is_checkpointed="checkpointing" in rest, is_all="all" in rest, **common
            )
        for case in arguments.cases:
            _in_process(what="yivl", case=case, settings=CASES[case] | json.loads(arguments.settings), **common)


def _in_process(**work: Any) -> None:
    started = time.perf_counter()
    command = [sys.executable, __file__, "--work-on", json.dumps(work)]
    environment = os.environ | DOORS["train"].variables  # which serve the peer as well
    result = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    lines = result.stdout.splitlines()
    if result.returncode:
        print(json.dumps({"what": work["what"], "failed": lines[-5:], **work}), flush=True)
        return
    figures = json.loads(lines[-1])
    print(json.dumps(figures | {"whole process, s": time.perf_counter() - started}), flush=True)


def _prepare(folder: Path, shape: str, num_images: int) -> None:
    """A checkpoint without weights, and a validated dataset of samples that are all of one length."""
    text, weights = TEXT_SHAPES[shape], folder / "model"
    weights.mkdir()
    sizes = RandomShape(
        hidden_size=text["hidden_size"], intermediate_size=text["intermediate_size"], num_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"], num_key_value_heads=text["num_key_value_heads"], vision_hidden_size=1280,
        vision_num_layers=32, vision_num_heads=16, image_size=448, vocab_size=64000,
    )  # fmt: skip
    vision = write_small_files(weights, sizes, torch.bfloat16, torch.bfloat16, random_tokenizer_model())
    for place in (weights, vision):
        save_tensors(place / "model.safetensors", {"nothing": torch.zeros(1)})
    files = write_photographs(folder / "images", num_images)
    processor = Processor.from_checkpoint(weights)
    text_of = {"query": "What is this?", "system": ""}
    answer = "a text of words number "

    def num_tokens(length: int) -> int:
        record = Record(**text_of, response=answer[:length], images=("x",))
        return processor.count_tokens(record, with_response=True, max_length=None)

    answer *= 20
    length = next(length for length in range(1, len(answer)) if num_tokens(length) >= SAMPLE_TOKENS)
    rows = (json.dumps(text_of | {"response": answer[:length], "images": [str(path)]}) + "\n" for path in files)
    (folder / "rows.jsonl").write_text("".join(rows))
    validate_dataset(
        ValidationConfig(dataset=(str(folder / "rows.jsonl"),), output=str(folder / "data"), image_root=str(folder / "images"))
    )


@contextmanager
def _weights_drawn(shape: str) -> Iterator[None]:
    """Within it a model is drawn in place of being read, and nothing is published."""

    def draw(_: Any, *, device: torch.device, **settings: Any) -> YiVLForConditionalGeneration:
        return random_model(shape, device=str(device), **settings)

    with (
        mock.patch("yivl_core.training.tuning.load_model", draw),
        mock.patch("yivl_core.training.features._tower_digest", return_value="drawn"),
        mock.patch("yivl_core.training.sft._Trainer.publish", return_value=None),
    ):
        yield


def _train(folder: str, shape: str, num_steps: int, case: str, settings: dict[str, Any]) -> None:
    said: list[str] = []
    plans: list[TrainingPlan] = []
    seen: list[tuple[float, int]] = []

    def listen(progress: Progress) -> None:
        if progress.message:
            said.append(progress.message)
        if progress.stage == "features":
            seen.append((time.perf_counter(), progress.done))

    num_records = sum(1 for _ in (Path(folder) / "data" / "records.jsonl").open())
    output = Path(folder) / f"run {case}"
    if "feature_cache" in settings:
        settings |= {"feature_cache": str(Path(folder) / settings["feature_cache"])}
    config = TrainingConfig(
        model=str(Path(folder) / "model"), dataset=str(Path(folder) / "data"), output=str(output), val_fraction=0,
        batch_size=BATCH_SIZE, num_epochs=num_steps * BATCH_SIZE / num_records, keep="last", **settings,
    )  # fmt: skip
    with _weights_drawn(shape), mock.patch.object(Planner, "plan", _watched(plans)):
        train_adapter(config, listen)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    free, total = torch.cuda.mem_get_info()
    steady, seconds = lines[WARM_UP_STEPS:], [BATCH_SIZE / line["samples_per_s"] for line in lines]
    mean = {name: sum(line[name] for line in steady) / len(steady) for name in ("tflops", "share_of_peak", "data_wait_s")}
    figures = {
        "what": "yivl sft", "shape": shape, "case": case, "settings": settings, "card": torch.cuda.get_device_name(),
        "samples/s": BATCH_SIZE * len(steady) / sum(seconds[WARM_UP_STEPS:]),
        "tokens/s": SAMPLE_TOKENS * BATCH_SIZE * len(steady) / sum(seconds[WARM_UP_STEPS:]),
        **mean,
        "first step, s": seconds[0], f"first {WARM_UP_STEPS} steps, s": sum(seconds[:WARM_UP_STEPS]),
        "GB predicted": plans[-1].total_bytes / 1e9,
        "GB reserved + context": (torch.cuda.max_memory_reserved() + CONTEXT_BYTES) / 1e9, "GB used": (total - free) / 1e9,
        "GB allocated": torch.cuda.max_memory_allocated() / 1e9, "said": said[1:],
        "images/s to features": _rate(seen), "loss": [lines[0]["loss"], lines[-1]["loss"]],
    }  # fmt: skip
    print(json.dumps(figures), flush=True)


def _rate(seen: list[tuple[float, int]]) -> float | None:
    """Of what was done behind the first few, for which CUDA's libraries are loaded."""
    return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]) if seen else None


def _watched(plans: list[TrainingPlan]) -> Callable[..., TrainingPlan]:
    plan = Planner.plan

    def watch(self: Planner, *arguments: Any) -> TrainingPlan:
        plans.append(plan(self, *arguments))
        return plans[-1]

    return watch


def _train_peer(folder: str, shape: str, num_steps: int, batch_size: int, is_checkpointed: bool, is_all: bool) -> None:
    """The model of record, PEFT's LoRA, and a plain loop; `batch_size` samples go through the model at a time."""
    model = random_model(shape, torch.bfloat16, "cuda").train()
    targets = find_targets(model, "all" if is_all else "default")
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=targets))
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    checkpoint = open_checkpoint(Path(folder) / "model")
    reader = SampleReader(ValidatedDataset.open(str(Path(folder) / "data")), checkpoint.folder, None)
    preprocessor = Processor.from_checkpoint(checkpoint).preprocessor
    order = [number % len(reader.records) for number in range(num_steps * BATCH_SIZE)]
    loader = DataLoader(
        _Inputs(reader), sampler=order, batch_size=batch_size, num_workers=8, collate_fn=list, pin_memory=False, prefetch_factor=2
    )
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    seconds, batches = [], iter(loader)
    for _ in range(num_steps):
        started = time.perf_counter()
        for samples in islice(batches, BATCH_SIZE // batch_size):
            ids, labels = (
                torch.stack([torch.from_numpy(getattr(sample, name)) for sample in samples]).cuda(non_blocking=True)
                for name in ("input_ids", "labels")
            )
            pixels = torch.cat([preprocessor.normalise(sample.pixels.to(ids.device).squares()) for sample in samples])
            loss = adapted(input_ids=ids, pixel_values=pixels.to(torch.bfloat16), labels=labels).loss
            (loss * batch_size / BATCH_SIZE).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    steady = seconds[WARM_UP_STEPS:]
    figures = {
        "what": "transformers + PEFT", "shape": shape, "batch": batch_size, "checkpointing": is_checkpointed, "all": is_all,
        "card": torch.cuda.get_device_name(), "samples/s": BATCH_SIZE * len(steady) / sum(steady), "first step, s": seconds[0],
        "GB reserved + context": (torch.cuda.max_memory_reserved() + CONTEXT_BYTES) / 1e9,
    }  # fmt: skip
    print(json.dumps(figures), flush=True)


class _Inputs(torch.utils.data.Dataset[Any]):
    """Samples by the number of their record."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader

    def __getitem__(self, index: int) -> Any:
        return self._reader.load(index)


_PARTS = {"yivl": _train, "peer": _train_peer}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=TEXT_SHAPES, default="6b")
    parser.add_argument("--case", dest="cases", action="append", choices=CASES, default=[], help="of `yivl sft`")
    parser.add_argument("--settings", default="{}", help="JSON with more settings of every case")
    parser.add_argument(
        "--peer", dest="peers", action="append", default=[], metavar="BATCH[,checkpointing][,all]",
        help="transformers + PEFT with so many samples at a time",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--steps", type=int, default=24, help=f"optimizer steps of {BATCH_SIZE} samples")
    parser.add_argument("--work-on", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
