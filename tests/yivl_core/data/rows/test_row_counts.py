import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yivl_core.data.rows import row_counts
from yivl_core.data.rows.raw_rows import RowOptions, split_raw_rows
from yivl_core.data.rows.row_counts import count_rows
from yivl_core.errors import ConfigurationError, DatasetError

PIECES = st.sampled_from([b"\n", b" ", b"\t", b"\r", b"\x0b", b"\x0c", b"\x85", b"{}", b'{"query": "a"}', b"\xef\xbb\xbf", b"xx"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(PIECES, max_size=30), block_bytes=st.integers(1, 9))
def test_lines_are_counted_as_their_reader_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], block_bytes: int
) -> None:
    monkeypatch.setattr(row_counts, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(pieces))
    expected = sum(row.line is not None for row in split_raw_rows(str(path), 1000))
    assert count_rows(str(path), 1000, RowOptions(purpose="inference")) == expected
    compressed = tmp_path / "a.jsonl.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert count_rows(str(compressed), 1000, RowOptions(purpose="inference")) == expected


def test_every_kind_of_file_is_counted_as_it_is_read(tmp_path: Path) -> None:
    rows = [{"query": f"a\n{number}", "id": str(number)} for number in range(5)]
    table = io.StringIO()
    csv.writer(table).writerows([["query", "id"], *(row.values() for row in rows)])
    (tmp_path / "a.csv").write_text(table.getvalue(), encoding="utf-8")
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    (tmp_path / "a.json.zst").write_bytes(pa.compress(json.dumps(rows, indent=1).encode(), "zstd", asbytes=True))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.csv", "a.json", "a.json.zst", "a.parquet"):
        assert count_rows(str(tmp_path / name), 1000, RowOptions(purpose="training")) == 5


def test_annotations_have_a_row_for_each_caption_or_each_image(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    annotations = [{"image_id": 1, "id": number, "caption": "x"} for number in range(3)]
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}), encoding="utf-8")
    assert count_rows(str(path), 1000, RowOptions(purpose="training")) == 3
    assert count_rows(str(path), 1000, RowOptions(purpose="inference")) == 1


def test_a_file_that_cannot_be_counted_is_refused_as_its_reader_does(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"{}\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n")[:11])
    with pytest.raises(ConfigurationError, match=r"a dataset file has to end in"):
        count_rows(str(tmp_path / "a.txt"), 1000, RowOptions(purpose="training"))
    with pytest.raises(DatasetError, match="damaged or cut off"):
        count_rows(str(tmp_path / "a.jsonl.gz"), 1000, RowOptions(purpose="training"))
