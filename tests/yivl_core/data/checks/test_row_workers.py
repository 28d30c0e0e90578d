"""Worker processes against threads of this process: the same answers, and nothing is left, however a validation ends."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from yivl_core.data.checks import row_worker, row_workers
from yivl_core.data.checks.checked_rows import RowBlock
from yivl_core.data.checks.image_checks import ImageChecker
from yivl_core.data.checks.row_checks import CheckSettings, RowChecker
from yivl_core.data.checks.row_workers import RowWorkers
from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.decoding import Depth
from yivl_core.data.images import ImageInfo, ImageReference, ImageStore
from yivl_core.data.reading import RowReader
from yivl_core.data.rows.raw_row import RawRow
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import ChildFailedError, StorageError
from yivl_core.progress import Progress

GOOD = {"query": "Read it.", "response": "it"}


@pytest.fixture
def early_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers take over behind the fifth image, a few rows at a time; the list holds those that were started."""
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            started.append(self)

    monkeypatch.setattr(row_workers, "_NUM_IMAGES_FOR_WORKERS", 5)
    monkeypatch.setattr(row_workers, "_ROWS_PER_BLOCK", 3)
    monkeypatch.setattr(row_workers, "_BLOCKS_AHEAD_OF_A_THREAD", 1)  # so that the first images are counted early
    monkeypatch.setattr("yivl_core.data.checks.row_workers.subprocess.Popen", Recorded)
    yield started
    assert all(process.returncode is not None for process in started)


def checker_of(store: ImageStore) -> RowChecker:
    return RowChecker(CheckSettings(), ImageChecker(store))


def block_of(root: Path, *names: str) -> RowBlock:
    rows = [RawRow(line=number, json=json.dumps({**GOOD, "images": [name]}).encode()) for number, name in enumerate(names, 1)]
    return RowBlock(reader=RowReader(file="a.jsonl", folder=root, image_root=None, purpose="training"), rows=rows)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "inputs.parquet"}


@pytest.fixture
def defective(make_image: Callable[..., Path], write_rows: Callable[..., Path], tmp_path: Path) -> Path:
    """A dataset in which every third line or image has some defect."""
    for number in range(40):
        make_image(f"{number}.png", size=(10 + number, 9))
    make_image("tiny.png", size=(3, 3))
    make_image("wrong.jpg").rename(tmp_path / "wrong.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    frames = [Image.new("L", (9, 9), colour) for colour in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    strange = ["tiny.png", "wrong.png", "cut.png", "text.png", "empty.png", "moving.gif", "gone.png", "../0.png", "/etc/hosts"]
    strange += ["https://example.com/a.png", "half \ud83d.png", "a\x00.png", "中.png", ""]
    rows: list[dict[str, Any] | str] = []
    for number in range(40):
        rows.append({**GOOD, "images": [f"{number}.png"], "id": str(number)})
        rows.append(json.dumps({**GOOD, "images": [strange[number % len(strange)], f"{number // 2}.png"], "history": []}))
        rows.append(["{", {**GOOD, "query": 7}, {**GOOD, "more": 1}][number % 3])  # type: ignore[arg-type]
    return write_rows(*rows)


def test_worker_processes_and_threads_give_the_same_bytes(
    defective: Path, early_workers: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    def validated(num_workers: int) -> dict[str, bytes]:
        output = str(tmp_path / f"validated-{num_workers}")
        summary = validate_dataset(ValidationConfig(dataset=(str(defective),), output=output, num_workers=num_workers))
        assert summary.findings_by_kind.keys() >= {"image_unreadable", "path_escape", "url_not_allowed", "animated", "tiny"}
        return contents(output)

    alone = validated(0)
    assert early_workers == []
    assert validated(1) == alone
    assert len(early_workers) == 1
    assert validated(3) == alone
    assert 2 <= len(early_workers) - 1 <= 3


def test_a_small_dataset_pays_for_no_process(defective: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("yivl_core.data.checks.row_workers.subprocess.Popen", fail)
    config = ValidationConfig(dataset=(str(defective),), output=str(tmp_path / "out"), num_workers=4)
    assert validate_dataset(config).num_lines == 120


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_rows_of_other_formats_go_to_processes_as_well(
    suffix: str,
    make_image: Callable[..., Path],
    early_workers: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(120):
        make_image(f"{number}.png")
        rows.append({"query": f"{number}\n中", "response": "it" if number % 7 else "", "images": json.dumps([f"{number}.png"])})
    path = tmp_path / f"data{suffix}"
    if suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["query", "response", "images"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps([{**row, "images": json.loads(row["images"])} for row in rows]))

    def validated(num_workers: int) -> dict[str, bytes]:
        output = str(tmp_path / f"validated-{num_workers}")
        summary = validate_dataset(ValidationConfig(dataset=(str(path),), output=output, num_workers=num_workers))
        assert (summary.num_records, summary.num_quarantined) == (102, 18)
        return contents(output)

    alone = validated(0)
    assert early_workers == []
    assert validated(2) == alone
    assert early_workers


def test_tokens_are_counted_wherever_the_rows_are_checked(
    make_image: Callable[..., Path],
    write_rows: Callable[..., Path],
    early_workers: list[subprocess.Popen[bytes]],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_workers, "_NUM_ROWS_FOR_WORKERS", 10)
    make_image("a.png")
    path = write_rows(*({"query": "x" * number, "response": "1", "images": ["a.png"]} for number in range(1, 101)))
    config = {"dataset": (str(path),), "model": str(tiny_checkpoint), "max_length": 200}

    def validated(num_workers: int) -> dict[str, bytes]:
        output = str(tmp_path / f"validated-{num_workers}")
        summary = validate_dataset(ValidationConfig(**config, output=output, num_workers=num_workers))
        assert 0 < summary.findings_by_kind["too_long"] < 100
        return contents(output)

    alone = validated(0)
    assert early_workers == []
    assert validated(2) == alone
    assert early_workers
    assert json.loads(alone["report.json"])["tokens"]["longest_at"] == f"{path}:100"


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), RuntimeError("bug")])
def test_a_validation_that_is_stopped_leaves_no_process(
    cause: BaseException, defective: Path, early_workers: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    def stop(_: Progress) -> None:
        raise cause

    with pytest.raises(type(cause)):
        validate_dataset(ValidationConfig(dataset=(str(defective),), output=str(tmp_path / "out"), num_workers=2), stop)
    assert early_workers
    assert [process.returncode for process in early_workers] == [-signal.SIGKILL] * len(early_workers)


def test_a_process_that_dies_is_told_and_ends_the_check(
    make_image: Callable[..., Path], early_workers: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    names = [make_image(f"{number}.png").name for number in range(6)]
    with closing(RowWorkers(checker_of(ImageStore()), num_workers=1)) as workers:
        workers.submit(block_of(tmp_path, *names[:5])).result()
        assert early_workers == []
        assert workers.submit(block_of(tmp_path, names[5])).result().images[0][1] == names[5]
        early_workers[0].kill()
        with pytest.raises(ChildFailedError, match=r"was killed by SIGKILL \(out of memory, perhaps\); run it again, with fewer"):
            workers.submit(block_of(tmp_path, names[5])).result()


def test_a_process_that_cannot_start_ends_the_check(
    make_image: Callable[..., Path], early_workers: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_workers, "_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    monkeypatch.setattr(row_workers, "_NUM_IMAGES_FOR_WORKERS", 0)
    message = r"a process that checks rows ended with exit code 3; run it again"
    with (
        closing(RowWorkers(checker_of(ImageStore()), num_workers=1)) as workers,
        pytest.raises(ChildFailedError, match=message),
    ):
        workers.submit(block_of(tmp_path, make_image("a.png").name)).result()
    assert early_workers


def test_cells_that_are_nested_too_deep_for_python_reach_no_process(
    early_workers: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_workers, "_NUM_ROWS_FOR_WORKERS", 10)
    deep = [f"q,r,{'[' * depth}{']' * depth}" for depth in range(900, 1000)]
    (tmp_path / "data.csv").write_text("\n".join(["query,response,meta", *(["a,b,"] * 20), *deep]))
    config = ValidationConfig(dataset=(str(tmp_path / "data.csv"),), output=str(tmp_path / "out"), num_workers=1)
    summary = validate_dataset(config)
    assert (summary.num_records, summary.num_quarantined) == (20, 100)
    assert early_workers


@pytest.mark.parametrize("num_bytes", [0, 5, -1])
def test_an_answer_that_ends_early_is_a_dead_process_and_no_answer(num_bytes: int, tmp_path: Path) -> None:
    whole = row_worker.answer(block_of(tmp_path, "gone.png"), checker_of(ImageStore()))
    with pytest.raises(row_worker.BrokenStreamError):
        row_worker.read_reply(io.BytesIO(whole[:num_bytes]), block_of(tmp_path).reader)


def test_a_failing_disk_is_told_by_a_process_as_by_a_thread(tmp_path: Path) -> None:
    class FailingStore(ImageStore):
        def inspect(
            self, image: ImageReference, depth: Depth = "full", path: Path | None = None
        ) -> tuple[ImageInfo, tuple[str, ...]]:
            raise StorageError(f"{image.address}: the disk failed") from OSError(5, "Input/output error")

    block = row_worker.read_request(io.BytesIO(row_worker.write_request(block_of(tmp_path, "a.png"))))
    assert block == block_of(tmp_path, "a.png")
    reply = row_worker.answer(block, checker_of(FailingStore()))
    with pytest.raises(StorageError, match=r"^a\.png: the disk failed$") as raised:
        row_worker.read_reply(io.BytesIO(reply), block.reader)
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_group", "exit_code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, True, 130), (signal.SIGTERM, False, 130), (signal.SIGKILL, False, -9)],
)
def test_no_process_outlives_a_validation_that_gets_a_signal(
    number: signal.Signals,
    to_group: bool,
    exit_code: int,
    make_image: Callable[..., Path],
    write_rows: Callable[..., Path],
    tmp_path: Path,
) -> None:
    make_image("a.png")
    names = [f"{number}.png" for number in range(4000)]
    for name in names:
        os.link(tmp_path / "a.png", tmp_path / name)
    settings = {"dataset": [str(write_rows(*({**GOOD, "images": [name]} for name in names)))], "num_workers": 2}
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "output": str(tmp_path / "out")}))
    # Validation stops soon after its hundredth record, so that it is in the middle when the signal comes.
    code = """
import sys, threading
from yivl_core import __main__, child
from yivl_core.data import validation
from yivl_core.data.checks import row_workers
row_workers._NUM_IMAGES_FOR_WORKERS = 5
validation._ROWS_PER_PROGRESS = 100
write = __main__.json_lines
def write_and_wait(event):
    write_event(event)
    if event["event"] == "progress":
        threading.Event().wait(300)
def json_lines(file):
    global write_event
    write_event = write(file)
    return write_and_wait
__main__.json_lines = json_lines
sys.argv[1:] = ["validate", sys.argv[1]]
sys.exit(__main__.main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "settings.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert 100 <= json.loads(process.stdout.readline())["done"] < len(names)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert any("yivl_core.data.checks.row_worker" in worker.cmdline() for worker in workers)
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (exit_code, "")
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert len(gone) == len(workers)


def test_a_worker_ends_with_its_stdin_also_while_it_is_still_loading() -> None:
    command = [*row_workers._COMMAND, json.dumps(asdict(CheckSettings()))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, b"")


def test_an_image_that_takes_more_memory_than_a_process_may_is_a_finding(
    make_image: Callable[..., Path],
    write_rows: Callable[..., Path],
    early_workers: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file of 60 kB that holds 60 million pixels, of four bytes each."""
    monkeypatch.setattr(row_workers, "_NUM_ROWS_FOR_WORKERS", 1)
    make_image("small.png")
    Image.new("RGBA", (12_000, 5000)).save(tmp_path / "large.png", compress_level=9)
    rows = [{**GOOD, "images": [name]} for name in ("small.png", "large.png", "small.png")]
    path = write_rows(*rows)

    def validated(name: str, max_worker_bytes: int) -> dict[str, Any]:
        settings = {"output": str(tmp_path / name), "cache": str(tmp_path / f"cache-{name}"), "num_workers": 1}
        validate_dataset(ValidationConfig(dataset=(str(path),), max_worker_bytes=max_worker_bytes, **settings))
        report: dict[str, Any] = json.loads((tmp_path / name / "report.json").read_text())
        return report

    assert validated("wide", 2_000_000_000)["num_records"] == 3
    narrow = validated("narrow", 250_000_000)
    assert narrow["num_records"] == 2
    assert narrow["unreadable_images"] == {"out_of_memory": 1}
    assert early_workers
