"""An evaluation report as Markdown, made to be read. What models and users wrote is shown as text and nothing else."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

_MAX_CHARACTERS = 160
_SIGNS = {sign: f"&#{ord(sign)};" for sign in "&<>|\\"} | {sign: f"\\{sign}" for sign in "`*_[]~$"}


def render_markdown(report: dict[str, Any]) -> str:
    """The report of `report.py` as one Markdown page."""
    sections = [_main_figures(report), _row_counts(report), _failures(report), _worst(report), _right(report), _origin(report)]
    return "# Evaluation report\n\n" + "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def escape(text: str) -> str:
    """One line of Markdown that shows the text, without markup, links or HTML of its own; cut if it is long.

    Line breaks show as `⏎`, other invisible characters as their code point, an empty text as `(empty)`.
    """
    if not text:
        return "*(empty)*"
    shown = "".join(_shown(character) for character in text[:_MAX_CHARACTERS])
    shown = shown.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    rest = len(text) - _MAX_CHARACTERS
    return f"{shown} *(and {rest} more characters)*" if rest > 0 else shown


def _shown(character: str) -> str:
    if character == "\n":
        return "⏎"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"(U+{ord(character):04X})"
    return _SIGNS.get(character, character)


def _main_figures(report: dict[str, Any]) -> list[str]:
    figures = report["figures"]
    columns = [figures[rows][form] for form in ("normalised", "as_written") for rows in ("all_rows", "answered_rows")]
    edits = figures["all_rows"]["normalised"]["cer"]
    return [
        *_table(
            ("figure", "all rows", "answered rows only", "all rows, as written", "answered rows, as written"),
            [
                ["**character error rate (CER)**", *(_percent(column["cer"]["value"]) for column in columns)],
                ["**exact match**", *(_percent(column["exact_match"]["value"]) for column in columns)],
                ["rows (n)", *(str(column["num_rows"]) for column in columns)],
            ],
        ),
        "",
        f"The main figures are those over all rows: {edits['edits']} edits (insertions {edits['insertions']}, "
        f"deletions {edits['deletions']}, substitutions {edits['substitutions']}) for {edits['reference_characters']} reference "
        "characters, all rows together, so the CER can exceed 100 %. A failed row counts as an empty answer and as wrong. "
        "Of several references the closest counts.",
        "",
        f"Text is compared after `{report['normaliser']}` (Unicode NFC, case folded, each run of white space one space, none at "
        "the ends), and beside it as written.",
    ]


def _row_counts(report: dict[str, Any]) -> list[str]:
    rows = report["rows"]
    return [
        "## Rows",
        "",
        *_table(
            ("rows", "number"),
            [
                ["in the predictions", str(rows["total"])],
                ["without a reference, left out", str(rows["without_reference"])],
                ["compared", str(rows["compared"])],
                ["answered (coverage)", f"{rows['answered']} ({_percent(rows['coverage'])})"],
                ["failed", str(rows["failed"])],
                ["answered with nothing", str(rows["empty"])],
                ["cut at the most new tokens", str(rows["cut"])],
            ],
        ),
    ]


def _failures(report: dict[str, Any]) -> list[str]:
    if not report["failures"]:
        return []
    rows = [
        [escape(kind), str(failure["num_rows"]), escape(failure["first"]["error"])]
        for kind, failure in sorted(report["failures"].items())
    ]
    return ["## Failed rows", "", *_table(("kind", "rows", "the first of them"), rows)]


def _worst(report: dict[str, Any]) -> list[str]:
    if not report["worst"]:
        return ["## Worst answers", "", "Every answer equals a reference."]
    rows = [
        [str(example["edits"]), *_answer_cells(example), "cut" if example["finish_reason"] == "length" else "stop"]
        for example in report["worst"]
    ]
    heading = ("edits", "right answer", "model's answer", "where", "end")
    return ["## Worst answers", "", "Answered rows with the most edits.", "", *_table(heading, rows)]


def _right(report: dict[str, Any]) -> list[str]:
    if not report["right"]:
        return ["## Right answers", "", "None of the answers equals a reference."]
    rows = [_answer_cells(example) for example in report["right"]]
    return [
        "## Right answers",
        "",
        "The first in the order of the records.",
        "",
        *_table(("right answer", "model's answer", "where"), rows),
    ]


def _answer_cells(example: dict[str, Any]) -> list[str]:
    references = " *or* ".join(escape(reference) for reference in example["references"])
    return [references, escape(example["response"]), escape(example["source"])]


def _origin(report: dict[str, Any]) -> list[str]:
    predictions = report["predictions"]
    manifest = predictions["manifest"]
    rows = [["content of the predictions", f"`{predictions['content_digest']}`"]]
    lines = ["## Where the predictions come from", ""]
    if manifest is None:
        return [
            *lines,
            *_table(("what", "value"), rows),
            "",
            "There is no manifest beside them, so their model is unknown.",
        ]
    keys = ("model", "adapter", "data", "prompt", "decoding", "numerics", "code", "environment", "digest")
    for key in (key for key in keys if key in manifest):
        rows += [[f"`{name}`", escape(value)] for name, value in _leaves(key, manifest[key])]
    return [*lines, *_table(("what", "value"), rows)]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _leaves(f"{name}.{key}", value[key])
    else:
        yield name, "none" if value is None else str(value)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
