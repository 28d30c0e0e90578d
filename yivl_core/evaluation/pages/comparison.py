"""The model beside its baseline: every figure, what became of the answers, and what the two runs do not share."""

from collections.abc import Mapping, Sequence
from typing import Any

from yivl_core.evaluation.comparison import Group
from yivl_core.evaluation.pages.figures import ordered_names, render_verdict
from yivl_core.evaluation.pages.heading import describe_difference
from yivl_core.evaluation.pages.numbers import (
    render_difference,
    render_p,
    render_range,
    render_share,
    render_size,
    render_value,
)
from yivl_core.evaluation.pages.tables import render_table
from yivl_core.outputs.page import num, render_text

GROUP_WORDS: Mapping[str, tuple[str, str, str]] = {  # of each group: its class, its sign, and what it means
    Group.MENDED.value: ("mended", "✗ → ✓", "wrong before, right now"),
    Group.LOST.value: ("lost", "✓ → ✗", "right before, wrong now"),
    Group.STAYED_WRONG.value: ("stayed-wrong", "✗ → ✗", "wrong before and now"),
    Group.STAYED_RIGHT.value: ("stayed-right", "✓ → ✓", "right before and now"),
}
_COLUMNS = (
    "metric",
    "value",
    "baseline",
    "difference",
    "95 % interval",
    "p",
    "McNemar p",
    "rows better / worse / equal",
    "smallest detectable",
    "verdict",
)


def render_comparison(report: dict[str, Any]) -> str:
    """The section of the comparison; empty without a baseline."""
    comparison = report["comparison"]
    if comparison is None:
        return ""
    parts = [_matched(comparison), _groups(comparison), _table(report), _differences(comparison["differences"])]
    body = "\n".join(part for part in parts if part)
    return f'<section id="comparison">\n<h2>Beside the baseline</h2>\n{body}\n</section>'


def _matched(comparison: dict[str, Any]) -> str:
    parts = [f"{num(comparison['num_matched'], 'row')} in both"]
    if comparison["num_only_here"]:
        parts.append(f"{num(comparison['num_only_here'], 'row')} that the baseline lacks")
    if comparison["num_only_there"]:
        parts.append(f"{num(comparison['num_only_there'], 'row')} of the baseline that are not here")
    return f'<p class="note">{", ".join(parts)}.</p>'


def _groups(comparison: dict[str, Any]) -> str:
    counts = comparison["groups"]
    total = sum(counts.values())
    if not total:
        return ""
    shown = [(name, GROUP_WORDS[name], counts[name]) for name in GROUP_WORDS if name in counts]
    told = ", ".join(f"{number:,} {name}" for name, _, number in shown)
    bar, start = "", 0.0
    for _, (looks, _, _), number in shown:
        width = 100 * number / total
        bar += f'<rect class="{looks}" x="{start:.3f}%" y="0" width="{width:.3f}%" height="18"/>'
        start += width
    tiles = "\n".join(
        f'<li class="{looks}"><strong>{number:,}</strong> <span class="name">{name}</span> '
        f'<span class="meaning">{render_share(number, total)} · {sign}</span> <span class="meaning">{meaning}</span></li>'
        for name, (looks, sign, meaning), number in shown
    )
    return (
        "<h3>What became of the answers, by exact match</h3>\n"
        f'<svg class="bar" width="100%" height="18" role="img" aria-label="{told}">{bar}</svg>\n'
        f'<ul class="tiles groups">\n{tiles}\n</ul>'
    )


def _table(report: dict[str, Any]) -> str:
    figures = report["comparison"]["figures"]
    names = [name for name in ordered_names(report) if name in figures]
    if not names:
        return ""
    table = render_table(
        "the model beside its baseline", _COLUMNS, [_row(report["figures"][name], figures[name]) for name in names], looks="wide"
    )
    return (
        f"<h3>Figures of both</h3>\n{table}\n"
        '<p class="note">The first metric decides. The p of all others is adjusted for there being several (Holm), which their '
        "verdicts follow, and “was” is what it was before. McNemar’s p is a second opinion on shares that takes rows for "
        "independent. “Smallest detectable” is the true difference that would be seen in 4 of 5 such comparisons.</p>"
    )


def _row(metric: dict[str, Any], figure: dict[str, Any]) -> list[str]:
    kind = metric["kind"]
    counts = (figure[key] for key in ("num_improved", "num_worsened", "num_equal"))
    return [
        render_text(metric["title"]),
        render_value(figure["value"], kind),
        render_value(figure["baseline"], kind),
        f"<strong>{render_difference(figure['difference'], kind)}</strong>",
        render_range(figure["interval"], kind),
        _p_value(figure),
        render_p(figure["mcnemar_p"]),
        " / ".join(f"{count:,}" for count in counts),
        render_size(figure["smallest_detectable"], kind),
        render_verdict(figure["verdict"]),
    ]


def _p_value(figure: dict[str, Any]) -> str:
    if figure["p_adjusted"] is None:
        return render_p(figure["p_value"])
    return f'{render_p(figure["p_adjusted"])} <span class="meaning">was\N{NO-BREAK SPACE}{render_p(figure["p_value"])}</span>'


def _differences(differences: Sequence[dict[str, Any]]) -> str:
    """What blocks first, then what was allowed, warnings, and what the comparison is about."""
    lists = (
        ("These make the two not comparable", [one for one in differences if one["is_blocking"]]),
        ("Allowed by the user, although they make the two not comparable", [one for one in differences if one["is_allowed"]]),
        ("Warnings: these may have moved figures a little, or are not known", [one for one in differences if one["is_warning"]]),
        ("What is compared", [one for one in differences if not _is_notable(one)]),
    )
    parts = [_listed(title, found) for title, found in lists if found]
    told = "\n".join(parts) if parts else '<p class="note">As far as the manifests tell, the two runs share everything.</p>'
    return f'<h3 id="warnings">What the two runs do not share</h3>\n{told}'


def _is_notable(difference: dict[str, Any]) -> bool:
    return bool(difference["is_blocking"] or difference["is_allowed"] or difference["is_warning"])


def _listed(title: str, differences: Sequence[dict[str, Any]]) -> str:
    items = "".join(f"<li>{describe_difference(one)}</li>" for one in differences)
    return f'<h4>{title}</h4>\n<ul class="differences">{items}</ul>'
