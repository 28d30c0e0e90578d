"""The task around `promote_model`."""

from prefect import task

from tasks.caching import CORE_TASK
from yivl_core.promotion.configuration import PromotionConfig, PromotionSummary
from yivl_core.promotion.promote import promote_model


@task(name="promote", **CORE_TASK)
def promote(config: PromotionConfig) -> PromotionSummary:
    """Promote a model. Not cached: the registry may have been changed meanwhile, and the same promotion twice changes nothing."""
    return promote_model(config)
