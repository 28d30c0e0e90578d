"""Rows made ready by helpers: the same as here, in order, with their errors; helpers that die, and that are left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from yivl_core.data.findings import Source
from yivl_core.data.images import ImageError, ImageReference, ImageStore
from yivl_core.data.inputs import InputSource, open_input
from yivl_core.data.reading import InputRow
from yivl_core.errors import ChildFailedError, StorageError
from yivl_core.inference.preparation import PlannedRow, PreparedRow, RowPreparer, preparing
from yivl_core.processing.processor import Processor

CPU, BESIDE_A_GPU = torch.device("cpu"), torch.device("cuda")  # where the model would run


def double(number: int) -> int:
    return 2 * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise StorageError("the disk is gone")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def name_process(_: int) -> tuple[int, torch.Tensor]:
    time.sleep(0.05)
    return os.getpid(), torch.arange(3)


def same(one: PreparedRow, other: PreparedRow) -> bool:
    told = [
        (row.record_index, row.row, row.sample_id, row.images, row.error_kind, row.error, row.inputs is None)
        for row in (one, other)
    ]
    if told[0] != told[1] or one.inputs is None or other.inputs is None:
        return told[0] == told[1]
    return (
        np.array_equal(one.inputs.input_ids, other.inputs.input_ids)
        and torch.equal(one.inputs.pixels.squares(), other.inputs.pixels.squares())
        and one.inputs.num_shared == other.inputs.num_shared
    )


def test_rows_from_other_processes_are_those_made_here(shared_data: Path, processor: Processor) -> None:
    source = InputSource(images=str(shared_data / "data" / "awkward"), prompt="What is this?")
    rows = [
        PlannedRow(record_index=n, occurrence=1 + (n == 1), was_found=True, row=row, images=row.images)
        for n, row in enumerate(open_input(source).rows())
    ]
    assert len(rows) > 20
    failure = ImageError("fetch_failed", "the server says 500", "try again")
    rows.append(replace(rows[0], record_index=len(rows), images=(failure,)))
    preparer = RowPreparer(ImageStore(), processor, 1024)
    with preparing(preparer.prepare, BESIDE_A_GPU, num_ahead=7) as prepare:
        found = list(prepare(rows))
    expected = [preparer.prepare(row) for row in rows]
    assert {row.inputs is None for row in expected} == {True, False}
    assert (expected[-1].error_kind, expected[-1].error) == ("fetch_failed", "the server says 500; try again")
    assert [same(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(rows)


def test_rows_that_hold_large_files_are_taken_fewer_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yivl_core.ahead.MAX_BYTES_AHEAD", 1000)
    taken: list[int] = []

    def rows() -> Iterator[PlannedRow]:
        for number, size in enumerate([100, 500, 500, 5000, 10, 10, 2000, 2000]):
            taken.append(number)
            image = ImageReference(uri="a", address="a", root=Path(), data=bytes(size))
            row = InputRow(source=Source(file="f"), images=(image,))
            yield PlannedRow(record_index=number, occurrence=1, was_found=True, row=row, images=row.images)

    with preparing(lambda row: row.record_index, CPU) as prepare:
        seen = [(number, max(taken)) for number in prepare(rows())]
    assert seen == [(0, 2), (1, 2), (2, 3), (3, 3), (4, 6), (5, 6), (6, 6), (7, 7)]


@pytest.mark.parametrize("device", [CPU, BESIDE_A_GPU])
def test_items_come_in_order_and_are_taken_only_some_ahead(device: torch.device) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with preparing(double, device, num_ahead=4) as prepare:
        given = prepare(items())
        assert [next(given) for _ in range(3)] == [0, 2, 4]
        assert len(taken) <= 7
        assert list(given) == [2 * number for number in range(3, 20)]
        assert list(prepare([1])) == [2]


@pytest.mark.parametrize("device", [CPU, BESIDE_A_GPU])
def test_an_error_is_raised_as_it_was(device: torch.device) -> None:
    with preparing(fail_at_three, device) as prepare, pytest.raises(StorageError, match=r"^the disk is gone$"):
        list(prepare(range(10)))


def test_a_helper_that_dies_is_told() -> None:
    with preparing(die_at_three, BESIDE_A_GPU) as prepare, pytest.raises(ChildFailedError, match="prepares images has died"):
        list(prepare(range(10)))


def test_work_is_done_elsewhere_beside_a_gpu_and_here_beside_a_cpu() -> None:
    for device, is_here in ((CPU, True), (BESIDE_A_GPU, False)):
        with preparing(name_process, device) as prepare:
            found = list(prepare(range(8)))
        assert {process == os.getpid() for process, _ in found} == {is_here}
        assert torch.equal(found[0][1], torch.arange(3))


@pytest.mark.slow
@pytest.mark.parametrize("end", [lambda process: process.kill(), lambda process: process.terminate()])
def test_helpers_do_not_outlive_their_parent(end: Callable[[subprocess.Popen[bytes]], None]) -> None:
    script = (
        "import time, torch\n"
        "from yivl_core.inference.preparation import preparing\n"
        "with preparing(str, torch.device('cuda')) as prepare:\n"
        "    next(prepare(range(9)))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    helpers = psutil.Process(process.pid).children(recursive=True)
    assert len(helpers) > 1
    end(process)
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(helpers, timeout=20)
    assert not alive
