"""Texts and numbers of a report as cells of Markdown tables. What models and users wrote is shown as text and nothing else."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from yivl_core.evaluation.metrics.metric import Kind

NOTHING = "-"

_MAX_CHARACTERS = 160
_SIGNS = {sign: f"&#{ord(sign)};" for sign in "&<>|\\"} | {sign: f"\\{sign}" for sign in "`*_[]~$"}
_PLAIN_NAME = re.compile(r"[\w./+-]+")
_LEAST_P = 0.001


def escape(text: str, max_characters: int = _MAX_CHARACTERS) -> str:
    """One line of Markdown that shows the text, without markup, links or HTML of its own; cut if it is long.

    Line breaks show as `⏎`, other invisible characters as their code point, an empty text as `(empty)`.
    """
    if not text:
        return "*(empty)*"
    shown = "".join(_shown(character) for character in text[:max_characters])
    shown = shown.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    rest = len(text) - max_characters
    return f"{shown} *(and {rest} more characters)*" if rest > 0 else shown


def _shown(character: str) -> str:
    if character == "\n":
        return "⏎"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"(U+{ord(character):04X})"
    return _SIGNS.get(character, character)


def name_cell(name: str) -> str:
    """A name as code, or as text where it has signs that would end the code, as a file's name may."""
    return f"`{name}`" if _PLAIN_NAME.fullmatch(name) else escape(name)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def figure_cell(value: float | None, kind: Kind) -> str:
    """A figure of a metric of this kind: in percent, but for a score, which has a scale of its own."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if kind == "score" else f"{100 * value:.2f} %"


def change_cell(value: float | None, kind: Kind) -> str:
    """A difference of two figures, with its sign; that of percentages in points."""
    if value is None:
        return NOTHING
    return _signed(value, plus="+") if kind == "score" else f"{_signed(100 * value, plus='+')} points"


def size_cell(value: float | None, kind: Kind) -> str:
    """How large a difference is, without a sign."""
    return change_cell(value, kind).removeprefix("+")


def interval_cell(interval: dict[str, Any], kind: Kind, *, is_change: bool = False) -> str:
    """From where to where a figure may be, or a difference."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return NOTHING
    if kind == "score":
        return f"{_signed(low)} to {_signed(high)}"
    return f"{_signed(100 * low)} to {_signed(100 * high)} {'points' if is_change else '%'}"


def _signed(value: float, plus: str = "") -> str:
    """A number to two digits; nought has no sign, also where it is only rounded to that."""
    size = f"{abs(value):.2f}"
    return size if float(size) == 0 else f"{'-' if value < 0 else plus}{size}"


def p_cell(value: float | None) -> str:
    """A p value, which is not worth more than three digits."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value >= _LEAST_P else f"< {_LEAST_P}"
