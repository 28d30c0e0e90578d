"""JSON text -> values, strictly: what Python's own reader lets pass without a word is a finding here.

That is: a key given twice, NaN and Infinity, numbers too large for their type, text behind the value, and nesting so deep that
a later writer would fail on it. Text that cannot be stored (control characters, half a surrogate pair) is found by `check_text`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from yivl_core.data.findings import MAX_ROW_FINDINGS, Finding, error, shown

MAX_DEPTH = 64  # records need three levels; far below what makes Python's own JSON code run out of stack

_MAX_NAME_CHARS = 200  # of a place in a value, or each item behind a long key would cost the length of that
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
# Tab and line ends are text. U+0080-U+009F are left alone: they come with text that was converted from old encodings.
_CONTROL_CHAR = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_UNSTORABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # both


class JsonSyntaxError(ValueError):
    """The text is not JSON, and reading cannot go on behind the place.

    Attributes:
        finding: what to tell the user.
        position: index of the character where reading stopped.
    """

    def __init__(self, finding: Finding, position: int) -> None:
        super().__init__(str(finding))
        self.finding = finding
        self.position = position


def skip_white_space(text: str, position: int) -> int:
    """The index of the next character that is not JSON white space."""
    match = _WHITE_SPACE.match(text, position)
    return match.end() if match else position


class StrictJsonReader:
    """Reads one JSON value at a time and keeps what is wrong with it. Not to be shared by threads."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []  # no more than a hundred, though a text may hold a million NaN
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def read(self, text: str, position: int = 0) -> tuple[Any, int, list[Finding]]:
        """The value that starts at `position`.

        Returns:
            The value, the index behind it, and what is wrong with it although its end was found.

        Raises:
            JsonSyntaxError: there is no JSON value, or its end cannot be found.
        """
        self._findings = []
        try:
            value, end = self._decoder.raw_decode(text, skip_white_space(text, position))
        except json.JSONDecodeError as cause:
            raise JsonSyntaxError(_syntax_finding(cause), cause.pos) from cause
        except RecursionError as cause:
            raise JsonSyntaxError(too_deep(), position) from cause
        num_brackets = text.count("[", position, end) + text.count("{", position, end)
        if num_brackets > MAX_DEPTH and depth_exceeds(value, MAX_DEPTH):  # most records have too few to be deep
            self._add(too_deep())
        return value, end, self._findings

    def read_all(self, text: str) -> tuple[Any, list[Finding]]:
        """The only value of a text.

        Raises:
            JsonSyntaxError: as `read`; also something follows the value.
        """
        value, end, findings = self.read(text)
        rest = skip_white_space(text, end)
        if rest < len(text):
            message = f"behind the JSON value there is more text: {shown(text[rest : rest + 200])}"
            raise JsonSyntaxError(error("trailing_garbage", message, "write one JSON object a line and nothing else"), rest)
        return value, findings

    def _add(self, finding: Finding) -> None:
        if len(self._findings) < MAX_ROW_FINDINGS:
            self._findings.append(finding)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            twice = first_twice([name for name, _ in pairs])
            self._add(error("duplicate_key", f"the key {shown(twice)} stands twice in one object", "keep one of them"))
        return fields

    def _constant(self, name: str) -> None:
        self._add(error("invalid_json", f"{name} is not a JSON number", "write null or leave the field out"))

    def _float(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            self._add(error("invalid_json", f"the number {shown(digits)} is too large", "write it as a string"))
        return value

    def _int(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:  # Python converts at most 4300 digits
            message = f"a number has {len(digits)} digits"
            self._add(error("invalid_json", message, "write it as a string"))
            return 0


def first_twice(names: Sequence[str]) -> str | None:
    """The first of some names that comes again later; None where each comes once."""
    counts = Counter(names)
    return next((name for name in names if counts[name] > 1), None)


def check_text(value: Any, name: str) -> Iterator[Finding]:
    """What in a value's strings and keys cannot be stored as UTF-8 text or breaks the programs that read it later.

    Args:
        value: any JSON value, at most `MAX_DEPTH` deep.
        name: what to call it in messages, such as `query`.
    """
    name = name[:_MAX_NAME_CHARS]
    if isinstance(value, str):
        yield from _check_string(value, name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from check_text(item, f"{name}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _check_string(key, f"a key of {name}")
            yield from check_text(item, f"{name}.{key}")


def is_storable(value: Any) -> bool:
    """Whether a value is a string in which `check_text` finds nothing: one look for what nearly all are."""
    return isinstance(value, str) and not _UNSTORABLE.search(value)


def too_deep(place: str = "") -> Finding:
    """A value that is deeper than `MAX_DEPTH`.

    Args:
        place: what to call it where it is not the row, such as `meta`.
    """
    what = f"in `{place}` lists or objects are" if place else "lists or objects are"
    return error("invalid_json", f"{what} nested more than {MAX_DEPTH} deep", "store such a value as a string")


def depth_exceeds(value: Any, limit: int) -> bool:
    """Whether lists or objects with something in them are nested more than so deep in a JSON value."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            item
            for container in level
            if isinstance(container, (list, dict))
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return True


def _check_string(text: str, name: str) -> Iterator[Finding]:
    if match := _CONTROL_CHAR.search(text):
        message = f"{shown(name)} holds the control character U+{ord(match.group()):04X}"
        yield error("control_char", message, "remove it")
    if match := _SURROGATE.search(text):
        message = f"{shown(name)} holds U+{ord(match.group()):04X}, half of a surrogate pair"
        yield error("bad_unicode", message, "write the whole character, or remove it")


def _syntax_finding(cause: json.JSONDecodeError) -> Finding:
    place = f"at character {cause.pos + 1}"
    if cause.msg.startswith("Invalid control character"):
        code = ord(cause.doc[cause.pos])
        return error("control_char", f"the control character U+{code:04X} stands {place}", "remove it, or write it as an escape")
    near = cause.doc[cause.pos : cause.pos + 20]
    where = f"{place}, before {shown(near)}" if near else f"{place}, where the text ends"
    message = f"this is not JSON: {cause.msg.removesuffix(' at')} {where}"
    return error("invalid_json", message, "write one JSON object a line")
