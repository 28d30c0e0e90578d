"""Runs that are killed with SIGKILL at any moment and gone on with have the content of one that was left alone.

`make test` kills 20 runs; `make drills` kills 100, and starts each as users do: `python -m yivl_core infer`.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from yivl_core.doors import ShardedInferenceConfig
from yivl_core.outputs.manifest import read_manifest
from yivl_core.outputs.predictions import content_digest, list_parts, read_predictions

NUM_KILLS = int(os.environ.get("YIVL_NUM_KILLS", "20"))
IS_DRILL = NUM_KILLS > 20
NUM_IMAGES = 32
NUM_PARTS = 7
Run = Callable[..., int]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes(b"no image")
    (folder / "31.png").write_bytes((folder / "30.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def run(merged: str, images: Path) -> Iterator[Run]:
    """Runs or goes on with an output; so many seconds after it has so many parts it is killed, with all that it started."""

    def settings(output: Path) -> str:
        values: dict[str, Any] = {"model": merged, "images": str(images), "task": "ocr", "max_new_tokens": 10, "temperature": 2.0}
        return ShardedInferenceConfig(
            **values, output=str(output), shard_size=5, batch_size=4, contact_sheet=5, resume=True, device="cpu"
        ).model_dump_json()

    command = [sys.executable, str(Path(__file__).with_name("forked_runs.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run_forked(output: Path, kill_after_s: float | None, num_parts: int = 0) -> int:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(settings(output) + "\n")
            server.stdin.flush()
            kill_later(int(server.stdout.readline()), kill_after_s, output, num_parts)
            return int(server.stdout.readline())

        def run_command(output: Path, kill_after_s: float | None, num_parts: int = 0) -> int:
            path = output.with_suffix(".json")
            path.write_text(settings(output), encoding="utf-8")
            process = subprocess.Popen(
                [sys.executable, "-m", "yivl_core", "infer", str(path)], start_new_session=True, stdout=subprocess.DEVNULL
            )
            kill_later(process.pid, kill_after_s, output, num_parts)
            return process.wait()

        yield run_command if IS_DRILL else run_forked
        server.stdin.close()


def kill_later(group: int, after_s: float | None, output: Path, num_parts: int) -> None:
    if after_s is not None:
        until_s = time.monotonic() + 120
        while num_parts and len(list_parts(str(output))) < num_parts and time.monotonic() < until_s:
            time.sleep(0.005)
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):  # it has ended before
            os.killpg(group, signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The digest of a run that was left alone, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder / "first", None) == 0  # the server has imported all by then
    output = folder / "p"
    started = time.monotonic()
    assert run(output, None) == 0
    duration_s = time.monotonic() - started
    assert content_digest(str(folder / "first")) == content_digest(str(output))
    rows = list(read_predictions(str(output)))
    assert [row.record_index for row in rows] == list(range(NUM_IMAGES))
    assert len({row.sample_id for row in rows}) == NUM_IMAGES
    assert len({row.response for row in rows}) > NUM_IMAGES / 2
    return content_digest(str(output)), duration_s


@pytest.fixture(scope="module")
def states() -> Iterator[list[tuple[bool, int]]]:
    """What the killed runs had left: whether there was a plan, and how many parts."""
    seen: list[tuple[bool, int]] = []
    yield seen
    if len(seen) >= 20:  # not where single tests were chosen
        assert len(set(seen)) >= 4, f"the kills hit no different states: {seen}"


@pytest.mark.parametrize("number", range(NUM_KILLS))
def test_a_killed_run_goes_on_to_the_same_content(
    number: int, run: Run, whole: tuple[str, float], states: list[tuple[bool, int]], tmp_path: Path
) -> None:
    digest, duration_s = whole
    output, chance = tmp_path / "p", random.Random(number)
    if number % 2:
        moment_s, num_parts = chance.uniform(0, duration_s), 0
    else:  # however slow this machine is just now
        moment_s, num_parts = chance.uniform(0, duration_s / NUM_PARTS), chance.randint(1, NUM_PARTS)
    assert run(output, moment_s, num_parts) in (0, -signal.SIGKILL)
    states.append(((output / "plan.json").exists(), len(list_parts(str(output)))))
    assert run(output, None) == 0, (
        f"after a kill at {moment_s:.3f} of {duration_s:.3f} s behind {num_parts} parts, with {states[-1]}"
    )
    rows = list(read_predictions(str(output)))
    assert [row.record_index for row in rows] == list(range(NUM_IMAGES))
    assert content_digest(str(output)) == digest
    manifest = read_manifest(f"{output}/manifest.json")
    assert manifest is not None
    assert manifest["content_digest"] == digest
    assert json.loads((output / "plan.json").read_text())["num_records"] == NUM_IMAGES
    assert (output / "contact-sheet.html").exists()


def test_a_run_that_is_killed_again_and_again_gets_there(run: Run, whole: tuple[str, float], tmp_path: Path) -> None:
    digest, duration_s = whole
    num_kills = 0
    while run(tmp_path / "p", duration_s * (0.3 + 0.1 * num_kills)) != 0:
        num_kills += 1
        assert num_kills < 20
    assert num_kills > 0
    assert content_digest(str(tmp_path / "p")) == digest
