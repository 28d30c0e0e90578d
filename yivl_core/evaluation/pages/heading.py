"""The top of a report's page: what was scored, what the gate says, and whether the model is better than its baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

from yivl_core.evaluation.pages.numbers import render_difference, render_p, render_range, render_value
from yivl_core.outputs.page import num, render_start, render_text

_VERDICTS: Mapping[str, tuple[str, str]] = {
    "better": ("good", "✓ Better than the baseline"),
    "worse": ("bad", "✗ Worse than the baseline"),
    "not distinguishable": ("even", "≈ Not distinguishable from the baseline"),
    "not comparable": ("warn", "⚠ Not comparable with the baseline"),
}
_RESULTS: Mapping[str, tuple[str, str]] = {
    "passed": ("good", "✓ Gate passed"),
    "regression": ("bad", "✗ Gate: regression"),
    "not comparable": ("warn", "⚠ Gate: not comparable"),
    "incomplete": ("warn", "⚠ Gate: incomplete"),
}

_CHECK_SIGNS: Mapping[bool | None, str] = {True: "✓", False: "✗", None: "–"}


def render_heading(report: dict[str, Any], links: Sequence[tuple[str, str]]) -> str:
    """Title, banners, and the way to each section.

    Args:
        report: all of it.
        links: id and name of each section.
    """
    rows = report["rows"]
    parts = [f"{num(rows['compared'], 'row')} with a reference, in {num(rows['clusters'], 'cluster')}"]
    if rows["without_reference"]:
        parts.append(f"{num(rows['without_reference'], 'row')} without one left out")
    banners = [banner for banner in (_gate(report["gate"]), _verdict(report)) if banner]
    around = "".join(f'<li><a href="#{place}">{name}</a></li>' for place, name in links)
    return (
        '<a class="skip" href="#samples">Skip to the samples</a>\n'
        f'<header>\n<h1>Evaluation report</h1>\n<p class="lead">{"; ".join(parts)}.</p>\n'
        + "\n".join(banners)
        + f'\n<nav aria-label="sections"><ul>{around}</ul></nav>\n</header>'
    )


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    looks, words = _RESULTS.get(gate["result"], ("warn", f"Gate: {render_text(str(gate['result']))}"))
    checks = [f"{_CHECK_SIGNS[check['passed']]} {_sentence(check['text'])}" for check in gate["checks"]]
    passed = [check["passed"] for check in gate["checks"]]
    numbers = ((passed.count(False), "not passed"), (passed.count(None), "not looked at"))
    summary = ", ".join([num(len(checks), "check"), *(f"{number:,} of them {words}" for number, words in numbers if number)])
    told = f"<details><summary>{summary}</summary>{_list(checks)}</details>" if checks else ""
    return _banner(looks, words, _list([_sentence(reason) for reason in gate["reasons"]]) + told)


def _verdict(report: dict[str, Any]) -> str:
    comparison = report["comparison"]
    if comparison is None:
        return ""
    looks, words = _VERDICTS.get(comparison["verdict"], ("warn", render_text(str(comparison["verdict"]))))
    primary = report["scoring"]["primary"]
    if comparison["reason"] is not None:
        return _banner(looks, words, _why_not(comparison))
    return _banner(looks, words, _told(report["figures"][primary], comparison["figures"][primary]))


def _told(metric: dict[str, Any], figure: dict[str, Any]) -> str:
    kind = metric["kind"]
    return (
        f"<p>{render_text(metric['title'])}: {render_value(figure['value'], kind)}, baseline "
        f"{render_value(figure['baseline'], kind)}. Difference <strong>{render_difference(figure['difference'], kind)}</strong> "
        f"(95 % interval {render_range(figure['interval'], kind)}), p = {render_p(figure['p_value'])}, over "
        f"{num(figure['n'], 'row')} that both have.</p>"
    )


def _why_not(comparison: dict[str, Any]) -> str:
    named = [describe_difference(one) for one in comparison["differences"] if one["is_blocking"]]
    if not comparison["num_matched"] or not named:
        reason = str(comparison["reason"])
        return f"<p>{_sentence(reason[0].upper() + reason[1:])}.</p>"
    return f"<p>The two were not asked the same in the same way:</p>{_list(named)}"


def describe_difference(difference: dict[str, Any]) -> str:
    """What two runs do not share, as HTML."""
    name, ours, theirs = (_sentence(difference[key]) for key in ("name", "ours", "theirs"))
    told = f"<strong>{name}</strong>: {ours} here, {theirs} in the baseline" if ours else f"<strong>{name}</strong>: {theirs}"
    return f"{told}, so nothing can be said of prompt and decoding" if difference["kind"] == "manifest" else told


def _sentence(text: str) -> str:
    return render_start(str(text), max_characters=400)


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def _banner(looks: str, words: str, body: str) -> str:
    return f'<div class="banner {looks}">\n<p class="verdict">{words}</p>\n{body}\n</div>'
