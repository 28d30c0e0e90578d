import csv
import io
import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yivl_core.data.configuration import Purpose
from yivl_core.data.findings import Source
from yivl_core.data.rows.raw_row import Lines, RawRow, lines_of, parse_raw_row
from yivl_core.data.rows.raw_rows import RowOptions, split_lines, split_raw_rows
from yivl_core.data.rows.strict_json import StrictJsonReader
from yivl_core.errors import ConfigurationError, StorageError

PURPOSES: tuple[Purpose, ...] = ("training", "inference")
GOOD = '{"query": "Read it."}'


def rows_of(path: Path, content: bytes | str, max_line_bytes: int = 10_000) -> list[RawRow]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    reader = StrictJsonReader()
    return [parse_raw_row(row, reader) for row in split_raw_rows(str(path), max_line_bytes)]


def places(rows: list[RawRow]) -> list[tuple[int | None, list[str]]]:
    return [(Source.of_place("", row.line).line, [finding.kind for finding in row.findings]) for row in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.sampled_from([GOOD, "", "  \t", '{"query": "a\u2028b\u0085c"}', '{"query": "lone \\r"}\r', "{", "x" * 200]),
        max_size=12,
    ),
    final_newline=st.booleans(),
)
def test_only_a_newline_byte_ends_a_line_and_lines_are_counted_from_one(
    tmp_path: Path, lines: list[str], final_newline: bool
) -> None:
    rows = rows_of(tmp_path / "a.jsonl", "\n".join(lines) + "\n" * final_newline, max_line_bytes=100)
    expected = [number for number, line in enumerate(lines, 1) if line.strip()]
    assert [row.line for row in rows if row.line] == expected
    assert [row.line for row in rows if [finding.kind for finding in row.findings] == ["line_too_long"]] == [
        number for number, line in enumerate(lines, 1) if len(line) > 100
    ]
    if not expected:
        assert places(rows) == [(None, ["empty_file"])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.sampled_from(
            [
                GOOD.encode(),
                b"",
                b"  \t",
                b'{"query": "lone \\r"}\r',
                b"{",
                b"x" * 99,
                b"x" * 100,
                b"x" * 101 + b"\r",
                b"x" * 99 + b"\r\r",
                b"\xff",
            ]
        )
        | st.binary(max_size=30),
        max_size=12,
    ),
    final_newline=st.booleans(),
    block_bytes=st.sampled_from([1, 7, 150, 1 << 18]),
    start=st.sampled_from([b"", b"\xef\xbb\xbf", b"[", b"\x1f\x8b"]),
)
def test_lines_in_blocks_are_the_same_rows(
    tmp_path: Path, lines: list[bytes], final_newline: bool, block_bytes: int, start: bytes
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + b"\n".join(lines) + b"\n" * final_newline)
    parts = list(split_lines(str(path), 100, RowOptions(), lambda: block_bytes))
    rows = [row for part in parts for row in (lines_of(part, 100) if isinstance(part, Lines) else [part])]
    assert rows == list(split_raw_rows(str(path), 100))


@pytest.mark.parametrize("block_bytes", [1, 1 << 18])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a":1}\nxxxxxxxxxx\r\n', [(1, []), (2, [])]),
        (b'{"a":1}\nxxxxxxxxx\r\r\n', [(1, []), (2, [])]),
        (b'{"a":1}\nxxxxxxxxxx\r\r\n', [(1, []), (2, ["line_too_long"])]),
        (b'{"a":1}\nxxxxxxxxxx\r\r', [(1, []), (2, ["line_too_long"])]),
        (b'{"a":111111}\n[\n{}\n', [(1, ["line_too_long"]), (2, []), (3, [])]),
    ],
    ids=["one return", "two in the limit", "two beyond the limit", "two at the end", "a bracket behind a long line"],
)
def test_lines_at_the_limit_are_the_same_in_blocks(
    tmp_path: Path, block_bytes: int, content: bytes, expected: list[tuple[int, list[str]]]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    parts = list(split_lines(str(path), 10, RowOptions(), lambda: block_bytes))
    rows = [row for part in parts for row in (lines_of(part, 10) if isinstance(part, Lines) else [part])]
    assert rows == list(split_raw_rows(str(path), 10))
    assert places(rows) == expected


def test_other_formats_have_no_lines_to_be_split_later(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("query\na\nb\n")
    assert list(split_lines(str(path), 100, RowOptions(), lambda: 1)) == list(split_raw_rows(str(path), 100))


def test_the_limit_counts_bytes_without_the_line_end(tmp_path: Path) -> None:
    line = json.dumps({"query": "中" * 10}, ensure_ascii=False)
    num_bytes = len(line.encode())
    for line_end in ("\n", "\r\n", ""):
        assert places(rows_of(tmp_path / "a.jsonl", line + line_end, num_bytes)) == [(1, [])]
        assert places(rows_of(tmp_path / "a.jsonl", line + line_end, num_bytes - 1)) == [(1, ["line_too_long"])]


def test_a_huge_line_is_refused_without_being_held_and_the_lines_around_it_are_read(tmp_path: Path, shared_data: Path) -> None:
    path = tmp_path / "huge.jsonl"
    subprocess.run([sys.executable, shared_data / "data/bad_jsonl/make_huge_line.py", path, "10"], check=True)
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    rows = list(split_raw_rows(str(path), 1_000_000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert places(rows) == [(1, []), (2, ["line_too_long"]), (3, [])]
    assert peak_bytes < 3_000_000
    assert "longer than 1,000,000 bytes" in rows[1].findings[0].message
    assert len(rows[1].text) <= 2000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.encode("utf-16"), "UTF-16 text"),
        (b"\x1f\x8b\x08\x00rest", "compressed with gzip"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"PAR1rest", "a parquet file"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_file_that_is_no_text_is_one_finding(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    rows = rows_of(tmp_path / f"a{suffix}", content)
    assert places(rows) == [(None, ["bad_encoding"])]
    assert message in rows[0].findings[0].message


@pytest.mark.parametrize("content", ['[\n{"query": "a"}\n]\n', '\n[{"query": "a"},\n{"query": "b"}]'])
def test_a_json_list_under_the_name_of_jsonl_is_one_finding(tmp_path: Path, content: str) -> None:
    rows = rows_of(tmp_path / "a.jsonl", content)
    assert places(rows) == [(None, ["invalid_json"])]
    assert rows[0].findings[0].remedy == "name it .json, or write one record a line"


def test_broken_utf8_is_found_in_its_line_and_the_others_are_read(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.jsonl", GOOD.encode() + b'\n{"query": "caf\xe9"}\n' + GOOD.encode())
    assert places(rows) == [(1, []), (2, ["bad_encoding"]), (3, [])]
    assert rows[1].findings[0].message == "byte 15 (0xe9) is not UTF-8"
    assert rows[1].text == '{"query": "caf\\xe9"}'


def test_deeply_nested_values_are_refused_whatever_they_are_in(tmp_path: Path) -> None:
    deep = "[" * 900 + "]" * 900
    assert places(rows_of(tmp_path / "a.jsonl", f'{deep}\n{{"query": {deep}}}\n{GOOD}')) == [
        (1, ["invalid_json"]),
        (2, ["invalid_json"]),
        (3, []),
    ]


def test_a_json_list_gives_each_items_line(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.json", '\ufeff[\n\n {"query": "a",\n  "id": "1"},\n {"query": "b"}, 7,\n null]\n')
    assert places(rows) == [(3, ["bom"]), (5, []), (5, ["not_an_object"]), (6, ["not_an_object"])]
    assert rows[0].values == {"query": "a", "id": "1"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", [(None, ["empty_file"])]),
        (" \n[]\n", [(None, ["empty_file"])]),
        ('{"query": "a"}\n', [(None, ["invalid_json"])]),
        ('[\n{"query": "a"},\n{"query": \n', [(2, []), (4, ["invalid_json"])]),  # more of them in the tests of `json_items`
    ],
)  # fmt: skip
def test_a_broken_json_list_is_read_as_far_as_its_items_end(
    tmp_path: Path, content: str, expected: list[tuple[int | None, list[str]]]
) -> None:
    assert places(rows_of(tmp_path / "a.json", content)) == expected


CELLS = st.text(alphabet='ab,"\n\u2028中\t ', max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6), line_end=st.sampled_from(["\n", "\r\n"]))
def test_a_table_written_by_pythons_csv_writer_is_a_round_trip(
    tmp_path: Path, table: list[tuple[str, str, str]], line_end: str
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator=line_end)
    writer.writerow(["query", "response", "id"])
    first_lines = []
    for cells in table:
        first_lines.append(written.getvalue().count("\n") + 1)
        writer.writerow(cells)
    rows = [row for row in rows_of(tmp_path / "a.csv", written.getvalue()) if row.line]
    # A row of white space alone is a blank line where nothing had to be quoted; with three cells there are always commas.
    assert [row.line for row in rows] == first_lines
    assert [row.values for row in rows] == [
        {name: cell for name, cell in zip(("query", "response", "id"), cells, strict=True) if cell} for cells in table
    ]


def test_lists_in_csv_are_json_in_the_cell(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path / "a.csv", 'query,images,history,meta\nRead.,"[""a.png"", null]","[[""a"", ""b""]]","{""page"": 3}"\n'
    )
    assert rows[0].values == {"query": "Read.", "images": ["a.png", None], "history": [["a", "b"]], "meta": {"page": 3}}


@pytest.mark.parametrize(
    ("content", "expected", "message"),
    [
        ("response,images\na,b\n", [(None, ["missing_field"])], "the first row names no column `query`"),
        ("query;response\na;b\n", [(None, ["missing_field"])], '"query;response"'),
        ("query,query\na,b\n", [(None, ["duplicate_key"])], 'names the column "query" twice'),
        ("query,response\n\na\n", [(3, ["invalid_csv"])], "1 cells for 2 columns"),
        ("query,response\na,b,c\n", [(2, ["invalid_csv"])], "3 cells for 2 columns"),
        ('query\n"never closed\nb\n', [(2, ["invalid_csv"])], "this is not a csv row"),
        ('query\n"a"b\nc\n', [(2, ["invalid_csv"]), (3, [])], "this is not a csv row"),
        ("query,images\na,a.png\n", [(2, ["invalid_json"])], 'the cell of `images` is "a.png", which is not JSON'),
        ("query\n" + "x" * 20_000 + "\nb\n", [(2, ["line_too_long"]), (3, [])], "longer than 10,000 bytes"),
        ('query\n"' + "x\n" * 8_000 + '"\nb\n', [(2, ["line_too_long"])], "longer than 10,000 bytes"),
        ("query\n", [(None, ["empty_file"])], "holds no record"),
        ("", [(None, ["empty_file"])], "holds no record"),
    ],
)
def test_a_broken_csv_file_names_the_row(
    tmp_path: Path, content: str, expected: list[tuple[int | None, list[str]]], message: str
) -> None:
    rows = rows_of(tmp_path / "a.csv", content)
    assert places(rows)[: len(expected)] == expected
    assert message in rows[0].findings[0].message


def test_a_csv_row_that_is_not_utf8_is_found_and_the_others_are_read(tmp_path: Path) -> None:
    assert places(rows_of(tmp_path / "a.csv", b"query\ncaf\xe9\nok\n")) == [(2, ["bad_encoding"]), (3, [])]


def test_a_file_of_another_kind_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"a\.txt: a dataset file has to end in \.jsonl, \.json, \.csv, \.tsv, \.parquet"
    ):
        split_raw_rows(str(tmp_path / "a.txt"), 1000)


def test_capital_extensions_are_known_and_a_lost_file_is_a_storage_error(tmp_path: Path) -> None:
    assert places(rows_of(tmp_path / "A.JSONL", GOOD)) == [(1, [])]
    with pytest.raises(StorageError, match=r"gone\.jsonl: there is no such file"):
        list(split_raw_rows(str(tmp_path / "gone.jsonl"), 1000))


def test_of_every_format_what_is_kept_of_a_row_is_cut(tmp_path: Path) -> None:
    long = "é" * 5000
    pq.write_table(pa.table({f"column {number}": [long] for number in range(30)}), tmp_path / "a.parquet")
    coco = {"images": [{"id": 1, "file_name": long}], "annotations": [{"image_id": 1, "caption": long}]}
    files: dict[str, bytes] = {
        "a.jsonl": json.dumps({"query": long}).encode(),
        "b.jsonl": b"\xff" * 5000,
        "a.csv": f"query\n{long}\n".encode(),
        "a.json": json.dumps([{"query": long}]).encode(),
        "b.json": b'["' + b"\xff" * 5000,
        "coco.json": json.dumps(coco).encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in (*files, "a.parquet"):
        for purpose in PURPOSES:
            raw_rows = split_raw_rows(str(tmp_path / name), 50_000, RowOptions(purpose=purpose))
            assert [len(parse_raw_row(row, StrictJsonReader()).text) for row in raw_rows] == [2000], name


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_name_that_comes_twice_among_very_many_is_found_at_once(tmp_path: Path, name: str) -> None:
    names = [str(number) for number in range(50_000)] + ["twice", "twice"]
    text = "query," + ",".join(names) if name == "a.csv" else "{" + ",".join(f'"{name}":0' for name in names) + "}"
    start = time.process_time()
    assert places(rows_of(tmp_path / name, text, 1_000_000)) == [(None if name == "a.csv" else 1, ["duplicate_key"])]
    assert time.process_time() - start < 20  # a minute and more where it grows with the square


def test_a_cell_may_be_as_long_as_a_row(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.csv", "query,images\na," + "b" * 300_000 + "\n", 400_000)
    assert [finding.message[:30] for finding in row.findings] == ['the cell of `images` is "bbbbb']
    (row,) = rows_of(tmp_path / "a.csv", "query,response\na," + "b" * 300_000 + "\n", 400_000)
    assert row.values == {"query": "a", "response": "b" * 300_000}


def test_a_tsv_file_is_a_csv_file_with_tabs(tmp_path: Path) -> None:
    content = 'query\tresponse\timages\nRead, please.\t"a\tb"\t["a.png", "b.png"]\n"two\nlines"\tx\t\n'
    rows = rows_of(tmp_path / "a.tsv", content)
    assert [(row.line, row.values) for row in rows] == [
        (2, {"query": "Read, please.", "response": "a\tb", "images": ["a.png", "b.png"]}),
        (3, {"query": "two\nlines", "response": "x"}),
    ]
    assert (
        rows_of(tmp_path / "b.tsv", "query,response\na,b\n")[0]
        .findings[0]
        .remedy.startswith("name the columns in the first row, with tabs between them")
    )


def test_cells_of_a_benchmark_are_texts(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.tsv", "index\tquestion\thistory\tmeta\n1\tWhat?\told\t[x]\n")
    assert [row.values for row in rows] == [{"index": "1", "question": "What?", "history": "old", "meta": "[x]"}]


def test_a_row_of_a_table_that_is_too_long_is_passed_over(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.tsv", "index\tquestion\timage\n1\ta\t" + "A" * 20_000 + "\n2\tb\t\n")
    assert places(rows) == [(2, ["line_too_long"]), (3, [])]
