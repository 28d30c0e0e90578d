r"""Text such as `['CENTRE', "Joe's"]` -> its strings: lists of strings as JSON or as Python writes them, in the cells of tables.

Nothing is evaluated: a list is told by its form, and its strings are unescaped one by one. Numbers, names and lists in a list are
none of it, so `[1, 2]` and `[illegible]` stay the text that they are.
"""

import json
import re

_STRING = r"""'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*\""""
_ONE = re.compile(_STRING, re.DOTALL)
_LIST = re.compile(rf"\s*\[\s*(?:{_STRING})(?:\s*,\s*(?:{_STRING}))*\s*,?\s*\]\s*", re.DOTALL)
# Python's reference, 2.4.1.1 Escape sequences, without \N{NAME}; as there, what is none of them keeps its backslash.
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))", re.DOTALL)
_SIMPLE = {
    "\\": "\\", "'": "'", '"': '"', "\n": "",
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip


def read_list(text: str) -> list[str] | None:
    """The strings of a list that is written as text.

    Returns:
        None for any other text, also for the empty list, which says nothing.
    """
    if not text.lstrip().startswith("[") or not _LIST.fullmatch(text):
        return None
    try:
        return [_unescaped(match.group()) for match in _ONE.finditer(text)]
    except (ValueError, OverflowError):  # a number that is no character
        return None


def _unescaped(literal: str) -> str:
    if "\\" not in literal:
        return literal[1:-1]
    if literal.startswith('"'):
        try:
            return str(json.loads(literal))  # which alone joins the two halves of a character, as "\ud83d\ude00"
        except ValueError:
            pass
    return _ESCAPE.sub(_character, literal[1:-1])


def _character(match: re.Match[str]) -> str:
    two, four, eight, octal, other = match.groups()
    if other is not None:
        return _SIMPLE.get(other, match.group())
    return chr(int(octal, 8) if octal is not None else int(two or four or eight, 16))
