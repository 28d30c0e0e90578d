r"""Files -> rows of named values: jsonl, json list and csv, each row with its line, and what is wrong with it.

Knows the file formats and nothing of records. A line ends at the byte `\n` and nowhere else. Lines are read one at a time and
never beyond their limit, so memory does not depend on the file; a json list is the exception, it is read whole.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import IO, Any, NamedTuple, TypeVar, cast

from yivl_core.data.findings import Finding, error, shown, warning
from yivl_core.data.strict_json import JsonSyntaxError, StrictJsonReader, skip_white_space
from yivl_core.errors import ConfigurationError
from yivl_core.storage import open_binary

MAX_KEPT_CHARS = 2000  # of a rejected line, for the quarantine
JSON_COLUMNS = frozenset({"history", "images", "references", "meta"})

_BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 1 << 16
_NOT_TEXT = {
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it with gunzip"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"BZh": ("compressed with bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ\x00": ("compressed with xz", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it with unzstd"),
    b"PAR1": ("a parquet file", "write it as jsonl"),
}


class RawRow(NamedTuple):  # which is made in half the time of a dataclass
    """One row of a file.

    Attributes:
        line: where it starts, from 1; None for what concerns the file as a whole.
        text: how it is written, cut after 2,000 characters.
        json: its JSON as bytes, where it waits for `parse_raw_row`.
        values: its values by field name, or None if there are none to be had.
        findings: what is wrong with it.
        num_bytes: how long its values are as they are written.
        contents: the bytes of images that the file itself holds, by the address that stands for each in `values`.
    """

    line: int | None
    text: str = ""
    json: bytes | None = None
    values: dict[str, Any] | None = None
    findings: Sequence[Finding] = ()
    num_bytes: int = 0
    contents: Mapping[str, bytes] = MappingProxyType({})


class Lines(NamedTuple):
    """Lines of jsonl that nobody has looked at yet.

    Attributes:
        first: number of the first one, from 1.
        data: all of them, with their ends.
    """

    first: int
    data: bytes


Row = TypeVar("Row", bound=RawRow | Lines, covariant=True)


def split_raw_rows(url: str, max_line_bytes: int) -> Iterator[RawRow]:
    """The rows of a file, blank lines left out; after a finding about the whole file, nothing more.

    The lines of jsonl are found, but not parsed, which is most of the work and can be done elsewhere.

    Args:
        url: a file whose name ends in .jsonl, .json or .csv.
        max_line_bytes: longest line (of jsonl), row (of csv) or item (of a json list) that is read.

    Raises:
        ConfigurationError: the name ends otherwise.
        StorageError: the file cannot be read. (Raised when reading starts.)
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json_list, ".csv": _read_csv}
    reader = readers.get(PurePosixPath(url).suffix.lower())
    if reader is None:
        raise ConfigurationError(f"{url}: a dataset file has to end in .jsonl, .json or .csv; rename or convert it")
    return _rows(url, reader, max_line_bytes)


def split_lines(url: str, max_line_bytes: int, num_bytes: Callable[[], int]) -> Iterator[RawRow | Lines]:
    """As `split_raw_rows`, with most lines of jsonl in blocks, to be split by `lines_of` where they are parsed.

    Args:
        url: as there.
        max_line_bytes: as there.
        num_bytes: about how many bytes the next block should have.
    """
    if PurePosixPath(url).suffix.lower() != ".jsonl":
        return split_raw_rows(url, max_line_bytes)
    return _rows(url, lambda file, max_bytes: _read_line_blocks(file, max_bytes, num_bytes), max_line_bytes)


def lines_of(lines: Lines, max_line_bytes: int) -> Iterator[RawRow]:
    """The rows of a block, as `split_raw_rows` gives them."""
    for number, line in enumerate(lines.data.split(b"\n"), lines.first):
        if len(line) > max_line_bytes and len(line.rstrip(b"\r")) > max_line_bytes:
            yield RawRow(line=number, findings=[_too_long(max_line_bytes)])
        elif data := line.strip():
            yield RawRow(line=number, json=data, num_bytes=len(data))


def parse_raw_row(row: RawRow, reader: StrictJsonReader) -> RawRow:
    """A row of `split_raw_rows` with its values, or with what is wrong with them."""
    if row.json is None:
        return row
    text, findings = _decode(row.json)
    kept = text[:MAX_KEPT_CHARS]
    value = None
    if not findings:
        try:
            value, findings = reader.read_all(text)
        except JsonSyntaxError as cause:
            findings = [cause.finding]
    parsed = _object_row(row.line, kept, value, findings)
    return parsed._replace(findings=[*parsed.findings, *row.findings])


def _rows(url: str, reader: Callable[[IO[bytes], int], Iterator[Row]], max_line_bytes: int) -> Iterator[Row | RawRow]:
    with open_binary(url) as opened, io.BufferedReader(cast(io.RawIOBase, opened)) as file:
        head = file.peek(8)
        for magic, (what, remedy) in _NOT_TEXT.items():
            if head.startswith(magic):
                yield _about_file("bad_encoding", f"the file is {what}, not UTF-8 text", remedy)
                return
        has_bom = head.startswith(_BOM)
        if has_bom:
            file.read(len(_BOM))
        is_empty = True
        for row in reader(file, max_line_bytes):
            if is_empty and has_bom and isinstance(row, RawRow):
                bom = warning("bom", "the file starts with a byte order mark", "save it as UTF-8 without BOM")
                row = row._replace(findings=[*row.findings, bom])
            is_empty = False
            yield row
        if is_empty:
            yield _about_file("empty_file", "the file holds no record", "write one record a line")


def _about_file(kind: str, message: str, remedy: str) -> RawRow:
    return RawRow(line=None, findings=[error(kind, message, remedy)])


def _numbered_lines(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number, or None in place of one that is too long. At most `max_bytes` are held."""
    number = 0
    while line := file.readline(max_bytes + 2):  # room for \r\n
        number += 1
        is_whole = line.endswith(b"\n")
        if len(line.rstrip(b"\r\n")) <= max_bytes and (is_whole or len(line) < max_bytes + 2):
            yield number, line
            continue
        while not is_whole and (rest := file.readline(_BLOCK_BYTES)):
            is_whole = rest.endswith(b"\n")
        yield number, None


def _too_long(max_bytes: int) -> Finding:
    return error("line_too_long", f"the row is longer than {max_bytes:,} bytes", "shorten it, or raise max_line_bytes")


def _decode(data: bytes) -> tuple[str, list[Finding]]:
    try:
        return data.decode(), []
    except UnicodeDecodeError as cause:
        text = data.decode(errors="backslashreplace")
        message = f"byte {cause.start + 1} (0x{data[cause.start]:02x}) is not UTF-8"
        return text, [error("bad_encoding", message, "save the file as UTF-8")]


def _read_jsonl(file: IO[bytes], max_bytes: int) -> Iterator[RawRow]:
    is_first = True
    for number, line in _numbered_lines(file, max_bytes):
        if line is None:
            yield RawRow(line=number, findings=[_too_long(max_bytes)])
        elif data := line.strip():
            if is_first and data.startswith(b"[") and not data.endswith(b"]"):
                message = f"the file is a JSON list, begun on line {number}"
                yield _about_file("invalid_json", message, "name it .json, or write one record a line")
                return
            is_first = False
            yield RawRow(line=number, json=data, num_bytes=len(data))


def _read_line_blocks(file: IO[bytes], max_bytes: int, num_bytes: Callable[[], int]) -> Iterator[RawRow | Lines]:
    """The first record alone, since it shows what the file is, then lines in blocks. At most a block and a line are held."""
    first = next(_read_jsonl(file, max_bytes), None)
    if first is None:
        return
    yield first
    if first.line is None:
        return
    number, rest = first.line + 1, b""
    while data := file.read(num_bytes()):
        data = rest + data
        end = data.rfind(b"\n") + 1
        if end:
            yield Lines(number, data[:end])
            number += data.count(b"\n", 0, end)
        rest = data[end:]
        if len(rest) > max_bytes + 2:  # room for \r\n
            while (more := file.readline(_BLOCK_BYTES)) and not more.endswith(b"\n"):
                pass
            yield RawRow(line=number, findings=[_too_long(max_bytes)])
            number, rest = number + 1, b""
    if rest:
        yield Lines(number, rest)


def _object_row(line: int | None, text: str, value: Any, findings: list[Finding], num_bytes: int = 0) -> RawRow:
    if not findings and not isinstance(value, dict):
        message = f"a record has to be a JSON object, this is {shown(value)}"
        findings = [error("not_an_object", message, 'write {"query": ..., "response": ...}')]
    return RawRow(line=line, text=text, values=None if findings else value, findings=findings, num_bytes=num_bytes)


def _read_json_list(file: IO[bytes], max_bytes: int) -> Iterator[RawRow]:
    text, findings = _decode(file.read())
    if findings:
        yield RawRow(line=None, findings=findings)
        return
    position = skip_white_space(text, 0)
    if position == len(text):
        return
    if text[position] != "[":
        yield _about_file("invalid_json", "the file is not a JSON list", "name it .jsonl if it holds one record a line")
        return
    yield from _list_items(text, position + 1, max_bytes)


def _list_items(text: str, position: int, max_bytes: int) -> Iterator[RawRow]:
    reader = StrictJsonReader()
    line, counted = 1, 0
    position = skip_white_space(text, position)
    is_closed = text.startswith("]", position)
    while not is_closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end, findings = reader.read(text, position)
        except JsonSyntaxError as cause:
            line += text.count("\n", counted, cause.position)
            message = f"{cause.finding.message}; nothing behind it was read"
            yield RawRow(
                line=line,
                text=text[position : position + MAX_KEPT_CHARS],
                findings=[error(cause.finding.kind, message, "write the items of the list as JSON objects")],
            )
            return
        kept = text[position : min(end, position + MAX_KEPT_CHARS)]
        num_bytes = len(text[position:end].encode(errors="surrogatepass"))
        if num_bytes > max_bytes:
            yield RawRow(line=line, text=kept, findings=[_too_long(max_bytes)])
        else:
            yield _object_row(line, kept, value, findings, num_bytes)
        position = skip_white_space(text, end)
        if text.startswith(",", position):
            position = skip_white_space(text, position + 1)
        elif text.startswith("]", position):
            is_closed = True
        else:
            line += text.count("\n", counted, position)
            message = "behind an item of the list there is neither a comma nor a bracket; nothing behind it was read"
            yield RawRow(line=line, findings=[error("invalid_json", message, "write a comma, or ] at the end of the list")])
            return
    rest = skip_white_space(text, position + 1)
    if rest < len(text):
        line += text.count("\n", counted, rest)
        message = f"behind the list there is more text: {shown(text[rest : rest + 200])}"
        yield RawRow(line=line, findings=[error("trailing_garbage", message, "remove it")])


def _read_csv(file: IO[bytes], max_bytes: int) -> Iterator[RawRow]:
    header: list[str] | None = None
    for number, data in _csv_texts(file, max_bytes):
        if data is None:
            yield RawRow(line=None if header is None else number, findings=[_too_long(max_bytes)])
            if header is None:
                return
            continue
        text, findings = _decode(data.rstrip(b"\r\n"))
        try:
            cells = next(csv.reader([text], strict=True))
        except csv.Error as cause:
            findings.append(
                error("invalid_csv", f"this is not a csv row: {cause}", 'quote cells with ", and write " in them as ""')
            )
            cells = []
        if header is None:
            header = [name.strip() for name in cells]
            if problem := _header_problem(header):
                yield RawRow(line=None, findings=[*findings, problem])
                return
        elif findings:
            yield RawRow(line=number, text=text[:MAX_KEPT_CHARS], findings=findings)
        else:
            yield _csv_row(number, text[:MAX_KEPT_CHARS], header, cells, len(data))


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


def _header_problem(header: list[str]) -> Finding | None:
    if "query" not in header:
        message = f"the first row names no column `query`: {shown(', '.join(header))}"
        return error("missing_field", message, "name the columns in the first row, with commas between them")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        return error("duplicate_key", f"the first row names the column {shown(twice)} twice", "give each column its own name")
    return None


def _csv_row(number: int, text: str, header: list[str], cells: list[str], num_bytes: int) -> RawRow:
    if len(cells) != len(header):
        message = f"{len(cells)} cells for {len(header)} columns"
        return RawRow(line=number, text=text, findings=[error("invalid_csv", message, "quote cells that hold a comma")])
    reader = StrictJsonReader()
    values: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, cell in zip(header, cells, strict=True):
        if name in JSON_COLUMNS and cell:
            try:
                values[name], cell_findings = reader.read_all(cell)
                findings += cell_findings
            except JsonSyntaxError as cause:
                message = f"the cell of `{name}` is {shown(cell)}, which is not JSON"
                findings.append(error(cause.finding.kind, message, 'write lists as JSON, such as ["a.png"]'))
        elif cell:
            values[name] = cell
    return RawRow(line=number, text=text, values=None if findings else values, findings=findings, num_bytes=num_bytes)
