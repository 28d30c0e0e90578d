import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yivl_core.data.checks import row_workers
from yivl_core.data.checks.checked_rows import RowBlock
from yivl_core.data.checks.image_checks import ImageChecker
from yivl_core.data.checks.row_checks import CheckSettings, RowChecker
from yivl_core.data.checks.row_workers import check_rows
from yivl_core.data.dataset import parse_line
from yivl_core.data.decoding import Depth
from yivl_core.data.images import ImageInfo, ImageReference, ImageStore
from yivl_core.data.reading import RowReader
from yivl_core.data.rows.mixed_files import FileRows
from yivl_core.data.rows.raw_row import RawRow
from yivl_core.data.rows.raw_rows import split_raw_rows
from yivl_core.errors import StorageError


class CountingStore(ImageStore):
    """Counts how often each image is loaded, and waits a little for some, so that threads finish out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def inspect(
        self, image: ImageReference, depth: Depth = "full", path: Path | None = None
    ) -> tuple[ImageInfo, tuple[str, ...]]:
        with self._lock:
            self.loads[image.uri] += 1
        if image.uri.startswith("1"):
            threading.Event().wait(0.005)
        if image.uri == "disk.png":
            raise StorageError("the disk failed")
        return super().inspect(image, depth, path)


def checker_of(store: ImageStore) -> RowChecker:
    return RowChecker(CheckSettings(), ImageChecker(store))


def file_rows(root: Path, *groups: tuple[str, ...]) -> FileRows:
    def rows() -> Iterator[RawRow]:
        for number, names in enumerate(groups, 1):
            yield RawRow(line=number, json=json.dumps({"query": "a", "images": names}).encode())

    return RowReader(file="a.jsonl", folder=root, image_root=None, purpose="inference"), rows()


def test_rows_keep_their_order_and_an_image_named_often_is_decoded_once(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(20):
        make_image(f"{number}.png")
    groups = [(f"{number % 20}.png", f"{(number + 1) % 20}.png") for number in range(300)]
    store = CountingStore()
    blocks = list(check_rows([file_rows(tmp_path, *groups)], checker_of(store), num_workers=0))
    assert [line for block in blocks for line in block.lines.tolist()] == list(range(1, 301))
    assert [image[1] for block in blocks for image in block.images] == [name for group in groups for name in group]
    assert store.loads == Counter({f"{number}.png": 1 for number in range(20)})
    assert not any(block.noted for block in blocks)
    assert b"".join(block.records for block in blocks).count(b"\n") == 300


def test_only_a_bounded_number_of_rows_is_read_ahead(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("a.png")
    num_read = 0

    def counted(rows: Iterator[RawRow]) -> Iterator[RawRow]:
        nonlocal num_read
        for row in rows:
            num_read += 1
            yield row

    reader, rows = file_rows(tmp_path, *([("a.png",)] * 1000))
    blocks = check_rows([(reader, counted(iter(rows)))], checker_of(ImageStore()), num_workers=0)
    num_checked = next(blocks).num_rows
    assert num_read < 100
    assert num_checked + sum(block.num_rows for block in blocks) == 1000


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_long_rows_do_not_add_up_in_a_block(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_workers, "_NUM_SINGLE_ROWS", 0)
    text, num_rows = "x" * 100_000, 40
    rows = [json.dumps({"query": text})] * num_rows
    contents = {".jsonl": "\n".join(rows), ".json": f"[{','.join(rows)}]", ".csv": "\n".join(["query", *([text] * num_rows)])}
    path = tmp_path / f"data{suffix}"
    path.write_text(contents[suffix])
    reader = RowReader.of_file(str(path), None, "inference")
    blocks = check_rows([(reader, split_raw_rows(str(path), 200_000))], checker_of(ImageStore()), num_workers=0)
    sizes = [block.num_rows for block in blocks]
    assert sum(sizes) == num_rows
    assert max(sizes) == 3


def test_images_are_counted_where_their_rows_are_rejected_too(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("a.png")
    checker = checker_of(ImageStore())
    reader, rows = file_rows(tmp_path, ("a.png", "gone.png"), ("a.png",))
    blocks = list(check_rows([(reader, rows)], checker, 0))
    assert [(row.line, row.text is None) for block in blocks for row in block.noted] == [(1, False)]
    assert checker.images.num_checked == 2


@pytest.mark.parametrize("num_rows_before", [0, 50])
def test_a_failing_disk_stops_the_check(num_rows_before: int, tmp_path: Path) -> None:
    groups = [*([()] * num_rows_before), ("disk.png",), ("disk.png",)]
    blocks = check_rows([file_rows(tmp_path, *groups)], checker_of(CountingStore()), num_workers=0)
    with pytest.raises(StorageError, match="the disk failed"):
        list(blocks)


def test_no_thread_stays_behind_when_the_reader_stops(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("a.png")
    blocks = check_rows([file_rows(tmp_path, *([("a.png",)] * 200))], checker_of(ImageStore()), num_workers=0)
    next(blocks)
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("row")]


def test_an_item_that_stands_on_several_lines_is_one_line_of_the_records(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("a.png")
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"query": "a", "images": ["a.png"], "id": str(number)} for number in range(3)], indent=2))
    reader = RowReader.of_file(str(path), None, "inference")
    block = checker_of(ImageStore()).check(RowBlock(reader=reader, rows=list(split_raw_rows(str(path), 1000))))
    records = [parse_line(line.decode()) for line in block.records.splitlines()]
    assert [(one.record.id, one.source.line) for one in records if one is not None] == [("0", 2), ("1", 9), ("2", 16)]
    assert len(records) == 3


def test_a_question_that_takes_the_place_of_what_rows_say_does_so_in_plain_rows(tmp_path: Path) -> None:
    reader = RowReader(file="a.jsonl", folder=tmp_path, image_root=None, purpose="inference", query="Read it.")
    rows = [RawRow(line=1, json=b'{"query": "a"}'), RawRow(line=2, json=b'{"id": "b"}')]
    block = checker_of(ImageStore()).check(RowBlock(reader=reader, rows=rows))
    assert [json.loads(line)["query"] for line in block.records.splitlines()] == ["Read it.", "Read it."]
