"""What cutting the work into shards costs on a GPU: the same images in one shard, and in shards of some twenty seconds.

    python tests/benchmarks/bench_shards.py --images 2400 --shard-sizes 2400 800

`infer_shards` as users run it, on a checkpoint of the published shape with random weights and on JPEG files of two megapixels. No
batch crosses a shard, so at the end of each some rows of the GPU stand empty; the model stays loaded, and images are made ready
across the bounds. The time is that from the first answer to the last.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench_start

CHILD = "--child"
_NUM_FILES = 400  # each is named several times


def main() -> None:
    """Print a line of JSON for each size of shards, and one for the seconds that a shard adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--shard-sizes", type=int, nargs="+", default=[2400, 800])
    parser.add_argument("--folder", type=Path, help="where checkpoint and images are, or will be written and kept")
    arguments = parser.parse_args()
    from shapes import write_photographs

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        checkpoint, images = folder / "checkpoint", folder / "images"
        if not checkpoint.is_dir():
            command = [sys.executable, bench_start.__file__, bench_start.CHILD, "write", str(checkpoint), str(images)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        names = [path.name for path in write_photographs(images, _NUM_FILES)]
        listed = images / "list.txt"
        listed.write_text("".join(f"{names[number % len(names)]}\n" for number in range(arguments.images)))
        whole = 0.0
        for shard_size in arguments.shard_sizes:  # each in a process of its own, since the first would keep the GPU's memory
            command = [sys.executable, __file__, CHILD, str(checkpoint), str(listed), str(arguments.new_tokens), str(shard_size)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            whole = whole or found["answering, s"]
            added = (found["answering, s"] - whole) / max(1, found["shards"] - 1)
            print(json.dumps({**found, "added by each further shard, s": added}), flush=True)


def answer(checkpoint: str, listed: str, new_tokens: str, shard_size: str) -> dict[str, float]:
    """Answer the images of a list, as users do; what was seen after the first answer, when all is loaded and started."""
    from yivl_core.inference.batch import infer_shards
    from yivl_core.inference.configuration import InferenceConfig

    times: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = InferenceConfig(
            model=checkpoint, images=listed, prompt="Describe it.", output=str(Path(folder) / "predictions"),
            max_new_tokens=int(new_tokens), shard_size=int(shard_size),
        )  # fmt: skip
        summary = infer_shards(config, on_progress=lambda progress: times.append((progress.done, time.perf_counter())))
    first, last = (next(moment for done, moment in times if done == number) for number in (1, summary.num_records))
    return {
        "shards": summary.num_shards, "answering, s": last - first, "all, s": summary.runtime_s, "failed": summary.num_failed,
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(answer(*sys.argv[2:])))
    else:
        main()
