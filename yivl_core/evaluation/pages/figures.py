"""The figures of a report: the main ones large, all of them in a table, what they mean, and what went wrong in rows."""

from typing import Any

from yivl_core.evaluation.metrics.names import HYGIENE
from yivl_core.evaluation.pages.numbers import render_difference, render_interval, render_share, render_size, render_value
from yivl_core.evaluation.pages.tables import render_table
from yivl_core.outputs.page import num, render_attribute, render_start, render_text

_MAIN = ("exact_match", "cer")  # beside the primary one
_COLUMNS = ("metric", "value", "95 % interval", "rows", "answered rows only", "smallest difference", "method")


def render_figures(report: dict[str, Any]) -> str:
    """The section of figures."""
    figures = report["figures"]
    names = list(dict.fromkeys(name for name in (report["scoring"]["primary"], *_MAIN) if name in figures))
    tiles = [_tile(report, name) for name in names] + [_coverage(report["rows"])]
    table = render_table("all figures", _COLUMNS, [_row(figures[name]) for name in ordered_names(report)], looks="figures")
    return (
        f'<section id="figures">\n<h2>Figures</h2>\n<ul class="tiles main">\n{"".join(tiles)}</ul>\n{_hygiene(report)}\n'
        f"{_failures(report['failures'])}<h3>All metrics</h3>\n{table}\n"
        '<p class="note">A failed row counts as wrong; “answered rows only” leaves such rows out. “Smallest difference” is what '
        "another model, measured apart on as much data, would have to differ by to be told apart in 4 of 5 cases; on the same "
        f"rows less is enough.</p>\n{_definitions(report)}\n</section>"
    )


def ordered_names(report: dict[str, Any]) -> list[str]:
    """The names of the figures: the primary one first, the others as they were asked for."""
    scoring = report["scoring"]
    return [name for name in dict.fromkeys((scoring["primary"], *scoring["metrics"])) if name in report["figures"]]


def _tile(report: dict[str, Any], name: str) -> str:
    figure = report["figures"][name]
    compared = ((report["comparison"] or {}).get("figures") or {}).get(name)
    change = (
        f'<span class="meaning">{render_difference(compared["difference"], figure["kind"])} from the baseline: '
        f"{render_verdict(compared['verdict'])}</span>"
        if compared
        else ""
    )
    is_primary = name == report["scoring"]["primary"]
    start, tag = ('<li class="primary">', ' <span class="tag">primary</span>') if is_primary else ("<li>", "")
    return (
        f'{start}<span class="name">{_title(figure)}{tag}</span>'
        f"<strong>{render_value(figure['value'], figure['kind'])}</strong>"
        f'<span class="meaning">95 % interval {render_interval(figure["interval"], figure["kind"])}</span>'
        f'<span class="meaning">{num(figure["n"], "row")}, {num(figure["num_clusters"], "cluster")}; '
        f"{render_text(str(figure['interval']['method']))}</span>{change}</li>\n"
    )


def _coverage(rows: dict[str, Any]) -> str:
    return (
        f'<li><span class="name">coverage</span><strong>{render_value(rows["coverage"], "share")}</strong>'
        f'<span class="meaning">{rows["answered"]:,} of {num(rows["compared"], "row")} answered</span></li>\n'
    )


def _hygiene(report: dict[str, Any]) -> str:
    total, items = report["rows"]["compared"], []
    for name in HYGIENE:
        number, figure = report["rows"][name], report["figures"].get(name)
        title = render_text(name) if figure is None else _title(figure)
        interval = "" if figure is None else f' <span class="meaning">{render_interval(figure["interval"], "share")}</span>'
        looks = ' class="none"' if not number else ""
        items.append(f"<li{looks}><strong>{number:,}</strong> {title} <span>{render_share(number, total)}</span>{interval}</li>")
    return '<h3>Bad answers</h3>\n<ul class="counts">\n' + "\n".join(items) + "\n</ul>"


def _failures(failures: dict[str, Any]) -> str:
    rows = [
        [
            f"<code>{render_start(kind, max_characters=60)}</code>",
            f"{found['num_rows']:,}",
            f'<span dir="auto">{render_start(str(found["first"]["error"]), max_characters=300)}</span>',
            f"<code>{render_start(str(found['first']['source']), max_characters=160)}</code>",
        ]
        for kind, found in sorted(failures.items())
    ]
    columns = ("failure", "rows", "the first of them", "where")
    return f"<h3>Failed rows</h3>\n{render_table('failed rows by kind', columns, rows, looks='texts')}\n" if rows else ""


def _row(figure: dict[str, Any]) -> list[str]:
    kind, answered = figure["kind"], figure["answered_rows"]
    return [
        _title(figure),
        f"<strong>{render_value(figure['value'], kind)}</strong>",
        render_interval(figure["interval"], kind),
        f"{figure['n']:,}",
        f'{render_value(answered["value"], kind)} <span class="meaning">of {answered["n"]:,}</span>',
        render_size(figure["smallest_difference"], kind),
        f'<span class="meaning">{render_text(str(figure["interval"]["method"]))}</span>',
    ]


def _definitions(report: dict[str, Any]) -> str:
    items = "\n".join(
        f"<dt>{render_text(figure['title'])} <code>{render_text(name)}</code></dt>"
        f'<dd>{render_text(figure["definition"])}. <span class="meaning">{_notes(figure)}</span></dd>'
        for name, figure in ((name, report["figures"][name]) for name in ordered_names(report))
    )
    return f'<details>\n<summary>What the metrics mean</summary>\n<dl class="definitions">\n{items}\n</dl>\n</details>'


def _notes(figure: dict[str, Any]) -> str:
    best = {"low": "Lower is better.", "high": "Higher is better."}.get(figure["best"], "")
    normaliser = figure["normaliser"]
    texts = f" Texts are compared after <code>{render_text(str(normaliser['name']))}</code>." if normaliser else ""
    return f"{best}{texts} Version {render_text(str(figure['version']))}."


def _title(figure: dict[str, Any]) -> str:
    return f'<abbr title="{render_attribute(figure["definition"])}">{render_text(figure["title"])}</abbr>'


def render_verdict(verdict: str) -> str:
    """A verdict in its colour."""
    looks = {"better": "better", "worse": "worse"}.get(verdict, "muted")
    return f'<span class="{looks}">{render_text(str(verdict))}</span>'
