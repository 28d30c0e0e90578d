"""What cutting the work into shards costs on a GPU: the same images in one shard, and in shards of some twenty seconds.

    python tests/benchmarks/bench_shards.py --images 2400 --shard-sizes 2400 800

`infer_shards` as users run it, on a checkpoint of the published shape with random weights and on JPEG files of two megapixels. No
batch crosses a shard, so at the end of each some rows of the GPU stand empty; the model stays loaded, and images are made ready
across the bounds.
"""

import argparse
import json
import tempfile
from pathlib import Path

import bench_start
from shapes import write_photographs

from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig

_NUM_FILES = 400  # each is named several times


def main() -> None:
    """Print a line of JSON for each size of shards, and one for the seconds that a shard adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--shard-sizes", type=int, nargs="+", default=[2400, 800])
    parser.add_argument("--folder", type=Path, help="where checkpoint and images are, or will be written and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        checkpoint, images = folder / "checkpoint", folder / "images"
        if not checkpoint.is_dir():
            bench_start.write(checkpoint, images)
        names = [path.name for path in write_photographs(images, _NUM_FILES)]
        listed = images / "list.txt"
        listed.write_text("".join(f"{names[number % len(names)]}\n" for number in range(arguments.images)))
        whole = 0.0
        for number, shard_size in enumerate(arguments.shard_sizes):
            summary = infer_shards(
                InferenceConfig(
                    model=str(checkpoint),
                    images=str(listed),
                    prompt="Describe it.",
                    output=str(Path(temporary) / f"predictions-{number}"),
                    max_new_tokens=arguments.new_tokens,
                    shard_size=shard_size,
                )
            )
            seconds = summary.num_records / summary.records_per_s
            whole = whole or seconds
            added = (seconds - whole) / max(1, summary.num_shards - 1)
            print(
                json.dumps(
                    {"shards": summary.num_shards, "images/s": summary.records_per_s, "seconds": seconds,
                     "seconds a shard": seconds / summary.num_shards, "added by each further shard, s": added,
                     "with loading and counting, s": summary.runtime_s, "failed": summary.num_failed}
                ),
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
