"""Processes that prepare samples: they never outlive the training that they are for, and what they bring can be pinned."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import ValidatedDataset
from yivl_core.data.images import ImageError
from yivl_core.data.validation import validate_dataset
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.training.packing import PackedBatch
from yivl_core.training.samples import SampleReader

SCRIPT = """
import sys, time
from pathlib import Path

from yivl_core.data.dataset import ValidatedDataset
from yivl_core.training.samples import SampleReader, load_rows

if __name__ == "__main__":
    reader = SampleReader(ValidatedDataset.open(sys.argv[1]), Path(sys.argv[2]), None)
    rows = load_rows([reader], ((0, [number % 12]) for number in range(10**6)), 1000, 2)
    next(rows)
    print("reading", flush=True)
    time.sleep(600)
"""


def is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_images_that_were_fetched_are_found_in_the_cache_of_this_machine(
    web: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YIVL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text(f'{{"query": "a", "response": "b", "images": ["{web.image(1)}"]}}\n')
    config = ValidationConfig(dataset=(str(tmp_path / "rows.jsonl"),), output=str(tmp_path / "out"), allow_url=(web.url,))
    assert validate_dataset(config).num_images == 1
    dataset = ValidatedDataset.open(config.output)
    before = SampleReader(dataset, tiny_checkpoint, None).load(0)
    (tmp_path / "cache").rename(tmp_path / "moved")
    with pytest.raises(ImageError, match=r"rows\.jsonl:1: image .*1\.png\" is no longer there .*; validate the dataset again"):
        SampleReader(dataset, tiny_checkpoint, None).load(0)
    monkeypatch.setenv("YIVL_CACHE", str(tmp_path / "moved"))
    after = SampleReader(dataset, tiny_checkpoint, None).load(0)
    assert torch.equal(after.pixels.squares(), before.pixels.squares())


@pytest.mark.slow
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_training_that_is_killed(
    death: signal.Signals, dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "reads.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "reads.py"), str(dataset), str(tiny_checkpoint)]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        assert training.stdout is not None
        assert training.stdout.readline() == "reading\n"
        training.send_signal(death)  # to it alone
        training.wait()
        deadline = time.monotonic() + 30
        while is_running(training.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not is_running(training.pid), "its workers live on"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(training.pid, signal.SIGKILL)
        training.communicate()


def test_everything_of_a_row_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which needs a GPU: here each tensor says that it was asked."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.data_ptr()) or tensor)
    tensors = {name: torch.arange(number + 2) for number, name in enumerate(PackedBatch.__annotations__) if name != "pixels"}
    pixels = UnpaddedPixels(rows=torch.zeros(1, 2, 3), places=torch.zeros(1), num_images=1, padding=(1, 2, 3))
    tensors.pop("lengths")
    row = PackedBatch(**tensors, lengths=(3, 2), pixels=pixels).pin_memory()
    expected = [tensor.data_ptr() for tensor in tensors.values()]
    assert sorted(pinned) == sorted([*expected, pixels.rows.data_ptr(), pixels.places.data_ptr()])
    assert row.max_length == 3
