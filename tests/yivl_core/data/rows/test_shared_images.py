import csv
import gzip
import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.raw_row import RawRow
from yivl_core.data.rows.raw_rows import RowOptions, split_raw_rows
from yivl_core.data.rows.row_counts import count_rows
from yivl_core.errors import DatasetError

ONE, TWO = "/9j/" + "A" * 80, "iVBORw" + "B" * 80


def table(*rows: Sequence[str], names: Sequence[str] = ("index", "image", "question")) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows([names, *rows])
    return text.getvalue().encode()


def read(path: Path, content: bytes, *columns: str, first: int = 0) -> list[RawRow]:
    path.write_bytes(content)
    return list(split_raw_rows(str(path), 10_000, RowOptions(mapping=ColumnMapping.of_options(columns)), first))


def images(rows: list[RawRow]) -> list[object]:
    return [row.findings[0].message if row.values is None else row.values.get("image") for row in rows]


def test_a_row_gets_the_image_of_the_row_that_it_names_wherever_that_stands(tmp_path: Path) -> None:
    content = table(["5", "7", "a"], ["1", ONE, "b"], ["2", " 1 ", "c"], ["7", TWO, "d"], ["8", "2", "e"])
    for rows in (read(tmp_path / "a.tsv", content), read(tmp_path / "a.tsv.gz", gzip.compress(content))):
        assert images(rows) == [TWO, ONE, ONE, TWO, ONE]
        assert [row.values and row.values.get("cluster_id") for row in rows] == ["7", None, "1", None, "1"]
        assert rows[0].num_bytes > len(TWO)
    assert images(read(tmp_path / "a.tsv", content, first=2)) == [ONE, TWO, ONE]
    assert count_rows(str(tmp_path / "a.tsv"), 10_000) == 5


def test_a_name_that_leads_to_no_image_is_an_error_of_its_row(tmp_path: Path) -> None:
    rows = read(
        tmp_path / "a.tsv",
        table(
            ["1", ONE, "a"], ["2", "9", "b"], ["3", "4", "c"], ["4", "3", "d"], ["5", "5", "e"], ["6", "7", "f"], ["7", "", "g"]
        ),
    )
    assert images(rows) == [
        ONE,
        '`image` is "9", which is neither an image nor the index of a row',
        '`image` is "4", which leads from row to row and back here',
        '`image` is "3", which leads from row to row and back here',
        '`image` is "5", which leads from row to row and back here',
        '`image` is "7", and the row of that index holds no image',
        None,
    ]
    assert [(row.line, [one.kind for one in row.findings]) for row in rows[1:3]] == [
        (3, ["image_missing"]),
        (4, ["image_missing"]),
    ]


def test_a_path_is_no_name_of_a_row(tmp_path: Path) -> None:
    assert images(read(tmp_path / "a.tsv", table(["1", "a.png", "a"], ["2", "b/2", "b"]))) == ["a.png", "b/2"]


def test_rows_of_our_own_format_are_left_alone(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.tsv", table(["1", ONE, "a"], ["2", "1", "b"], names=("index", "image", "query")))
    assert images(rows) == [ONE, "1"]
    rows = read(tmp_path / "a.tsv", table(["1", ONE, "a"], ["2", "1", "b"]), "query=question")
    assert images(rows) == [ONE, "1"]


def test_rows_before_the_damage_are_read(tmp_path: Path) -> None:
    content = gzip.compress(table(*([str(number), "0" if number else ONE, "q"] for number in range(2000))))
    (tmp_path / "a.tsv.gz").write_bytes(content[: len(content) // 2])
    rows: list[RawRow] = []
    with pytest.raises(DatasetError, match="damaged or cut off"):
        rows.extend(split_raw_rows(str(tmp_path / "a.tsv.gz"), 10_000))
    assert len(rows) > 100
    assert images(rows[:100]) == [ONE] * 100


def test_memory_does_not_depend_on_the_file(tmp_path: Path) -> None:
    image = "/9j/" + "A" * 1_000_000
    path = tmp_path / "a.tsv"
    with path.open("wb") as file:
        file.write(table(["0", "59", "q"]))
        for number in range(1, 60):
            file.write(table([str(number), image, "q"]).split(b"\n", 1)[1])
    tracemalloc.start()
    num_images = sum(row.values is not None and row.values["image"] == image for row in split_raw_rows(str(path), 2_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_images == 60
    assert peak < 20_000_000
