"""A model with its evaluation report -> the current model of a registry, or back to the one before."""

from prefect.artifacts import create_table_artifact

from flows.checked_flow import flow
from tasks import promotion
from yivl_core.promotion.configuration import PromotionConfig, PromotionSummary
from yivl_core.promotion.registry import read_registry

_SHOWN_EVENTS = 20


@flow(name="promote")
def promote(config: PromotionConfig) -> PromotionSummary:
    """Make a model the current one if gate and comparison of its report say so; or go back to the one before."""
    summary = promotion.promote(config)
    history = [event.model_dump() for event in read_registry(config.registry).history[-_SHOWN_EVENTS:]]
    create_table_artifact(key="promotions", table=history, description=f"The last changes of {summary.registry}")
    return summary
