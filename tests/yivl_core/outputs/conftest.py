from collections.abc import Callable
from typing import Any

import pytest

from yivl_core.outputs.predictions import Prediction, PredictionImage


@pytest.fixture(scope="session")
def make_prediction() -> Callable[..., Prediction]:
    def make(record_index: int = 0, **changes: Any) -> Prediction:
        values: dict[str, Any] = {
            "sample_id": f"id-{record_index}",
            "cluster_id": "page-1",
            "record_index": record_index,
            "source": f"rows.jsonl:{record_index + 1}",
            "query": "What is written here?",
            "history": (("Hello", "Hi"),),
            "system": None,
            "images": (PredictionImage(uri="a.png", sha256="ab" * 32, width=8, height=9), PredictionImage(uri="gone.png")),
            "reference": "12.30",
            "references": ("12,30",),
            "meta": '{"page":1}',
            "response": f"answer {record_index}",
            "finish_reason": "stop",
            "prompt_tokens": 1104,
            "completion_tokens": 4,
            "completion_logprobs": (-0.25, -1e-9, 0.0, -12.5),
            "preprocess_s": 0.5,
            "generate_s": None,
        }
        if changes.get("finish_reason") == "error":
            values |= {
                "response": None,
                "prompt_tokens": None,
                "completion_tokens": None,
                "completion_logprobs": None,
                "error_kind": "truncated",
                "error": "a.png is cut off",
            }
        return Prediction(**(values | changes))

    return make
