r"""Files of lines -> rows: jsonl, of which the lines are found, but not parsed, and tables (csv, tsv).

A line ends at the byte `\n` and nowhere else. Lines are read one at a time and never beyond their limit, so memory does not
depend on the file.
"""

import csv
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from yivl_core.data.findings import Finding, error, row_too_long, shown
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.compression import is_at_damage, read_up_to_damage
from yivl_core.data.rows.formats import BENCHMARK_FORMATS, detect_format
from yivl_core.data.rows.raw_row import MAX_KEPT_CHARS, Lines, RawRow, about_file, decode_row
from yivl_core.data.rows.strict_json import JsonSyntaxError, StrictJsonReader, first_twice

JSON_COLUMNS = frozenset({"history", "images", "references", "meta", "messages", "conversations"})

_BLOCK_BYTES = 1 << 16


def read_jsonl(file: IO[bytes], max_bytes: int) -> Iterator[RawRow]:
    """The lines of jsonl that are not blank, not parsed."""
    is_first = True
    for number, line in _numbered_lines(file, max_bytes):
        if line is None:
            is_first = False
            yield RawRow(line=number, findings=[row_too_long(max_bytes)])
        elif data := line.strip():
            if is_first and data.startswith(b"[") and not data.endswith(b"]"):
                message = f"the file is a JSON list, begun on line {number}"
                yield about_file("invalid_json", message, "name it .json, or write one record a line")
                return
            is_first = False
            yield RawRow(line=number, json=data, num_bytes=len(data))


def read_line_blocks(num_bytes: Callable[[], int], file: IO[bytes], max_bytes: int) -> Iterator[RawRow | Lines]:
    """The first record alone, since it shows what the file is, then lines in blocks. At most a block and a line are held."""
    first = next(read_jsonl(file, max_bytes), None)
    if first is None:
        return
    yield first
    if first.line is None:
        return
    number, rest = first.line + 1, b""
    while data := read_up_to_damage(file.read, num_bytes()):
        data = rest + data
        end = data.rfind(b"\n") + 1
        if end:
            yield Lines(number, data[:end])
            number += data.count(b"\n", 0, end)
        rest = data[end:]
        if len(rest) > max_bytes + 2:  # room for \r\n
            _pass_over_line(file)
            yield RawRow(line=number, findings=[row_too_long(max_bytes)])
            number, rest = number + 1, b""
    if rest:
        yield Lines(number, rest)


class TableRow(NamedTuple):
    """One row of a table, the header among them.

    Attributes:
        line: where it starts, from 1.
        text: how it is written; empty for a row that is too long.
        cells: their texts.
        findings: what is wrong with it; `cells` is not to be used then.
        num_bytes: how long it is.
    """

    line: int
    text: str
    cells: list[str]
    findings: list[Finding]
    num_bytes: int


def read_cells(file: IO[bytes], max_bytes: int, delimiter: str) -> Iterator[TableRow]:
    """The rows of a table as texts by column, the first one of which names the columns."""
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))  # a cell may hold an image; the limit is the process's
    for number, data in _csv_texts(file, max_bytes):
        if data is None:
            yield TableRow(number, "", [], [row_too_long(max_bytes)], 0)
            continue
        text, findings = decode_row(data.rstrip(b"\r\n"))
        if not data.endswith(b"\n") and is_at_damage(file):
            findings.append(error("invalid_csv", "the row may be cut off: here the file is damaged", "write the file again"))
        try:
            cells = next(csv.reader([text], delimiter=delimiter, strict=True))
        except csv.Error as cause:
            findings.append(
                error("invalid_csv", f"this is not a csv row: {cause}", 'quote cells with ", and write " in them as ""')
            )
            cells = []
        yield TableRow(number, text, cells, findings, len(data))


def read_table(mapping: ColumnMapping, delimiter: str, file: IO[bytes], max_bytes: int) -> Iterator[RawRow]:
    """The rows of a csv or tsv file, of which the first one names the columns."""
    header: list[str] | None = None
    json_columns = JSON_COLUMNS
    for row in read_cells(file, max_bytes, delimiter):
        text = row.text[:MAX_KEPT_CHARS]
        if header is None:
            header = [name.strip() for name in row.cells]
            if problem := row.findings or _header_findings(header, mapping, delimiter):
                yield RawRow(line=None, findings=problem)
                return
            json_columns = _json_columns(header, mapping)
        elif row.findings:
            yield RawRow(line=row.line, text=text, findings=row.findings)
        else:
            yield _table_row(row._replace(text=text), header, json_columns)


def _json_columns(header: list[str], mapping: ColumnMapping) -> frozenset[str]:
    """The columns whose cells are JSON; the cells of a benchmark are texts."""
    if detect_format(mapping.apply(dict.fromkeys(header))) in BENCHMARK_FORMATS:
        return frozenset()
    return JSON_COLUMNS | {theirs for ours, theirs in mapping.columns if ours in JSON_COLUMNS}


def _csv_texts(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """The rows as they are written, each with the number of its first line: a row goes on while a quote is open."""
    pending: list[bytes] = []
    start, num_bytes, is_open = 0, 0, False
    for number, line in _numbered_lines(file, max_bytes):
        if not pending:
            start, num_bytes, is_open = number, 0, False
            if line is not None and not line.strip():
                continue
        num_bytes += len(line or b"")
        if line is None or num_bytes > max_bytes + 2:
            yield start, None
            pending = []
            continue
        pending.append(line)
        is_open ^= line.count(b'"') % 2 == 1
        if not is_open:
            yield start, b"".join(pending)
            pending = []
    if pending:
        yield start, b"".join(pending)


def _header_findings(header: list[str], mapping: ColumnMapping, delimiter: str) -> list[Finding]:
    names = mapping.apply(dict.fromkeys(header))
    if "query" not in names and detect_format(names) == "swift":
        message = f"the first row names no column `query`: {shown(', '.join(header))}"
        between = "tabs" if delimiter == "\t" else "commas"
        remedy = (
            f"name the columns in the first row, with {between} between them, or say which one is the query (columns query=NAME)"
        )
        return [error("missing_field", message, remedy)]
    twice = first_twice(header)
    if twice is not None:
        message = f"the first row names the column {shown(twice)} twice"
        return [error("duplicate_key", message, "give each column its own name")]
    return []


def _table_row(row: TableRow, header: list[str], json_columns: frozenset[str]) -> RawRow:
    if len(row.cells) != len(header):
        message = f"{len(row.cells)} cells for {len(header)} columns"
        finding = error("invalid_csv", message, "quote cells that hold what stands between cells")
        return RawRow(line=row.line, text=row.text, findings=[finding])
    reader = StrictJsonReader()
    values: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, cell in zip(header, row.cells, strict=True):
        # A mapped column may hold one address, and then no JSON.
        if cell and name in json_columns and (name in JSON_COLUMNS or cell.startswith(("[", "{"))):
            try:
                values[name], cell_findings = reader.read_all(cell)
                findings += cell_findings
            except JsonSyntaxError as cause:
                message = f"the cell of `{name}` is {shown(cell)}, which is not JSON"
                findings.append(error(cause.finding.kind, message, 'write lists as JSON, such as ["a.png"]'))
        elif cell:
            values[name] = cell
    return RawRow(line=row.line, text=row.text, values=None if findings else values, findings=findings, num_bytes=row.num_bytes)


def _numbered_lines(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number, or None in place of one that is too long. At most `max_bytes` are held."""
    number = 0
    while line := read_up_to_damage(file.readline, max_bytes + 2):  # room for \r\n
        number += 1
        is_whole = line.endswith(b"\n")
        if len(line.rstrip(b"\r\n")) <= max_bytes and (is_whole or len(line) < max_bytes + 2):
            yield number, line
            continue
        if not is_whole:
            _pass_over_line(file)
        yield number, None


def _pass_over_line(file: IO[bytes]) -> None:
    while (rest := read_up_to_damage(file.readline, _BLOCK_BYTES)) and not rest.endswith(b"\n"):
        pass
