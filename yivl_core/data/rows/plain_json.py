r"""Lines of jsonl as nearly all are written, read at several times the speed of `strict_json`.

`orjson` refuses most of what that refuses: NaN, raw control characters, half a surrogate pair, bytes that are no UTF-8, and more
text behind the value. It is silent about a key that is given twice, a number that is too large, deep nesting, and escaped control
characters. Where one of these may be there, the line is left to `strict_json`, which has the last word and the message.
"""

import re
from typing import Any

import orjson

_MAX_PLAIN_DEPTH = 8
# Escapes of control characters and of the quote, which `_num_quotes` would miscount.
_SUSPECT_ESCAPE = re.compile(rb"\\u00(?:[01][0-9a-fA-F]|22|7[fF])")


class _UnsureError(Exception):
    """A value of which only `strict_json` can tell whether it is right."""


def read_plain_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line in which `strict_json` would find nothing wrong, and `check_text` neither.

    Args:
        line: without white space around it.

    Returns:
        The object; None where that reader has to look at the line itself.
    """
    has_escapes = b"\\" in line
    if b"\x7f" in line or (has_escapes and _may_hold_control_characters(line)):
        return None
    try:
        value = orjson.loads(line)
        if type(value) is not dict or line.count(b'"') != _num_quotes(value, has_escapes, 0):
            return None  # fewer quotes than were read: a key stands twice
    except (orjson.JSONDecodeError, _UnsureError):
        return None
    return value


def _may_hold_control_characters(line: bytes) -> bool:
    if b"\\b" in line or b"\\f" in line:
        return True
    return b"\\u00" in line and _SUSPECT_ESCAPE.search(line) is not None


def _num_quotes(value: Any, has_escapes: bool, depth: int) -> int:
    """The quotes with which an object or list is written, if no key is given twice."""
    if depth > _MAX_PLAIN_DEPTH:
        raise _UnsureError
    number = 0
    items = value
    if type(value) is dict:
        number = 2 * len(value)
        if has_escapes:
            number += sum(key.count('"') for key in value)
        items = value.values()
    for item in items:  # a loop, since this is done for every line
        kind = type(item)
        if kind is str:
            number += 2 + item.count('"') if has_escapes else 2
        elif kind is dict or kind is list:
            number += _num_quotes(item, has_escapes, depth + 1)
        elif kind is float:  # a number of very many digits becomes one, too
            raise _UnsureError
    return number
