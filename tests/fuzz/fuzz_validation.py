"""Looks for inputs on which validation crashes, hangs, or breaks a promise, guided by the coverage of `yivl_core.data`.

    python tests/fuzz/fuzz_validation.py --target rows --runs 100000 --corpus /tmp/corpus/rows
    python tests/fuzz/fuzz_validation.py --target rows --replay /tmp/corpus/rows

Targets: `rows`, files of every format; `formats`, rows of any shape; `images`. What has to hold of them stands in
`row_target.py`, `format_target.py` and `image_target.py`. Seeds are written into the corpus, also from YIVL_TEST_DATA;
a later run goes on with what was found. An input that fails is left in the current folder, and is run again by `--replay FILE`.

Needs atheris (the extra `fuzz`) but for `--replay`, which gives coverage:

    coverage run --branch --source yivl_core.data tests/fuzz/fuzz_validation.py --target rows --replay /tmp/corpus/rows
"""

import argparse
import faulthandler
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz_targets import Target

NAMES = ("rows", "formats", "images")
TIMEOUT_S = 20
MAX_RSS_MB = 3000
MAX_INPUT_BYTES = 8192


def main() -> None:
    arguments = _arguments()
    with _quick_folder() as folder:
        if arguments.replay is not None:
            faulthandler.enable()
            from fuzz_targets import open_target

            _replay(open_target(arguments.target, folder), arguments.replay)
        else:
            _fuzz(arguments, folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=NAMES, required=True)
    parser.add_argument("--runs", type=int, default=10_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=1, help="of the random changes")
    parser.add_argument(
        "--corpus", type=Path, help="folder of inputs that each reach something new (default: one that is dropped)"
    )
    parser.add_argument("--replay", type=Path, help="run the inputs of a folder, or one file, and nothing else")
    return parser.parse_args()


@contextmanager
def _quick_folder() -> Iterator[Path]:
    """A folder in memory, where the machine has one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="yivl-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def _replay(target: "Target", place: Path) -> None:
    paths = sorted(place.iterdir()) if place.is_dir() else [place]
    slowest = 0.0
    for path in paths:
        start = time.perf_counter()
        try:
            target.check(path.read_bytes())
        except BaseException:
            print(f"{path} fails:", file=sys.stderr)
            raise
        slowest = max(slowest, time.perf_counter() - start)
    print(f"{len(paths)} inputs hold; the slowest took {slowest:.2f} s")


def _fuzz(arguments: argparse.Namespace, folder: Path) -> None:
    import atheris

    import yivl_core.listing
    import yivl_core.storage
    import yivl_core.temporary_tables  # noqa: F401  (before, so that these are left as they are)

    # Of images the reader is Pillow: what is new in a file shows there.
    with atheris.instrument_imports(include=["yivl_core", "PIL"] if arguments.target == "images" else ["yivl_core"]):
        from fuzz_targets import open_target
    target = open_target(arguments.target, folder)
    corpus = folder / "corpus" if arguments.corpus is None else arguments.corpus
    _write_seeds(target, corpus)
    dictionary = folder / "tokens"
    dictionary.write_text("".join(f'"{_escaped(token)}"\n' for token in target.tokens if token))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        changed = atheris.Mutate(data, max_size) if chance.random() < 0.3 else target.mutate(data, chance)
        return changed[:max_size]

    options = {
        "atheris_runs": arguments.runs,
        "seed": arguments.seed,
        "timeout": TIMEOUT_S,
        "rss_limit_mb": MAX_RSS_MB,
        "max_len": MAX_INPUT_BYTES,
        "dict": dictionary,
        "print_final_stats": 1,
    }
    command = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)]
    atheris.Setup(command, target.check, custom_mutator=mutate)
    atheris.Fuzz()


def _write_seeds(target: "Target", corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
