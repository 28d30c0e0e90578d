"""A gate and a report -> whether a model may go on, with the reason for each check. A pure function of the two.

| result | when | exit code |
|---|---|---|
| `passed` | nothing below | 0 |
| `regression` | a figure is beyond its limit, or worse than the baseline's by more than its margin | 1 |
| `not comparable` | the baseline does not compare, or what was to be the same or equal is not, or is not known | 3 |
| `incomplete` | rows failed or are too few, or a figure is not defined, so that nothing can be said | 4 |

Of several results the first of `not comparable`, `incomplete` and `regression` stands.

The worsening is the difference from the baseline, positive where it is for the worse. By the test `regression` a rule fails if
the 95 % interval of the worsening lies wholly beyond the margin: a loss has to be shown. By `non_inferiority` it fails unless the
interval lies wholly below the margin: that there is no such loss has to be shown (G. Piaggio et al., Reporting of Noninferiority
and Equivalence Randomized Trials, JAMA 308, 2012). An interval that touches the margin is neither. Where there is no interval, as
with a single cluster, a worsening up to the margin is no regression; anything more is incomplete, unless the report's verdict is
`worse`. Without a baseline what needs one is skipped, and absolute limits decide.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from yivl_core.digests import canonical_json
from yivl_core.evaluation.comparability import NOT_KNOWN
from yivl_core.evaluation.configuration import GateResult
from yivl_core.evaluation.gate_file import COVERAGE, SCORING_NAMES, Gate, Requirements, Rule
from yivl_core.evaluation.statistics.intervals import NEGLIGIBLE

_ORDER: tuple[GateResult, ...] = ("not comparable", "incomplete", "regression")
_ABOUT_ANSWERS = (COVERAGE, "failed")  # what is amiss with these are rows without an answer
_DIGESTS = {"data": "data.digest", "model": "model.digest", "adapter": "adapter.digest", "prompt": "prompt.example_sha256"}
_KINDS = {"data": ("data", "rows")}
_OF_ROWS = ("data", "normaliser", "extractor")  # what can be told without manifests
_MAX_TOLD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """One thing that was looked at.

    Attributes:
        rule: what was asked for, in a few words.
        text: what was found, a sentence.
        value: the figure or value that was found, where it is one.
        limit: what it was held against.
        failure: what becomes of the gate; None: it passed, or was skipped.
        is_skipped: it could not be looked at without a baseline that compares.
    """

    rule: str
    text: str
    value: float | str | None = None
    limit: float | str | None = None
    failure: GateResult | None = None
    is_skipped: bool = False

    def json(self) -> dict[str, Any]:
        passed = None if self.is_skipped else self.failure is None
        return {"rule": self.rule, "passed": passed, "value": self.value, "limit": self.limit, "text": self.text}


def apply_gate(gate: Gate, report: dict[str, Any]) -> dict[str, Any]:
    """What the gate says of a report.

    Args:
        gate: which fits the evaluation.
        report: all of report.json but the gate.

    Returns:
        `result`; `reasons`, a sentence for each check that failed; `checks` with `rule`, `passed` (null where it was skipped),
        `value`, `limit` and `text`; `digest` of the gate's file; `settings`, what it asks for.
    """
    settings = gate.settings
    checks = [*_check_baseline(report), *_check_requirements(settings.require, report)]
    for rule in settings.rules:
        checks += _check_rule(rule, report)
    failed = sorted((check for check in checks if check.failure), key=lambda check: _ORDER.index(check.failure or "passed"))
    return {
        "result": failed[0].failure if failed else get_args(GateResult)[0],
        "reasons": [check.text for check in failed],
        "checks": [check.json() for check in checks],
        "digest": gate.digest,
        "settings": settings.model_dump(mode="json", exclude_none=True),
    }


def _check_baseline(report: dict[str, Any]) -> Iterator[_Check]:
    comparison = report["comparison"]
    if comparison is None:
        return
    rule = "baseline compares"
    if comparison["reason"] is None:
        text = f"the baseline answers the same in the same way; {comparison['num_matched']} rows are matched"
        yield _Check(rule=rule, text=text)
        return
    blocking = [one for one in comparison["differences"] if one["is_blocking"]]
    reason = _told(blocking) if blocking else str(comparison["reason"])
    yield _Check(rule=rule, text=f"the baseline does not compare: {reason}", failure="not comparable")


def _check_requirements(require: Requirements, report: dict[str, Any]) -> Iterator[_Check]:
    for kind in require.same:
        yield _check_same(kind, report)
    for name, wanted in require.equal.items():
        yield _check_equal(name, wanted, report)
    if require.primary is not None:
        yield _check_primary(require.primary, report)


def _check_same(kind: str, report: dict[str, Any]) -> _Check:
    rule, comparison = f"same {kind}", report["comparison"]
    if comparison is None:
        return _skipped(rule, "there is no baseline")
    if kind in SCORING_NAMES:
        return _Check(rule=rule, text=f"both are scored by the {kind} {report['scoring'][kind]['name']}")
    differences = comparison["differences"]
    has_manifests = all(one["kind"] != "manifest" for one in differences)
    found = [one for one in differences if one["kind"] in _KINDS.get(kind, (kind,))]
    if kind not in _OF_ROWS and not has_manifests:
        found += [one for one in differences if one["kind"] == "manifest"]
    elif has_manifests and not any(one["name"].startswith("data.") for one in found):
        # Images that neither side could read are the same where the digests of the data are.
        found = [one for one in found if kind != "data" or not one["is_warning"]]
    if found:
        return _Check(rule=rule, text=f"{kind} is not shown to be the baseline's: {_told(found)}", failure="not comparable")
    return _Check(rule=rule, text=f"{kind} is the baseline's")


def _told(differences: list[dict[str, Any]]) -> str:
    lines = [f"{one['name']} ({one['ours'] or 'one'} here, {one['theirs']} in the baseline)" for one in differences[:_MAX_TOLD]]
    rest = len(differences) - len(lines)
    return "; ".join(lines) + (f"; and {rest} more" if rest else "")


def _check_equal(name: str, wanted: str, report: dict[str, Any]) -> _Check:
    rule = f"{name} equals"
    value = _scoring_value(name, report) if name in SCORING_NAMES else _manifest_value(_DIGESTS.get(name, name), report)
    if _is_value(value, wanted):
        return _Check(rule=rule, value=wanted, limit=wanted, text=f"{name} is {wanted}, as pinned")
    found = value if isinstance(value, str) else canonical_json(value)
    text = f"{name} is {found}, and the gate pins {wanted}"
    return _Check(rule=rule, value=found, limit=wanted, text=text, failure="not comparable")


def _scoring_value(name: str, report: dict[str, Any]) -> Any:
    value = report["scoring"][name]
    return value["name"] if isinstance(value, dict) else value


def _manifest_value(place: str, report: dict[str, Any]) -> Any:
    """What the manifest of the predictions has at a place."""
    value: Any = report["predictions"]["manifest"]
    block, _, rest = place.partition(".")
    if isinstance(value, dict) and block in value and value[block] is None and rest == "digest":
        return None  # there is no adapter
    for part in place.split("."):
        if not isinstance(value, dict) or part not in value:
            return NOT_KNOWN
        value = value[part]
    return value


def _is_value(found: Any, wanted: str) -> bool:
    """Whether a value is the pinned one: a text as it is, a number by its value, so that 0 is 0.0, and all else as JSON."""
    if isinstance(found, str):
        return found == wanted
    if isinstance(found, int | float) and not isinstance(found, bool):
        try:
            return float(found) == float(wanted)
        except ValueError:
            return False
    return canonical_json(found) == wanted


def _check_primary(wanted: Literal["better", "not_worse"], report: dict[str, Any]) -> _Check:
    primary = report["scoring"]["primary"]
    rule = f"{primary} {wanted.replace('_', ' ')}"
    figure = _pair(primary, report)
    if figure is None:
        return _skipped(rule, _why_no_pair(report))
    verdict = figure["verdict"]
    if verdict == "not comparable":  # which the check of the baseline says, with the reason
        return _skipped(rule, f"{primary} has no difference from the baseline's")
    is_fine = verdict == "better" or (wanted == "not_worse" and verdict != "worse")
    text = f"{primary} is {verdict} beside the baseline's ({_worsening(figure, _best(primary, report))})"
    if not is_fine:
        text += f", and the gate asks for {wanted.replace('_', ' ')}"
    return _Check(rule=rule, value=verdict, limit=wanted, text=text, failure=None if is_fine else "regression")


def _check_rule(rule: Rule, report: dict[str, Any]) -> Iterator[_Check]:
    name = rule.metric if rule.slice is None else f"{rule.metric} of {rule.slice.name} {rule.slice.value}"
    figure = _figure(rule, report)
    if isinstance(figure, str):
        yield _Check(rule=name, text=f"{name}: {figure}", failure="incomplete")
        return
    if rule.min_n is not None:
        yield _check_num_rows(name, rule, figure, report)
    if rule.min is not None or rule.max is not None:
        yield from _check_limits(name, rule, figure)
    if rule.margin is not None:
        yield _check_margin(rule, rule.margin, report)


def _figure(rule: Rule, report: dict[str, Any]) -> dict[str, Any] | str:
    """The figure that a rule is about, or why there is none."""
    if rule.slice is not None:
        part = next(part for part in report["slices"] if part["name"] == rule.slice.name)
        values = {value["value"]: value["figures"] for value in part["values"]}
        if rule.slice.value not in values:
            return f"no row has this value; the slice has {', '.join(values)}"
        figures = values[rule.slice.value]
    else:
        figures = report["figures"]
    if rule.metric != COVERAGE:
        figure: dict[str, Any] = figures[rule.metric]
        return figure
    return {"value": report["rows"]["coverage"], "n": report["rows"]["compared"], "interval": None}


def _check_num_rows(name: str, rule: Rule, figure: dict[str, Any], report: dict[str, Any]) -> _Check:
    least, pair = rule.min_n or 0, None if rule.margin is None else _pair(rule.metric, report)
    found = figure["n"] if pair is None else min(figure["n"], pair["n"])
    text = f"{name} is made of {found} rows" + ("" if pair is None else " that both have")
    if found < least:
        text += f", fewer than the {least} that the gate asks for"
    return _Check(rule=f"{name} min_n", value=found, limit=least, text=text, failure="incomplete" if found < least else None)


def _check_limits(name: str, rule: Rule, figure: dict[str, Any]) -> Iterator[_Check]:
    value = figure["value"]
    for word, limit, sign, beyond in (("min", rule.min, 1, "below the least"), ("max", rule.max, -1, "above the most")):
        if limit is None:
            continue
        title = f"{name} {word}"
        if value is None:
            text = f"{name} is not defined for any row, so it cannot be held against {limit:g}"
            yield _Check(rule=title, limit=limit, text=text, failure="incomplete")
        elif (limit - value) * sign > NEGLIGIBLE:
            failure: GateResult = "incomplete" if rule.metric in _ABOUT_ANSWERS else "regression"
            text = f"{_stated(name, figure)} is {beyond} that is allowed, {limit:g}"
            yield _Check(rule=title, value=value, limit=limit, text=text, failure=failure)
        else:
            text = f"{_stated(name, figure)} is at {'least' if sign > 0 else 'most'} {limit:g}"
            yield _Check(rule=title, value=value, limit=limit, text=text)


def _stated(name: str, figure: dict[str, Any]) -> str:
    return f"{name} {figure['value']:.6g} ({_interval(figure['interval'] or {})}{figure['n']} rows)"


def _interval(interval: dict[str, Any]) -> str:
    low, high = interval.get("low"), interval.get("high")
    return "" if low is None or high is None else f"95 % interval {low:.6g} to {high:.6g}, "


def _check_margin(rule: Rule, margin: float, report: dict[str, Any]) -> _Check:
    title, figure = f"{rule.metric} margin", _pair(rule.metric, report)
    if figure is None:
        return _skipped(title, _why_no_pair(report))
    if figure["difference"] is None:
        text = f"{rule.metric} is not defined for any row that both have, so there is no difference from the baseline"
        return _Check(rule=title, limit=margin, text=text, failure="incomplete")
    best = _best(rule.metric, report)
    worsening, low, high = _worsened(figure, best)
    failure, found = _judge(rule.test, margin, worsening, low, high, verdict=figure["verdict"])
    if failure == "regression" and rule.metric in _ABOUT_ANSWERS:
        failure = "incomplete"
    text = f"{_worsening(figure, best)} {found} the margin of {margin:g}"
    return _Check(rule=title, value=worsening, limit=margin, text=f"{rule.metric}: {text}", failure=failure)


def _judge(
    test: str, margin: float, worsening: float, low: float | None, high: float | None, *, verdict: str
) -> tuple[GateResult | None, str]:
    """What becomes of a rule with a margin, and how its interval lies to that."""
    if low is None or high is None:
        if worsening > margin + NEGLIGIBLE and verdict == "worse":
            return "regression", "is beyond"
        if test == "regression" and worsening <= margin + NEGLIGIBLE:
            return None, "is not beyond"
        return "incomplete", "has no interval, from too few clusters, that could be held against"
    if low > margin + NEGLIGIBLE:
        return "regression", "lies wholly beyond"
    if high < margin - NEGLIGIBLE:
        return None, "lies wholly below"
    return ("regression" if test == "non_inferiority" else None), "reaches"


def _worsened(figure: dict[str, Any], best: str) -> tuple[float, float | None, float | None]:
    """The difference and the ends of its interval, turned so that positive is worse."""
    difference, low, high = figure["difference"], figure["interval"]["low"], figure["interval"]["high"]
    if best == "low":
        return difference, low, high
    return 0.0 - difference, None if high is None else 0.0 - high, None if low is None else 0.0 - low


def _worsening(figure: dict[str, Any], best: str) -> str:
    if figure["difference"] is None:
        return "no difference is defined"
    worsening, low, high = _worsened(figure, best)
    return f"a worsening of {worsening:.6g} ({_interval({'low': low, 'high': high})}{figure['n']} pairs)"


def _best(name: str, report: dict[str, Any]) -> str:
    return str(report["figures"][name]["best"])


def _pair(name: str, report: dict[str, Any]) -> dict[str, Any] | None:
    """A metric beside the baseline's; None without a baseline that compares."""
    comparison = report["comparison"]
    return None if comparison is None else comparison["figures"].get(name)


def _why_no_pair(report: dict[str, Any]) -> str:
    return "there is no baseline" if report["comparison"] is None else "the baseline does not compare"


def _skipped(rule: str, reason: str) -> _Check:
    return _Check(rule=rule, text=f"{rule} was not looked at, since {reason}", is_skipped=True)
