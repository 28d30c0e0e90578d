"""What Markdown says of a model beside its baseline: the verdict, what the runs do not share, and every figure of both."""

from typing import Any

from yivl_core.evaluation.comparison import Group
from yivl_core.evaluation.markdown_cells import (
    change_cell,
    escape,
    figure_cell,
    interval_cell,
    p_cell,
    size_cell,
    table,
)
from yivl_core.evaluation.metrics.metric import Kind

_MAX_CHARACTERS = 500  # of a difference, which names rows
_HEADING = (
    "metric", "here", "baseline", "difference", "95 % interval", "method", "p", "p, adjusted", "McNemar's p", "verdict",
    "improved / worsened / equal", "n", "smallest difference",
)  # fmt: skip


def verdict_lines(report: dict[str, Any]) -> list[str]:
    """The verdict in a sentence; nothing without a baseline."""
    compared = report["comparison"]
    if compared is None:
        return []
    head = f"**Beside the baseline: {compared['verdict']}**"
    if compared["reason"] is not None:
        return [f"{head}, since {escape(compared['reason'], _MAX_CHARACTERS)}."]
    name = report["scoring"]["primary"]
    metric, figure = report["figures"][name], compared["figures"][name]
    kind = metric["kind"]
    told = [
        f"{metric['title']} {figure_cell(figure['value'], kind)} here and {figure_cell(figure['baseline'], kind)} there",
        f"difference {change_cell(figure['difference'], kind)} ({_interval(figure['interval'], kind)})",
        f"p: {p_cell(figure['p_value'])}; {figure['n']} rows that both have",
    ]
    lines = [f"{head}: {'; '.join(told)}."]
    if allowed := sorted({one["kind"] for one in compared["differences"] if one["is_allowed"]}):
        lines += ["", f"They are compared although the runs differ in {' and '.join(allowed)}, which was allowed."]
    return lines


def _interval(interval: dict[str, Any], kind: Kind) -> str:
    """Both ends with the method, or why there are none."""
    if interval["low"] is None:
        return f"interval: {interval['method']}"
    return f"{interval_cell(interval, kind, is_change=True)}, {interval['method']}"


def comparison_lines(report: dict[str, Any]) -> list[str]:
    """The section of a comparison; nothing without a baseline."""
    compared = report["comparison"]
    if compared is None:
        return []
    lines = [
        "## Comparison with the baseline",
        "",
        f"{compared['num_matched']} rows are in both, {compared['num_only_here']} only here, "
        f"{compared['num_only_there']} only in the baseline.",
    ]
    if compared["groups"]:
        groups = ", ".join(f"{group} {compared['groups'][group]}" for group in Group)
        lines += ["", f"By exact match, wrong answers of the baseline were mended and right ones lost: {groups}."]
    for part in (_figure_lines(report), _difference_lines(compared)):
        lines += ["", *part] if part else []
    return lines


def _figure_lines(report: dict[str, Any]) -> list[str]:
    figures = report["comparison"]["figures"]
    if not figures:
        return []
    rows = [_figure_row(report["figures"][name], figures[name]) for name in report["scoring"]["metrics"]]
    return [
        *table(_HEADING, rows),
        "",
        "Of each metric the rows that both have are resampled together. Only the main metric decides; the p of the others are "
        "adjusted by Holm's rule, which their verdicts follow. McNemar's p takes rows as independent. The smallest difference is "
        "the true one that would be found in 80 % of such comparisons.",
    ]


def _figure_row(metric: dict[str, Any], figure: dict[str, Any]) -> list[str]:
    kind = metric["kind"]
    return [
        metric["title"],
        figure_cell(figure["value"], kind),
        figure_cell(figure["baseline"], kind),
        change_cell(figure["difference"], kind),
        interval_cell(figure["interval"], kind, is_change=True),
        figure["interval"]["method"],
        p_cell(figure["p_value"]),
        p_cell(figure["p_adjusted"]),
        p_cell(figure["mcnemar_p"]),
        figure["verdict"],
        f"{figure['num_improved']} / {figure['num_worsened']} / {figure['num_equal']}",
        str(figure["n"]),
        size_cell(figure["smallest_detectable"], kind),
    ]


def _difference_lines(compared: dict[str, Any]) -> list[str]:
    if not compared["differences"]:
        return ["The manifests and the questions of both runs say the same."]
    rows = [
        [
            one["kind"],
            *(escape(one[key], _MAX_CHARACTERS) if one[key] else "" for key in ("name", "ours", "theirs")),
            _effect(one),
        ]
        for one in compared["differences"]
    ]
    return ["### What the runs do not share", "", *table(("kind", "what", "here", "in the baseline", "effect"), rows)]


def _effect(difference: dict[str, Any]) -> str:
    if difference["is_blocking"]:
        return "**blocks**"
    if difference["is_allowed"]:
        return "allowed"
    return "warns" if difference["is_warning"] else "what is compared"
