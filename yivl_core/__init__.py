"""The library behind the flows; knows nothing of Prefect. Its six doors can be imported from here, and load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yivl_core.data.validation import validate_dataset
    from yivl_core.evaluation.report import evaluate_predictions
    from yivl_core.export.merge import merge_adapter
    from yivl_core.inference.batch import infer_shards
    from yivl_core.outputs.shards import plan_shards
    from yivl_core.training.sft import train_adapter

__all__ = ["evaluate_predictions", "infer_shards", "merge_adapter", "plan_shards", "train_adapter", "validate_dataset"]

_MODULES = {
    "validate_dataset": "yivl_core.data.validation",
    "train_adapter": "yivl_core.training.sft",
    "merge_adapter": "yivl_core.export.merge",
    "plan_shards": "yivl_core.outputs.shards",
    "infer_shards": "yivl_core.inference.batch",
    "evaluate_predictions": "yivl_core.evaluation.report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
