"""Rows of compressed files that are damaged: those of what zlib or pyarrow unpacks, and then the damage."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from yivl_core.data.findings import UnreadableFileError
from yivl_core.data.rows.raw_row import Lines, RawRow, lines_of, parse_raw_row
from yivl_core.data.rows.raw_rows import RowOptions, split_lines, split_raw_rows
from yivl_core.data.rows.strict_json import StrictJsonReader

Validate = Callable[..., Any]

ROWS = [{"query": f"Was {number}?", "response": f"{number * number:x}" * 9} for number in range(3000)]
COCO = {
    "images": [{"id": number, "file_name": f"{number}.png"} for number in range(50)],
    "annotations": [{"image_id": number, "id": number, "caption": f"it is {number}"} for number in range(50)],
}
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FEW = b"".join(JSONL.splitlines(keepends=True)[:12])
CSV = b"query,response\n" + "".join(f"{row['query']},{row['response']}\n" for row in ROWS).encode()
CONTENTS = {
    "a.jsonl": JSONL,
    "few.jsonl": FEW,
    "open.jsonl": FEW.rstrip(),
    "a.csv": CSV,
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "tight.json": json.dumps(ROWS[:12]).encode(),
    "coco.json": json.dumps(COCO).encode(),
}


class ByteByByte(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1)


def packed(content: bytes, suffix: str) -> bytes:
    return gzip.compress(content) if suffix == ".gz" else pa.compress(content, "zstd", asbytes=True)


def unpacked(data: bytes, suffix: str) -> bytes:
    """What other programs make of a file, byte by byte."""
    content = bytearray()
    try:
        if suffix == ".gz":
            inflater = zlib.decompressobj(31)
            for index in range(len(data)):
                content += inflater.decompress(data[index : index + 1])
        else:
            stream = pa.CompressedInputStream(ByteByByte(data), "zstd")
            while byte := stream.read(1):
                content += byte
    except (zlib.error, OSError):
        pass
    return bytes(content)


def parsed(rows: Iterable[RawRow]) -> tuple[list[RawRow], str]:
    """The rows, and what is told of the damage."""
    reader = StrictJsonReader()
    read: list[RawRow] = []
    try:
        for row in rows:
            read.append(parse_raw_row(row, reader))  # noqa: PERF401  (what came before the damage counts)
    except UnreadableFileError as cause:
        return read, cause.message
    return read, ""


def in_blocks(url: str, num_bytes: int) -> Iterable[RawRow]:
    for part in split_lines(url, 100_000, RowOptions(), lambda: num_bytes):
        yield from lines_of(part, 100_000) if isinstance(part, Lines) else [part]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", CONTENTS)
def test_the_rows_are_those_of_what_other_programs_unpack(tmp_path: Path, name: str, suffix: str) -> None:
    whole = packed(CONTENTS[name], suffix)
    half = len(whole) // 2
    flipped = whole[:half] + bytes([whole[half] ^ 4]) + whole[half + 1 :]
    for number, data in enumerate((whole[:-4], whole[:-20], whole[:half], flipped, whole + b"more")):
        content = unpacked(data, suffix)
        plain, path = tmp_path / f"{number}{name}", tmp_path / f"{number}{name}{suffix}"
        plain.write_bytes(content)
        path.write_bytes(data)
        rows, damage = parsed(split_raw_rows(str(path), 100_000))
        if not damage:
            assert suffix == ".zst"  # which has no sums here
            continue
        assert f"damaged or cut off behind {len(content):,} bytes" in damage
        expected, _ = parsed(split_raw_rows(str(plain), 100_000))
        if not content:
            assert rows == []
        elif name.endswith(".csv") and not content.endswith(b"\n"):
            assert "the row may be cut off" in rows[-1].findings[0].message
            assert (rows.pop().line, rows) == (expected.pop().line, expected)
        else:
            assert rows == expected
        if number == 0 and suffix == ".gz":
            assert len(rows) == (50 if name == "coco.json" else 12 if len(content) < 2000 else 3000)
            assert not any(row.findings for row in rows)
        if name.endswith(".jsonl"):
            for num_bytes in (1, 1000, 1 << 20):
                assert parsed(in_blocks(str(path), num_bytes)) == (rows, damage)


@pytest.mark.parametrize("length", range(95, 106))
def test_a_line_at_the_limit_is_the_same_in_blocks_where_the_file_is_cut_off(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    for end in (b"", b"\r", b"\r\r", b"\r\n"):
        path.write_bytes(gzip.compress(b"{}\n" + b"x" * length + end)[:-3])
        rows, damage = parsed(split_raw_rows(str(path), 100))
        kinds = [finding.kind for row in rows for finding in row.findings]
        assert kinds == ["line_too_long" if length + end.count(b"\r\r") > 100 else "invalid_json"]
        for num_bytes in (1, 1000):
            parts = split_lines(str(path), 100, RowOptions(), lambda num_bytes=num_bytes: num_bytes)
            again = (row for part in parts for row in (lines_of(part, 100) if isinstance(part, Lines) else [part]))
            assert parsed(again) == (rows, damage)


def test_no_part_of_a_row_passes_for_a_row(tmp_path: Path) -> None:
    contents = {
        "a.jsonl": b'{"query": "one"}\n{"query": "two"}\n',
        "a.json": b'[{"query": "one"}, {"query": "two"}]',
        "a.csv": b'query,response\none,1\n"two\n",2\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        whole = [row.values for row in parsed(split_raw_rows(str(tmp_path / name), 1000))[0]]
        path = tmp_path / f"{name}.gz"
        for length in range(len(content)):
            path.write_bytes(gzip.compress(content[:length])[:-1])
            rows, damage = parsed(split_raw_rows(str(path), 1000))
            values = [row.values for row in rows if not row.findings]
            assert values == whole[: len(values)], content[:length]
            assert f"behind {length} bytes" in damage


def test_the_finding_tells_what_is_wrong_where_and_the_remedy(tmp_path: Path, validate: Validate) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(FEW)[:-4])
    result = validate(path)
    assert result.summary.num_records == 12
    (finding,) = result.quarantine
    assert (finding["line"], finding["kind"]) == (None, "damaged_file")
    place = f"behind {len(FEW):,} bytes of its content"
    assert finding["message"] == f"the compressed file is damaged or cut off {place} (its end is missing)"
    assert finding["remedy"] == "fetch or write it again"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_rows_are_drawn_from_those_before_the_damage(tmp_path: Path, validate: Validate, name: str) -> None:
    rows = [{"query": f"Which number is {number}?", "response": str(number)} for number in range(3000)]
    table = io.StringIO()
    csv.writer(table).writerows([["query", "response"], *(row.values() for row in rows)])
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    content = {"a.jsonl.gz": lines, "a.json.gz": json.dumps(rows, indent=0), "a.csv.gz": table.getvalue()}[name].encode()
    path, data = tmp_path / name, gzip.compress(content, mtime=0)
    path.write_bytes(data[: len(data) // 2])
    result = validate(f"{path}#5")
    drawn = result.summary.num_records + result.summary.num_quarantined
    assert 4 <= result.summary.num_records <= drawn == 5, "the last one may be the row that is cut off"
    assert result.summary.findings_by_kind["damaged_file"] == 1
