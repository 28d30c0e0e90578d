"""Bytes as a dataset file of any format -> rows -> what a validation writes of them, with all that has to hold of it.

The first byte says which file the rest is, the second one how it is read (`_Options`).
"""

import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from finding_invariants import check_findings, check_storable
from mutations import JSON_TOKENS, mutate_bytes, mutate_json_line
from PIL import Image

from yivl_core.data.checks.checked_rows import CheckedBlock, RowBlock
from yivl_core.data.checks.image_checks import ImageChecker
from yivl_core.data.checks.row_checks import CheckSettings, RowChecker
from yivl_core.data.configuration import Purpose
from yivl_core.data.dataset import parse_line
from yivl_core.data.findings import Source
from yivl_core.data.images import ImageStore
from yivl_core.data.reading import DEFAULT_MAX_LINE_BYTES, RowReader
from yivl_core.data.rows import json_document
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.compression import data_suffix, is_compressed
from yivl_core.data.rows.raw_row import MAX_KEPT_CHARS, Lines, RawRow, lines_of, parse_raw_row
from yivl_core.data.rows.raw_rows import RowOptions, is_annotated, split_lines, split_raw_rows
from yivl_core.data.rows.row_counts import count_rows
from yivl_core.data.rows.strict_json import JsonSyntaxError, StrictJsonReader
from yivl_core.errors import DatasetError

MAX_SEED_BYTES = 16_000
TIGHT_LINE_BYTES = 100
SMALL_WINDOW = 16
_BOM = b"\xef\xbb\xbf"
_ROWS = (
    {"query": "What is the total?", "response": "14.10", "images": ["a.png"], "history": [["Who?", "SAM"]], "id": 7},
    {"query": "<image> 中文?", "response": "b", "images": ["b.png"], "system": "", "references": ["c"], "cluster_id": "x"},
    {"query": "a", "response": "b", "source": {"page": [1, 2.5]}, "meta": {"k": None}},
)


def _as_is(data: bytes) -> bytes:
    return data


def _with_gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


def _with_zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def _as_parquet(data: bytes) -> bytes:
    """JSON rows as a parquet file; bytes that make none as they are, which is a damaged one."""
    try:
        values = [json.loads(line) for line in data.split(b"\n") if line.strip()]
        return _parquet(pa.Table.from_pylist([value for value in values if isinstance(value, dict)]))
    except (ValueError, RecursionError, OverflowError, TypeError, pa.ArrowException):
        return data


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=2, compression="none", use_dictionary=False)
    return sink.getvalue()


def _tables() -> Iterator[pa.Table]:
    """Parquet files of what JSON does not know: images as bytes, times, decimals, text that is not UTF-8, maps."""
    image = io.BytesIO()
    Image.new("RGB", (12, 9), "green").save(image, "PNG")
    data = image.getvalue()
    queries = ["a", "b <image>", "c"]
    struct = [{"bytes": data, "path": "x.png"}, {"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}]
    yield pa.table({"query": queries, "image": [data, b"no image", None]})
    yield pa.table({"query": queries, "images": struct})
    yield pa.table({"query": queries, "images": [struct, [struct[0], struct[0]], []]})
    yield pa.table(
        {"query": queries, "images": ["a.png", "b.png", None], "history": [[{"query": "a", "response": "b"}], [], None]}
    )
    times = pa.array([0, 2**62, None], pa.timestamp("us"))
    yield pa.table({"query": queries, "time": times, "price": [Decimal("1.50"), None, Decimal("-2.00")]})
    yield pa.table({"query": pa.array([b"a", b"\xff", b"c"]).view(pa.string()), "nan": [0.5, float("nan"), float("inf")]})
    yield pa.table({"query": queries, "map": pa.array([[("k", 1), ("k", 2)], [], None], pa.map_(pa.string(), pa.int64()))})
    yield pa.table({"query": pa.array([], pa.string())})


FILES: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("data.jsonl", _as_is),
    ("data.json", _as_is),
    ("data.csv", _as_is),
    ("data.parquet", _as_is),
    ("data.jsonl.gz", _as_is),
    ("data.jsonl.zst", _as_is),
    ("data.jsonl.gz", _with_gzip),
    ("data.jsonl.zst", _with_zstd),
    ("data.json.gz", _with_gzip),
    ("data.csv.zst", _with_zstd),
    ("data.parquet", _as_parquet),
)
JSONL, JSON, CSV, PARQUET, GZIP, ZSTD, JSON_IN_GZIP, PARQUET_OF_ROWS = 0, 1, 2, 3, 4, 5, 8, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """How a file is read.

    Attributes:
        purpose: what for.
        max_line_bytes: longest row.
        window_bytes: how much is read at a time.
        mapping: names of columns.
        query: what is asked in place of what the rows say.
    """

    purpose: Purpose
    max_line_bytes: int
    window_bytes: int
    mapping: ColumnMapping
    query: str | None

    @classmethod
    def of(cls, bits: int) -> "_Options":
        return cls(
            purpose="training" if bits & 1 else "inference",
            max_line_bytes=TIGHT_LINE_BYTES if bits & 2 else DEFAULT_MAX_LINE_BYTES,
            window_bytes=SMALL_WINDOW if bits & 4 else 1 << 18,
            mapping=ColumnMapping.of_options(["query=question", "images=meta.path"] if bits & 8 else []),
            query="What is this?" if bits & 16 else None,
        )

    @property
    def of_rows(self) -> RowOptions:
        return RowOptions(purpose=self.purpose, mapping=self.mapping)


class RowTarget:
    """Files of rows.

    Args:
        folder: for the file, and the images a.png and b.png that rows may name.
        samples: folder of files to begin with, where there is one.
    """

    tokens = JSON_TOKENS

    def __init__(self, folder: Path, samples: Path | None) -> None:
        self._folder, self._samples = folder, samples
        for name, colour in (("a.png", "red"), ("b.png", "blue")):
            Image.new("RGB", (12, 9), colour).save(folder / name)
        self._checker = RowChecker(CheckSettings(), ImageChecker(ImageStore(max_pixels=10_000)))

    def check(self, data: bytes) -> None:
        """Everything that has to hold of a file."""
        name, pack = FILES[(data[0] if data else 0) % len(FILES)]
        options, content = _Options.of(data[1] if len(data) > 1 else 0), data[2:]
        path = self._folder / name
        path.write_bytes(pack(content))
        url = str(path)
        with _reading_a_window(options.window_bytes):
            rows, damage = _rows_and_damage(split_raw_rows(url, options.max_line_bytes, options.of_rows))
            assert damage is None or is_compressed(url) or name.endswith(".parquet"), damage
            _check_raw_rows(rows, in_order=not is_annotated(url))
            if data_suffix(url) == ".jsonl":
                _check_blocks(url, options, rows, damage)
            elif name.endswith(".parquet"):
                _check_start(url, options, rows)
            reader = RowReader.of_file(
                url, None, options.purpose, options.query, max_line_bytes=options.max_line_bytes, mapping=options.mapping
            )
        is_as_it_is = damage is None and pack is not _as_parquet
        if is_as_it_is and not is_compressed(url) and options.max_line_bytes == DEFAULT_MAX_LINE_BYTES:
            if name == "data.jsonl":
                _check_no_line_is_lost(content, rows)
                assert rows[-1].line is None or count_rows(url, options.max_line_bytes, options.of_rows) == len(rows)
            elif name == "data.json":
                _check_items(content, rows)
        self._check_verdicts(reader, rows)

    def _check_verdicts(self, reader: RowReader, rows: Sequence[RawRow]) -> None:
        """What is taken at speed is what looking closely gives, each row has one verdict, and what is written can be read."""
        strict = StrictJsonReader()
        block = self._checker.check(RowBlock(reader=reader, rows=rows))
        slow = self._checker.check(RowBlock(reader=reader, rows=[parse_raw_row(row, strict) for row in rows]))
        for name in ("num_rows", "noted", "canonical", "keys", "answers", "images"):
            assert getattr(block, name) == getattr(slow, name), name
        assert block.lines.tolist() == slow.lines.tolist()
        assert block.answer_lengths.tolist() == slow.answer_lengths.tolist()
        assert _records(block) == _records(slow)
        rejected = [row.line for row in block.noted if any(finding.severity == "error" for finding in row.findings)]
        assert Counter([*block.lines.tolist(), *rejected]) == Counter(row.line for row in rows)
        for row in block.noted:
            assert row.findings
            check_findings(row.findings)
            check_storable([row.id, row.text])
        _check_records(block, reader, strict)

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        """A file near this one: mostly of the same format, with another value, or other bytes."""
        if len(data) < 2 or chance.random() < 0.1:
            return bytes([chance.randrange(len(FILES)), chance.randrange(32)]) + data[2:]
        change = mutate_json_line if chance.random() < 0.6 else mutate_bytes
        return data[:2] + change(data[2:], chance)

    def seeds(self) -> Iterator[bytes]:
        """Small files of every format, and the samples."""
        jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS).encode()
        document = json.dumps(_ROWS, ensure_ascii=False, indent=1).encode()
        table = (
            b"query,response,images,history,more\n"
            b'"say ""a""",b,"[""a.png""]","[[""c"",""d""]]",x\na,"two\nlines",,,\n"<image>",c,"[""b.png""]",,y\n'
        )
        coco = json.dumps(
            {
                "info": {"year": 2017},
                "images": [{"id": 9, "file_name": "a.png"}, {"id": "8", "file_name": "b.png"}],
                "annotations": [{"image_id": 9, "id": 1, "caption": "bins"}, {"image_id": 7, "id": 2, "caption": "x"}],
            }
        ).encode()
        deep = b'{"query": "a", "response": "b", "x": ' + b"[" * 63 + b"]" * 63 + b"}\n"
        mapped = b'{"question": "a", "meta": {"path": "a.png"}}\n{"question": "b", "query": "c"}\n'
        for bits in range(32):
            for number, content in ((JSONL, jsonl), (JSON, document), (CSV, table), (JSON, coco), (PARQUET_OF_ROWS, jsonl)):
                yield bytes([number, bits]) + content
        for bits in (0, 1, 8, 24):
            yield bytes([JSONL, bits]) + mapped
            yield bytes([JSONL, bits]) + deep
        yield bytes([GZIP, 0]) + _with_gzip(jsonl)
        yield bytes([ZSTD, 0]) + _with_zstd(jsonl)
        yield bytes([JSON_IN_GZIP, 0]) + document
        for table in _tables():
            yield bytes([PARQUET, 0]) + _parquet(table)
        for number in ("1" * 300, '"' + "x\\" * 100 + '"', "{}"):
            yield bytes([JSON, 6]) + f'[{number}, {{"query": "a"}}]'.encode()
            yield bytes([JSON, 6]) + f'{{"images": [], "info": {number}, "annotations": {number}, "images": 7}}'.encode()
        for path in sorted(self._samples.rglob("*.jsonl")) if self._samples is not None else ():
            if path.stat().st_size <= MAX_SEED_BYTES:
                for number in (JSONL, JSON, 6):
                    yield bytes([number, 0]) + path.read_bytes()


@contextmanager
def _reading_a_window(num_bytes: int) -> Iterator[None]:
    """JSON documents are read so many bytes at a time."""
    usual = json_document._BLOCK_BYTES
    json_document._BLOCK_BYTES = num_bytes
    try:
        yield
    finally:
        json_document._BLOCK_BYTES = usual


def _rows_and_damage(rows: Iterable[RawRow]) -> tuple[list[RawRow], str | None]:
    """The rows as far as they can be read, and why no further."""
    read: list[RawRow] = []
    try:
        for row in rows:
            read.append(row)  # noqa: PERF402  (what came before the damage counts)
    except DatasetError as cause:
        return read, str(cause)
    return read, None


def _check_raw_rows(rows: Sequence[RawRow], *, in_order: bool) -> None:
    lines = [row.line for row in rows]
    assert None not in lines[:-1], "something follows what concerns the file as a whole"
    places = [Source.of_place("", line) for line in lines if line is not None]
    numbers = [(place.line or 0, place.item) for place in places]
    assert all(line > 0 and item > 0 for line, item in numbers)
    assert not in_order or numbers == sorted(numbers)
    for row in rows:
        check_findings(row.findings)
        check_storable(row.text)
        assert len(row.text) <= MAX_KEPT_CHARS
        assert (row.json is not None) + (row.values is not None) + bool(row.findings) >= 1, row
        assert row.line is not None or row.findings


def _check_blocks(url: str, options: _Options, rows: Sequence[RawRow], damage: str | None) -> None:
    """Lines that are split later are the same rows."""

    def split() -> Iterator[RawRow]:
        for part in split_lines(url, options.max_line_bytes, options.of_rows, lambda: options.window_bytes):
            yield from lines_of(part, options.max_line_bytes) if isinstance(part, Lines) else [part]

    again, damage_again = _rows_and_damage(split())
    assert damage == damage_again
    assert again == rows


def _check_start(url: str, options: _Options, rows: Sequence[RawRow]) -> None:
    """Reading may begin at any row."""
    later, _ = _rows_and_damage(split_raw_rows(url, options.max_line_bytes, options.of_rows, first=2))
    assert later == rows[2:] or not any(row.line for row in rows)


def _check_no_line_is_lost(content: bytes, rows: Sequence[RawRow]) -> None:
    """Each line that is not blank is a row, unless the file as a whole is something else."""
    lines = content.removeprefix(_BOM).split(b"\n")
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    assert rows[-1].line is None or [row.line for row in rows] == filled


def _check_items(content: bytes, rows: Sequence[RawRow]) -> None:
    """A list that Python can read has all its items as rows; other text ends with a finding."""
    try:
        value = json.loads(content.removeprefix(_BOM).decode())
    except (ValueError, RecursionError):
        value = None
    strict = StrictJsonReader()
    found = [parse_raw_row(row, strict) for row in rows]
    if not isinstance(value, list):
        assert any(row.findings for row in found) or is_coco_like(_read_leniently(content))
        return
    if not value:
        assert [row.findings[0].kind for row in found] == ["empty_file"]
        return
    try:
        is_sound = not StrictJsonReader().read_all(content.removeprefix(_BOM).decode())[1]
    except JsonSyntaxError:
        is_sound = False
    if is_sound:
        assert [row.values for row in found] == [item if isinstance(item, dict) else None for item in value]


def _read_leniently(content: bytes) -> Any:
    """What a document says if bytes that are no UTF-8 are overlooked, as they are in the parts of COCO's that are not read."""
    try:
        return json.loads(content.removeprefix(_BOM).decode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def is_coco_like(value: Any) -> bool:
    """Whether a document has what COCO's annotations have."""
    return isinstance(value, dict) and {"images", "annotations"} <= value.keys()


def _records(block: CheckedBlock) -> list[Any]:
    return [parse_line(line) for line in block.records.decode().split("\n")[:-1]]


def _check_records(block: CheckedBlock, reader: RowReader, strict: StrictJsonReader) -> None:
    """What was written of clean rows is read again, with nothing to say about it, and as the same content."""
    records = _records(block)
    assert len(records) == len(block.lines)
    again = RowReader(file="records.jsonl", folder=reader.folder, image_root=None, purpose=reader.purpose)
    for line, canonical in zip(block.records.split(b"\n"), block.canonical.split(b"\n"), strict=True):
        if not line:
            continue
        validated = parse_line(line.decode())
        assert validated is not None
        assert validated.canonical.encode() == canonical
        row = again.read(RawRow(line=1, json=line), strict)
        assert row.record == validated.record, row.findings
        assert not row.findings, row.findings
