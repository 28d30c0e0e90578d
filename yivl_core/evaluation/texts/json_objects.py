"""JSON objects inside free text, with numbers as they are written there."""

import json
from collections.abc import Mapping
from typing import Any

_MAX_STARTS = 1000
"""Braces that are tried: from each the text is read on, so a text of nothing but braces would take the square of its length."""


class JsonNumber(str):
    """A number as written in JSON: `17.30` is told from `17.3`, and no digit is lost."""

    __slots__ = ()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_float=JsonNumber, parse_int=JsonNumber, parse_constant=_refuse)


def first_json_object(text: str) -> dict[str, Any] | None:
    """The object that begins at the first brace from which a whole object can be read; None where there is none.

    Of an object that is cut off, a whole object inside it is found. Numbers are `JsonNumber`.
    """
    start = text.find("{")
    for _ in range(_MAX_STARTS):
        if start == -1:
            return None
        try:
            found, _ = _DECODER.raw_decode(text, start)
            as_canonical_json(found).encode()  # half a surrogate pair, written as an escape, cannot stand in a report
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
        else:
            assert isinstance(found, dict)
            return found
    return None


def whole_json_object(text: str) -> dict[str, Any] | None:
    """The object that a text is as a whole, but for white space round it; None where it is none. Numbers are `JsonNumber`."""
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def as_canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no white space, no escapes that can be done without, numbers as written."""
    if isinstance(value, JsonNumber):
        return str(value)
    if isinstance(value, Mapping):
        fields = (f"{json.dumps(key, ensure_ascii=False)}:{as_canonical_json(value[key])}" for key in sorted(value))
        return "{" + ",".join(fields) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_canonical_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
