"""Plots in SVG. Horizontal places are in percent, so a plot is as wide as its screen while its lines keep their thickness.

Words and figures stand beside the plot as text: who sees no plot reads the same.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from yivl_core.evaluation.pages.numbers import render_interval, render_value
from yivl_core.outputs.page import num, render_text

_MAX_VALUES = 12  # of a slice; the table has all
_MARGIN = 0.06  # of the width, on either side
_MIN_BAR = 0.8  # percent, of a bar for one row or more
_MAX_REACH = 3.0  # of an axis beyond the interval of all rows, in reaches of the slice in the middle


def render_plots(report: dict[str, Any]) -> str:
    """The section of plots; empty where there is nothing to draw."""
    parts = [part for part in (_forest(report), _histogram(report)) if part]
    if not parts:
        return ""
    return '<section id="plots">\n<h2>At a glance</h2>\n<div class="plots">\n' + "\n".join(parts) + "\n</div>\n</section>"


class _Axis:
    """Figures -> places in percent of the width.

    Args:
        low: the figure at the left end.
        high: the figure at the right end.
    """

    def __init__(self, low: float, high: float) -> None:
        if low == high:
            low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        self.low, self.high = low, high
        width = high - low
        self._start, self._width = low - _MARGIN * width, width * (1 + 2 * _MARGIN)

    def percent(self, value: float) -> float:
        """A place; of a figure that is off the axis that of its end."""
        return 100 * (min(max(value, self.low), self.high) - self._start) / self._width

    def place(self, value: float) -> str:
        return f"{self.percent(value):.2f}%"


def _axis(overall: dict[str, Any], figures: Sequence[dict[str, Any]]) -> _Axis:
    """From the lowest end to the highest, but not so far that a few rows with a wide interval press all others together."""
    middle = overall["value"]
    reaches = sorted(max(abs(end - middle) for end in ends) for ends in map(_ends, figures) if ends)
    reach = _MAX_REACH * statistics.median(reaches) if reaches else 0.0
    ends = [middle, *_ends(overall), *(end for figure in figures for end in _ends(figure))]
    own = _ends(overall)
    return _Axis(max(min(ends), min(own) - reach), min(max(ends), max(own) + reach))


def _ends(figure: dict[str, Any]) -> list[float]:
    found = (figure["value"], figure["interval"]["low"], figure["interval"]["high"])
    return [end for end in found if end is not None]


def _forest(report: dict[str, Any]) -> str:
    primary = report["scoring"]["primary"]
    overall = report["figures"].get(primary)
    slices = [part for part in report["slices"] if part["values"]]
    if overall is None or overall["value"] is None or not slices:
        return ""
    shown = [
        value["figures"][primary] for part in slices for value in part["values"][:_MAX_VALUES] if primary in value["figures"]
    ]
    axis = _axis(overall, shown)
    blocks = [f'<li class="all">{_line("all rows", overall, overall, axis)}</li>']
    for part in slices:
        rows = [
            f"<li>{_line(value['value'], value['figures'][primary], overall, axis)}</li>"
            for value in part["values"][:_MAX_VALUES]
            if primary in value["figures"]
        ]
        rest = len(part["values"]) - _MAX_VALUES
        more = f'<li class="note">(and {num(rest, "more value")} in the table below)</li>' if rest > 0 else ""
        blocks.append(f'<li><h4>{render_text(part["name"])}</h4><ul class="rows">{"".join(rows)}{more}</ul></li>')
    title = render_text(overall["title"])
    return (
        f'<figure>\n<figcaption><h3>{title} by slice</h3><p class="note">A dot is the figure, its line the 95 % interval; the '
        f"band is the interval of all rows. An arrow: it goes on.</p></figcaption>\n"
        '<ul class="forest rows">\n' + "\n".join(blocks) + f"\n</ul>\n{_ticks(axis, overall['kind'])}\n</figure>"
    )


def _line(label: str, figure: dict[str, Any], overall: dict[str, Any], axis: _Axis) -> str:
    kind = overall["kind"]
    told = f"{render_value(figure['value'], kind)}, {render_interval(figure['interval'], kind)}, n {figure['n']:,}"
    return (
        f'<span class="label" dir="auto">{render_text(label)}</span> <span class="told">{told}</span>'
        f'<svg width="100%" height="16" aria-hidden="true" focusable="false">{_band(overall, axis)}{_mark(figure, axis)}</svg>'
    )


def _band(overall: dict[str, Any], axis: _Axis) -> str:
    low, high = overall["interval"]["low"], overall["interval"]["high"]
    middle = axis.place(overall["value"])
    line = f'<line class="overall" x1="{middle}" x2="{middle}" y1="0" y2="16"/>'
    if low is None or high is None:
        return line
    width = axis.percent(high) - axis.percent(low)
    return f'<rect class="band" x="{axis.place(low)}" width="{width:.2f}%" y="0" height="16"/>{line}'


def _mark(figure: dict[str, Any], axis: _Axis) -> str:
    value, low, high = figure["value"], figure["interval"]["low"], figure["interval"]["high"]
    if value is None:
        return ""
    marks = ""
    if low is not None and high is not None:
        marks = f'<line class="whisker" x1="{axis.place(low)}" x2="{axis.place(high)}" y1="8" y2="8"/>'
        if high > axis.high:
            marks += '<text class="beyond" x="100%" y="13" text-anchor="end">▸</text>'
        if low < axis.low:
            marks += '<text class="beyond" x="0" y="13">◂</text>'
    return marks + (f'<circle class="dot" cx="{axis.place(value)}" cy="8" r="4.5"/>' if axis.low <= value <= axis.high else "")


def _ticks(axis: _Axis, kind: str) -> str:
    middle = (axis.low + axis.high) / 2
    anchors = ((axis.low, "start"), (middle, "middle"), (axis.high, "end"))
    marks = "".join(
        f'<line class="tick" x1="{axis.place(value)}" x2="{axis.place(value)}" y1="0" y2="5"/>'
        f'<text x="{axis.place(value)}" y="18" text-anchor="{anchor}">{render_value(value, kind)}</text>'
        for value, anchor in anchors
    )
    return f'<svg class="axis" width="100%" height="24" aria-hidden="true" focusable="false">{marks}</svg>'


def _histogram(report: dict[str, Any]) -> str:
    bins = report["histogram"]
    most = max((one["num_rows"] for one in bins), default=0)
    metric = report["figures"].get(report["scoring"]["primary"])
    if not most or metric is None:
        return ""
    rows = "\n".join(_bar(one, most, metric) for one in bins)
    return (
        f"<figure>\n<figcaption><h3>Rows by their own {render_text(metric['title'])}</h3>"
        '<p class="note">How many rows have which figure of their own; right answers in green.</p></figcaption>\n'
        f'<ul class="histogram rows">\n{rows}\n</ul>\n</figure>'
    )


def _bar(one: dict[str, Any], most: int, metric: dict[str, Any]) -> str:
    number = one["num_rows"]
    width = max(_MIN_BAR, 100 * number / most) if number else 0.0
    best = {"low": 0.0, "high": 1.0}.get(metric["best"])
    looks = "perfect" if one["low"] == best and one["high"] in (best, None) else "bin"
    return (
        f'<li><span class="label">{_bin(one, metric["kind"])}</span><svg width="100%" height="16" aria-hidden="true" '
        f'focusable="false"><rect class="{looks}" y="1" height="14" rx="2" width="{width:.2f}%"/></svg>'
        f'<span class="told">{number:,}</span></li>'
    )


def _bin(one: dict[str, Any], kind: str) -> str:
    low, high = f"{100 * one['low']:.0f}", one["high"]
    if high is None and kind == "rate":
        return f"{low}\N{NO-BREAK SPACE}% and more"
    return f"{low}\N{NO-BREAK SPACE}%" if high in (one["low"], None) else f"{low} to {100 * high:.0f}\N{NO-BREAK SPACE}%"
