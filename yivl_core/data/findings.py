"""What is wrong with a line of a dataset: where, what kind, and how to mend it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from yivl_core.data.public_urls import redact_urls
from yivl_core.errors import DatasetError

Severity = Literal["error", "warning"]

KINDS: dict[str, str] = {
    "invalid_json": "it cannot be parsed as JSON",
    "trailing_garbage": "something follows the JSON value on the line",
    "duplicate_key": "a name is given twice",
    "invalid_csv": "the row does not fit the columns, or its quotes do not match",
    "not_an_object": "JSON, but not an object with named fields",
    "missing_field": "a field is not there",
    "empty_field": "a field is empty or only white space",
    "wrong_type": "a field has the wrong type",
    "role_order": "system, user and assistant do not speak in turn",
    "unknown_role": "nobody knows who speaks a message",
    "unsupported_content": "a message holds what the model cannot be shown: sound, video, calls of tools",
    "format_mismatch": "the row has another format than the dataset",
    "history_shape": "history is not a list of [question, answer] pairs of strings",
    "image_count_mismatch": "the images cannot be given to the rounds without guessing",
    "image_missing": "there is no such image",
    "image_unreadable": "the file is not an image that can be read; the detail says why",
    "path_escape": "the address leads out of the image root",
    "url_not_allowed": "the address is a URL that `--allow-url` does not allow, or leads to where no public one may",
    "control_char": "text holds a NUL or another control character",
    "bad_encoding": "the bytes are not UTF-8 text",
    "bad_unicode": "text holds half a character, or a file name is not UTF-8",
    "line_too_long": "the row is longer than the limit",
    "too_many_findings": "there is more wrong with the row than is told",
    "empty_file": "the file holds no record",
    "damaged_file": "the file is damaged; what is behind the damage was not read",
    "bom": "the file starts with a byte order mark",
    "unknown_field": "a field is not known, and is kept in `meta`",
    "duplicate_record": "the same record with the same images came before",
    "duplicate_image": "the same image came before under another address",
    "leaked_record": "the same question on the same images stands in a dataset to be kept apart",
    "leaked_image": "the same image is in a dataset to be kept apart",
    "too_long": "the record has more tokens than the model may read",
    "animated": "an image has further frames or pages, which are left out",
    "extension_mismatch": "an image's content is of another format than its name says",
    "tiny": "an image is only a few pixels wide or high",
}

# A record with one of these, and nothing worse, can be used.
WARNING_KINDS = frozenset(
    {
        "bom",
        "unknown_field",
        "duplicate_record",
        "duplicate_image",
        "leaked_record",
        "leaked_image",
        "too_long",
        "animated",
        "extension_mismatch",
        "tiny",
    }
)

MAX_ROW_FINDINGS = 100

_MAX_SHOWN_CHARS = 80
_MAX_READ_CHARS = 4096
_LINE_BITS = 40  # of a place: a terabyte of blank lines
MAX_LINE, _MAX_ITEM = (1 << _LINE_BITS) - 1, 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    r"""Where a record was written.

    Attributes:
        file: path of the file.
        line: line of it, counted from 1 (only the byte `\n` ends a line); None for the file as a whole.
        item: which of the items of a JSON list that begin on this line, counted from 1.
    """

    file: str
    line: int | None = None
    item: int = 1

    @classmethod
    def of_place(cls, file: str, place: int | None) -> "Source":
        """From a place in a file as `place_of` gives it."""
        return cls(file=file) if place is None else cls(file=file, line=place & MAX_LINE, item=(place >> _LINE_BITS) + 1)

    @property
    def numbers(self) -> dict[str, int | None]:
        """Line, and item where it is not the first of its line, as JSON tells them."""
        return {"line": self.line} if self.item == 1 else {"line": self.line, "item": self.item}

    def __str__(self) -> str:
        if self.line is None:
            return self.file
        return f"{self.file}:{self.line}" if self.item == 1 else f"{self.file}:{self.line} (item {self.item} of this line)"


def place_of(line: int, item: int) -> int:
    """Line and item as one number, which is the line's for the first item of a line."""
    return line | (min(item, _MAX_ITEM) - 1) << _LINE_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with a line, or worth knowing about it.

    Attributes:
        kind: what it is, one of `KINDS`.
        severity: an `error` keeps the record from being used, a `warning` does not.
        message: what is wrong, with the value.
        remedy: how to mend it.
        detail: for `image_unreadable`, why the image cannot be read (`truncated`, `not_an_image` ...).
    """

    kind: str
    severity: Severity
    message: str
    remedy: str
    detail: str | None = None

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {  # a tenth of the time that `asdict` takes, of millions
            "kind": self.kind,
            "severity": self.severity,
            "message": self.message,
            "remedy": self.remedy,
            "detail": self.detail,
        }


class TooManyFindingsError(Exception):
    """A row has more findings than are told of one; looking for more is a waste."""


class RowFindings(list[Finding]):
    """The findings of one row, a bounded number of them, so that no row takes the time and memory of a million."""

    def append(self, finding: Finding) -> None:
        """Add a finding.

        Raises:
            TooManyFindingsError: there are enough; a last one that says so is added.
        """
        super().append(finding)
        if len(self) >= MAX_ROW_FINDINGS:
            super().append(error("too_many_findings", f"{MAX_ROW_FINDINGS} findings are told of a row", "mend these first"))
            raise TooManyFindingsError

    def extend(self, findings: Iterable[Finding]) -> None:
        """Add findings.

        Raises:
            TooManyFindingsError: as `append`.
        """
        for finding in findings:
            self.append(finding)

    def __iadd__(self, findings: Iterable[Finding]) -> "RowFindings":  # type: ignore[override,misc]
        self.extend(findings)
        return self


class UnreadableFileError(DatasetError):
    """A file of a dataset cannot be read, or no further.

    Attributes:
        file: its name.
        message: what is wrong, and where in the file.
        remedy: how to mend it.
    """

    def __init__(self, file: str, message: str, remedy: str) -> None:
        super().__init__(f"{file}: {message}; {remedy}")
        self.file = file
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["UnreadableFileError"], tuple[str, str, str]]:
        return type(self), (self.file, self.message, self.remedy)  # for its way between processes


def error(kind: str, message: str, remedy: str, detail: str | None = None) -> Finding:
    """A finding that keeps the record from being used."""
    return Finding(kind=kind, severity="error", message=message, remedy=remedy, detail=detail)


def warning(kind: str, message: str, remedy: str) -> Finding:
    """A finding that does not keep the record from being used."""
    return Finding(kind=kind, severity="warning", message=message, remedy=remedy)


def wrong_type(name: str, value: Any, wanted: str) -> Finding:
    """A field, or a place in one, whose JSON value is of another type than the remedy names."""
    what = type_name(value) if value is None else f"{type_name(value)}: {shown(value)}"
    return error("wrong_type", f"`{name}` is {what}", f"write {wanted}")


def type_name(value: Any) -> str:
    """What a JSON value is, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]


def row_too_long(max_bytes: int) -> Finding:
    """A row that is not read because of its length."""
    return error("line_too_long", f"the row is longer than {max_bytes:,} bytes", "shorten it, or raise max_line_bytes")


def shown(value: Any) -> str:
    """A JSON value as a message shows it: in JSON, on one line, never long, and without the secrets of URLs."""
    if isinstance(value, str):
        value = redact_urls(value[:_MAX_READ_CHARS])[: _MAX_SHOWN_CHARS + 1]  # in this order: half a URL cannot be told
    text = json.dumps(value, ensure_ascii=False)
    if not text.isprintable():
        text = json.dumps(value)
    text = redact_urls(text[:_MAX_READ_CHARS])
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 1]}…"
