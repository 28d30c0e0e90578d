"""The figures of parts of the rows, in one table for each slice."""

from typing import Any

from yivl_core.evaluation.pages.numbers import render_interval, render_share, render_value
from yivl_core.evaluation.pages.tables import render_table
from yivl_core.outputs.page import render_attribute, render_text


def render_slices(report: dict[str, Any]) -> str:
    """The section of slices; empty without any."""
    slices = [part for part in report["slices"] if part["values"]]
    if not slices:
        return ""
    tables = "\n".join(f"<h3>{render_text(part['name'])}</h3>\n{_table(part, report)}" for part in slices)
    return f'<section id="slices">\n<h2>Slices</h2>\n{tables}\n</section>'


def _table(part: dict[str, Any], report: dict[str, Any]) -> str:
    figures = report["figures"]
    names = [name for name in part["values"][0]["figures"] if name in figures]
    columns = [
        "value",
        "rows",
        *(column for name in names for column in (render_attribute(figures[name]["title"]), "95 % interval")),
    ]
    rows = [[_value(value), _rows(value, report["rows"]["compared"]), *_cells(value, names, figures)] for value in part["values"]]
    return render_table("figures by value of the slice", columns, rows)


def _value(value: dict[str, Any]) -> str:
    return f'<span dir="auto">{render_text(value["value"])}</span>'


def _rows(value: dict[str, Any], total: int) -> str:
    return f'{value["num_rows"]:,} <span class="meaning">{render_share(value["num_rows"], total)}</span>'


def _cells(value: dict[str, Any], names: list[str], figures: dict[str, Any]) -> list[str]:
    cells = []
    for name in names:
        figure, kind = value["figures"][name], figures[name]["kind"]
        cells += [f"<strong>{render_value(figure['value'], kind)}</strong>", render_interval(figure["interval"], kind)]
    return cells
