"""What artifacts show: no more than a person reads, and far below what a server's database should hold."""

from collections.abc import Iterable, Mapping
from typing import Any

from yivl_core.outputs.predictions import Prediction

MAX_BYTES = 90_000
MAX_CELL_CHARACTERS = 300


def shortened(markdown: str, place: str) -> str:
    """A report that may be long, cut at a line to what an artifact may hold, with the place of the whole of it."""
    data = markdown.encode()
    if len(data) <= MAX_BYTES:
        return f"{markdown}\n\nThis report: `{place}`\n"
    kept = data[:MAX_BYTES].decode(errors="ignore").rpartition("\n")[0]
    return f"{kept}\n\n(cut here; the whole report: `{place}`)\n"


def prediction_rows(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Predictions as rows of a table artifact."""
    return [
        {
            "record": prediction.record_index,
            "question": _cell(prediction.query),
            "reference": _cell(prediction.reference),
            "answer": _cell(prediction.response),
            "ended by": prediction.finish_reason,
            "error": _cell(prediction.error),
        }
        for prediction in predictions
    ]


def finding_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a validation found (its `report.json`) as rows of a table artifact: a row for each kind, with the first example."""
    rows = [
        {
            "kind": entry["kind"],
            "severity": entry["severity"],
            "count": entry["count"],
            "first at": entry["examples"][0]["source"],
            "what": _cell(entry["examples"][0]["message"]),
            "remedy": _cell(entry["examples"][0]["remedy"]),
        }
        for entry in report["findings"]
    ]
    numbers = f"{report['num_records']:,} of {report['num_lines']:,} records can be used"
    return [*rows, {"kind": "(all)", "severity": "", "count": report["num_lines"], "first at": "", "what": numbers, "remedy": ""}]


def _cell(text: str | None) -> str:
    """A text for a cell, which Prefect's page shows as Markdown: HTML in it would not be seen."""
    if text is None:
        return ""
    kept = text if len(text) <= MAX_CELL_CHARACTERS else text[: MAX_CELL_CHARACTERS - 1] + "…"
    return kept.replace("<", r"\<")
