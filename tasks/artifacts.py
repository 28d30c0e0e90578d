"""What artifacts show: no more than a person reads, and far below what a server's database should hold."""

from collections.abc import Iterable
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


def _cell(text: str | None) -> str:
    if text is None:
        return ""
    return text if len(text) <= MAX_CELL_CHARACTERS else text[: MAX_CELL_CHARACTERS - 1] + "…"
