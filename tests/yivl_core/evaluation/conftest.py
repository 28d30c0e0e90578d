from collections.abc import Callable
from typing import Any

import pytest

from yivl_core.outputs.predictions import Prediction


@pytest.fixture(scope="session")
def make_prediction() -> Callable[..., Prediction]:
    """A row of (answer, reference); an answer of None is a failed row."""

    def make(record_index: int, response: str | None, reference: str | None, **changes: Any) -> Prediction:
        values: dict[str, Any] = {
            "sample_id": f"id-{record_index}",
            "cluster_id": None,
            "record_index": record_index,
            "source": f"rows.jsonl:{record_index + 1}",
            "query": "What is written here?",
            "history": (),
            "system": None,
            "images": (),
            "reference": reference,
            "references": (),
            "meta": "{}",
            "response": response,
            "finish_reason": "stop",
            "prompt_tokens": 1104,
            "completion_tokens": 4,
        }
        if response is None:
            values |= {
                "prompt_tokens": None,
                "completion_tokens": None,
                "finish_reason": "error",
                "error_kind": "truncated",
                "error": "a.png is cut off",
            }
        return Prediction(**(values | changes))

    return make
