"""The tasks around `promote_model`: promote, or only look whether it would."""

from prefect import task

from tasks.caching import CORE_TASK
from yivl_core.promotion.configuration import PromotionConfig, PromotionSummary
from yivl_core.promotion.promote import check_promotion, promote_model


@task(name="promote", **CORE_TASK)
def promote(config: PromotionConfig) -> PromotionSummary:
    """Promote a model. Not cached: the registry may have been changed meanwhile, and the same promotion twice changes nothing."""
    return promote_model(config)


@task(name="check-promotion", **CORE_TASK)
def check(config: PromotionConfig) -> PromotionSummary:
    """What a promotion would give. Not cached, as `promote`."""
    return check_promotion(config)
