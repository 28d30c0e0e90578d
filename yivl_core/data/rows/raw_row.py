"""One row of a file before anybody knows what it means: where it stands, and how it is written or what its values are."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from yivl_core.data.findings import Finding, error, row_too_long, shown
from yivl_core.data.rows.strict_json import JsonSyntaxError, StrictJsonReader

MAX_KEPT_CHARS = 2000  # of a rejected row, for the quarantine


class RawRow(NamedTuple):  # which is made in half the time of a dataclass
    """One row of a file.

    Attributes:
        line: where it starts, from 1; in a JSON list what `place_of` makes of line and item; None for all of the file.
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


def lines_of(lines: Lines, max_line_bytes: int) -> Iterator[RawRow]:
    """The rows of a block, as `split_raw_rows` gives them."""
    for number, line in enumerate(lines.data.split(b"\n"), lines.first):
        if len(line) > max_line_bytes and len(line.removesuffix(b"\r")) > max_line_bytes:
            yield RawRow(line=number, findings=[row_too_long(max_line_bytes)])
        elif data := line.strip():
            yield RawRow(line=number, json=data, num_bytes=len(data))


def parse_raw_row(row: RawRow, reader: StrictJsonReader) -> RawRow:
    """A row of `split_raw_rows` with its values, or with what is wrong with them."""
    if row.json is None:
        return row
    text, findings = decode_row(row.json)
    kept = text[:MAX_KEPT_CHARS]
    value = None
    if not findings:
        try:
            value, findings = reader.read_all(text)
        except JsonSyntaxError as cause:
            findings = [cause.finding]
    parsed = _object_row(row.line, kept, value, findings)
    return parsed._replace(findings=[*parsed.findings, *row.findings])


def about_file(kind: str, message: str, remedy: str) -> RawRow:
    """A row about a file as a whole."""
    return RawRow(line=None, findings=[error(kind, message, remedy)])


def decode_row(data: bytes) -> tuple[str, list[Finding]]:
    """The text of a row, and what is wrong with it where it is not UTF-8."""
    try:
        return data.decode(), []
    except UnicodeDecodeError as cause:
        text = data.decode(errors="backslashreplace")
        message = f"byte {cause.start + 1} (0x{data[cause.start]:02x}) is not UTF-8"
        return text, [error("bad_encoding", message, "save the file as UTF-8")]


def _object_row(line: int | None, text: str, value: Any, findings: list[Finding]) -> RawRow:
    if not findings and not isinstance(value, dict):
        message = f"a record has to be a JSON object, this is {shown(value)}"
        findings = [error("not_an_object", message, 'write {"query": ..., "response": ...}')]
    return RawRow(line=line, text=text, values=None if findings else value, findings=findings)
