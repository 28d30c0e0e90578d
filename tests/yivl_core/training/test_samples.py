"""Processes that prepare samples: they never outlive the training that they are for, and what they bring can be pinned."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.training.packing import PackedBatch

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
