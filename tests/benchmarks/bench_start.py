"""Seconds from the start of a process to the answer about the first image, with a checkpoint of the published shape on disk.

    python tests/benchmarks/bench_start.py

The checkpoint of 16 GB is written first, with random weights made on the GPU. The first process finds neither its files in the
page cache nor compiled kernels; the next ones find both. The last line is `infer_shards` as users run it, digests of all files
included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = "--child"


def main() -> None:
    """Write the checkpoint where it is missing, and print a line of JSON for each start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is, or will be written and kept; default: a temporary one"
    )
    parser.add_argument("--starts", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as kernels:
        checkpoint, images = ((arguments.folder or Path(folder)) / name for name in ("checkpoint", "images"))
        if not checkpoint.is_dir():
            command = [sys.executable, __file__, CHILD, "write", str(checkpoint), str(images)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for number in range(arguments.starts):
            if number == 0:
                _forget(checkpoint)
            _start("engine", checkpoint, images, kernels, is_cold=number == 0)
        _start("infer_shards", checkpoint, images, kernels, is_cold=False)


def _start(what: str, checkpoint: Path, images: Path, kernels: str, *, is_cold: bool) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": kernels, "STARTED": repr(time.time())}
    command = [sys.executable, __file__, CHILD, what, str(checkpoint), str(images)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout.splitlines()
    print(json.dumps({"what": what, "files and kernels cached": not is_cold, **json.loads(lines[-1])}), flush=True)


def _forget(folder: Path) -> None:
    """Takes the files of a folder out of the page cache."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write(checkpoint: Path, images: Path) -> None:
    """Write a checkpoint of Yi-VL-6B's shape in the published layout, and one image."""
    import torch
    from shapes import TEXT_SHAPES, random_model, write_photographs

    from yivl_core.model.random_checkpoint import RandomShape, write_random_checkpoint, write_small_files
    from yivl_core.model.tensors import LazyTensor
    from yivl_core.model.weights import write_published_weights

    text = TEXT_SHAPES["6b"]
    shape = RandomShape(
        hidden_size=text["hidden_size"], intermediate_size=text["intermediate_size"], num_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"], num_key_value_heads=text["num_key_value_heads"], vision_hidden_size=1280,
        vision_num_layers=32, vision_num_heads=16, image_size=448, patch_size=14, vocab_size=64_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(Path(folder) / "tiny")
        tokenizer_model = (Path(folder) / "tiny" / "tokenizer.model").read_bytes()
    model = random_model("6b", torch.bfloat16, "cuda")

    def read_as(parameter: torch.Tensor, dtype: torch.dtype) -> LazyTensor:
        return LazyTensor(tuple(parameter.shape), dtype, lambda: parameter.detach().to("cpu", dtype))

    tensors = {
        name: read_as(parameter, torch.float32 if name.startswith("model.vision_tower.") else torch.bfloat16)
        for name, parameter in model.named_parameters()
    }
    checkpoint.mkdir(parents=True)
    vision_folder = write_small_files(checkpoint, shape, torch.bfloat16, torch.float32, tokenizer_model)
    write_published_weights(checkpoint, vision_folder, tensors, max_shard_bytes=5_000_000_000)
    write_photographs(images, 1)


def engine(checkpoint: Path, images: Path) -> dict[str, float]:
    """Load an engine and let it answer one request; seconds since the process was started."""
    import torch

    from yivl_core.data.images import ImageReference, ImageStore
    from yivl_core.data.records import Record
    from yivl_core.inference.configuration import EngineSettings
    from yivl_core.inference.loading import load_engine, plan_engine
    from yivl_core.inference.requests import Request
    from yivl_core.model.files import open_checkpoint
    from yivl_core.processing.processor import Processor

    times = {"imported, s": _since_start()}
    base, device = open_checkpoint(checkpoint), torch.device("cuda")
    processor = Processor.from_checkpoint(base)
    settings, dtype = EngineSettings(), torch.bfloat16
    plan = plan_engine(settings, base, None, device, dtype)
    loaded, _ = load_engine(settings, base, processor, plan, adapter=None, device=device, dtype=dtype)
    torch.cuda.synchronize()
    times["ready for the first image, s"] = _since_start()
    path = next(images.iterdir())
    image = ImageStore().load(ImageReference(uri=path.name, address=path.name, root=images)).image
    inputs = processor.process(Record(query="Describe it.", images=(path.name,)), [image], with_response=False)
    for _ in loaded.generate([Request(sample_id="first", inputs=inputs, max_new_tokens=8)]):
        times["first answer, 8 tokens, s"] = _since_start()
    return times


def infer_shards(checkpoint: Path, images: Path) -> dict[str, float]:
    """Answer a folder of one image as users do."""
    from yivl_core.inference.batch import infer_shards as run
    from yivl_core.inference.configuration import InferenceConfig

    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "predictions")
        run(InferenceConfig(model=str(checkpoint), images=str(images), prompt="Describe it.", output=output, max_new_tokens=8))
    return {"done, s": _since_start()}


def _since_start() -> float:
    return time.time() - float(os.environ["STARTED"])


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        found = {"write": write, "engine": engine, "infer_shards": infer_shards}[sys.argv[2]](*map(Path, sys.argv[3:]))
        print(json.dumps(found))
    else:
        main()
