"""An evaluation report as Markdown, for logs and artifacts: what decides comes first. It follows from report.json alone."""

from collections.abc import Iterator
from typing import Any

from yivl_core.digests import canonical_json
from yivl_core.evaluation.markdown_cells import NOTHING, escape, figure_cell, interval_cell, name_cell, size_cell, table
from yivl_core.evaluation.markdown_comparison import comparison_lines, verdict_lines
from yivl_core.evaluation.measures import VERBATIM_ENDING
from yivl_core.evaluation.metrics.names import ALWAYS, HYGIENE

_NUM_WORST = 10
_NUM_RIGHT = 5
_MANIFEST_KEYS = ("model", "adapter", "data", "prompt", "decoding", "numerics", "code", "environment", "digest")


def render_markdown(report: dict[str, Any]) -> str:
    """The report of `report.py` as one Markdown page."""
    sections = [
        _gate(report),
        verdict_lines(report),
        _main_figures(report),
        _all_figures(report),
        _row_counts(report),
        comparison_lines(report),
        _slices(report),
        _failures(report),
        _worst(report),
        _right(report),
        _scoring(report),
        _origin("Where the predictions come from", report["predictions"]),
    ]
    if report["comparison"] is not None:
        sections.append(_origin("Where the baseline comes from", report["comparison"]["baseline"]))
    return "# Evaluation report\n\n" + "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _gate(report: dict[str, Any]) -> list[str]:
    gate = report["gate"]
    if gate is None:
        return []
    skipped = [check["text"] for check in gate["checks"] if check["passed"] is None]
    reasons = [f"- {escape(reason, 1000)}" for reason in (*gate["reasons"], *skipped)]
    return [f"**Gate: {gate['result']}**", *(["", *reasons] if reasons else [])]


def _main_figures(report: dict[str, Any]) -> list[str]:
    scoring, figures, rows = report["scoring"], report["figures"], report["rows"]
    primary = scoring["primary"]
    names = tuple(name for name in dict.fromkeys((primary, primary + VERBATIM_ENDING, *ALWAYS)) if name in figures)
    return [
        *_figure_table(report, names, bold=True),
        "",
        f"{rows['compared']} rows of {rows['clusters']} clusters count; {figures[primary]['title']} decides. A failed row counts "
        "as an empty answer and as wrong.",
        "",
        _smallest_difference(report),
    ]


def _smallest_difference(report: dict[str, Any]) -> str:
    name = report["scoring"]["primary"]
    metric = report["figures"][name]
    title, kind = metric["title"], metric["kind"]
    paired = ((report["comparison"] or {}).get("figures", {}).get(name) or {}).get("smallest_detectable")
    if paired is not None:
        return f"A true difference in {title} of {size_cell(paired, kind)} would be found in 80 % of such comparisons."
    if metric["smallest_difference"] is None:
        return f"These rows do not tell how large a difference in {title} would have to be to be found."
    return (
        f"Between two models, each measured on other rows like these, a true difference in {title} of "
        f"{size_cell(metric['smallest_difference'], kind)} would be found in 80 % of cases; on the same rows smaller ones are."
    )


def _figure_table(report: dict[str, Any], names: tuple[str, ...], *, bold: bool = False) -> list[str]:
    rows = []
    for name in names:
        figure = report["figures"][name]
        kind, answered = figure["kind"], figure["answered_rows"]
        rows.append(
            [
                f"**{figure['title']}**" if bold else figure["title"],
                figure_cell(figure["value"], kind),
                interval_cell(figure["interval"], kind),
                figure["interval"]["method"],
                str(figure["n"]),
                figure_cell(answered["value"], kind),
                str(answered["n"]),
                figure["best"],
            ]
        )
    return table(("figure", "all rows", "95 % interval", "method", "n", "answered rows only", "n of these", "good is"), rows)


def _all_figures(report: dict[str, Any]) -> list[str]:
    names = tuple(name for name in report["scoring"]["metrics"] if name not in HYGIENE)
    lines = ["## All figures", "", *_figure_table(report, names)]
    if edits := [_edits(report["figures"][name]) for name in names if "insertions" in report["figures"][name]["sums"]]:
        lines += ["", *edits]
    return lines


def _edits(figure: dict[str, Any]) -> str:
    sums = figure["sums"]
    length = next(unit for unit in sums if unit in ("characters", "words"))
    edits = sums["insertions"] + sums["deletions"] + sums["substitutions"]
    return (
        f"- {figure['title']}: {edits} edits (insertions {sums['insertions']}, deletions {sums['deletions']}, substitutions "
        f"{sums['substitutions']}) for {sums[length]} {length} of references"
    )


def _row_counts(report: dict[str, Any]) -> list[str]:
    rows, figures = report["rows"], report["figures"]
    counts = [
        ["in the predictions", str(rows["total"]), "", ""],
        ["without a reference, left out", str(rows["without_reference"]), "", ""],
        ["compared", str(rows["compared"]), "", ""],
        ["answered (coverage)", str(rows["answered"]), figure_cell(rows["coverage"], "share"), ""],
    ]
    for name in HYGIENE:
        figure = figures[name]
        counts.append(
            [figure["title"], str(rows[name]), figure_cell(figure["value"], "share"), interval_cell(figure["interval"], "share")]
        )
    return ["## Rows and bad answers", "", *table(("rows", "number", "share of the compared", "95 % interval"), counts)]


def _slices(report: dict[str, Any]) -> list[str]:
    lines = ["## Parts of the rows"]
    for part in report["slices"]:
        names = [name for name in report["scoring"]["metrics"] if name in part["values"][0]["figures"]]
        metrics = [report["figures"][name] for name in names]
        rows = [
            [escape(value["value"]), str(value["num_rows"]), *_figure_cells(value["figures"], names, report["figures"])]
            for value in part["values"]
        ]
        heading = (escape(part["name"]), "rows", *(cell for metric in metrics for cell in (metric["title"], "95 % interval")))
        lines += ["", *table(heading, rows)]
    return lines if report["slices"] else []


def _figure_cells(figures: dict[str, Any], names: list[str], metrics: dict[str, Any]) -> Iterator[str]:
    for name in names:
        yield figure_cell(figures[name]["value"], metrics[name]["kind"])
        yield interval_cell(figures[name]["interval"], metrics[name]["kind"])


def _failures(report: dict[str, Any]) -> list[str]:
    if not report["failures"]:
        return []
    rows = [
        [escape(kind), str(failure["num_rows"]), escape(failure["first"]["error"]), escape(failure["first"]["source"])]
        for kind, failure in sorted(report["failures"].items())
    ]
    return ["## Failed rows", "", *table(("kind", "rows", "the first of them", "where"), rows)]


def _worst(report: dict[str, Any]) -> list[str]:
    if not report["samples"]:
        return []
    scoring = report["scoring"]
    metric = report["figures"][scoring["primary"]]
    ranked = [sample for sample in report["samples"] if sample["worst_rank"] is not None]
    worst = sorted(ranked, key=lambda sample: int(sample["worst_rank"]))[:_NUM_WORST]
    if not worst:
        why = (
            f"By {metric['title']} no answered row is wrong."
            if metric["n"]
            else f"{metric['title']} is defined for none of the rows."
        )
        return ["## Worst answers", "", why]
    has_baseline = report["comparison"] is not None
    rows = [
        [
            figure_cell(sample["values"][scoring["primary"]], metric["kind"]),
            *_answer_cells(sample),
            *([_baseline_cell(sample)] if has_baseline else []),
            escape(sample["source"]),
            ", ".join(sample["states"]),
        ]
        for sample in worst
    ]
    heading = (metric["title"], "right answer", "answer", *(["baseline's answer"] if has_baseline else []), "where", "state")
    return ["## Worst answers", "", "Answered rows that cost the main figure most.", "", *table(heading, rows)]


def _right(report: dict[str, Any]) -> list[str]:
    if not report["samples"]:
        return []
    right = [sample for sample in report["samples"] if "right" in sample["states"]][:_NUM_RIGHT]
    if not right:
        return ["## Right answers", "", "None of the answers shown equals a reference."]
    rows = [[*_answer_cells(sample), escape(sample["source"])] for sample in right]
    lines = table(("right answer", "answer", "where"), rows)
    return ["## Right answers", "", "The first of those shown, in the order of the records.", "", *lines]


def _answer_cells(sample: dict[str, Any]) -> list[str]:
    return [" *or* ".join(escape(reference) for reference in sample["references"]), escape(sample["answer"])]


def _baseline_cell(sample: dict[str, Any]) -> str:
    baseline = sample["baseline"]
    if baseline is None:
        return NOTHING
    return f"*failed: {escape(str(baseline['error_kind']))}*" if baseline["answer"] is None else escape(baseline["answer"])


def _scoring(report: dict[str, Any]) -> list[str]:
    scoring = report["scoring"]
    settings = {key: value for key, value in scoring.items() if key != "metrics"}
    metrics = []
    for name in scoring["metrics"]:
        metric = report["figures"][name]
        normaliser = NOTHING if metric["normaliser"] is None else escape(metric["normaliser"]["name"])
        metrics.append([f"`{name}`", str(metric["version"]), normaliser, escape(metric["definition"], 1000)])
    return [
        "## How it was measured",
        "",
        *table(("metric", "version", "normaliser", "definition"), metrics),
        "",
        *table(("setting", "value"), [[name_cell(name), escape(value)] for name, value in _leaves("", settings)]),
    ]


def _origin(heading: str, origin: dict[str, Any]) -> list[str]:
    rows = [["content of the predictions", f"`{origin['content_digest']}`"]]
    lines, manifest = [f"## {heading}", ""], origin["manifest"]
    if manifest is None:
        return [*lines, *table(("what", "value"), rows), "", "There is no manifest beside them, so their model is unknown."]
    for key in (key for key in _MANIFEST_KEYS if key in manifest):
        rows += [[name_cell(name), escape(value)] for name, value in _leaves(key, manifest[key])]
    return [*lines, *table(("what", "value"), rows)]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _leaves(f"{name}.{key}" if name else key, value[key])
    elif isinstance(value, list):
        yield name, ", ".join(map(_shown, value)) or "none"
    else:
        yield name, _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else canonical_json(value)
