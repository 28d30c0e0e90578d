"""Figures of a report in words and digits. What comes out is HTML, and holds nothing that others wrote but names of methods."""

from typing import Any

from yivl_core.outputs.page import render_text

NOTHING = "–"
_SPACE = "\N{NO-BREAK SPACE}"
_SMALLEST_P = 0.0001


def render_value(value: float | None, kind: str) -> str:
    """A figure: a score as it is, all others in percent."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if kind == "score" else f"{100 * value:.2f}{_SPACE}%"


def render_own_value(value: float | None, kind: str) -> str:
    """The figure of one row: of a share it is one of two."""
    if kind == "share" and value is not None:
        return "yes" if value else "no"
    return render_value(value, kind)


def render_interval(interval: dict[str, Any], kind: str) -> str:
    """Both ends of an interval, or why there is none."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return f'<span class="muted">{render_text(str(interval["method"]))}</span>'
    if kind == "score":
        return f"{_signed(low)} to {_signed(high)}"
    return f"{_signed(100 * low)} to {_signed(100 * high)}{_SPACE}%"


def render_range(interval: dict[str, Any], kind: str) -> str:
    """Both ends of the interval of a difference, in the same unit as the difference, which is not said again."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return f'<span class="muted">{render_text(str(interval["method"]))}</span>'
    scale = 1 if kind == "score" else 100
    return f'<span class="range">{_signed(scale * low, plus="+")} to {_signed(scale * high, plus="+")}</span>'


def render_difference(difference: float | None, kind: str) -> str:
    """A difference with its sign: in percentage points, or as it is for scores."""
    if difference is None:
        return NOTHING
    return _signed(difference, plus="+") if kind == "score" else f"{_signed(100 * difference, plus='+')}{_SPACE}points"


def render_size(size: float | None, kind: str) -> str:
    """How large a difference has to be; where nothing varied there is no such size."""
    if not size:
        return NOTHING
    return f"{size:.2f}" if kind == "score" else f"{100 * size:.2f}{_SPACE}points"


def render_p(p_value: float | None) -> str:
    """A p-value, as exact as anybody needs it."""
    if p_value is None:
        return NOTHING
    if p_value < _SMALLEST_P:
        return f"&lt;{_SPACE}{_SMALLEST_P:.4f}"
    return f"{p_value:.4f}" if p_value < 0.01 else f"{p_value:.3f}"


def render_share(number: int, total: int) -> str:
    """Part of a whole, in percent."""
    return NOTHING if not total else f"{100 * number / total:.2f}{_SPACE}%"


def _signed(number: float, plus: str = "") -> str:
    size = f"{abs(number):.2f}"
    if not any(digit in size for digit in "123456789"):
        return size
    return f"{'−' if number < 0 else plus}{size}"
