"""A model with its evaluation report -> the current model of a registry, or back to the one before."""

from dataclasses import replace

from prefect import runtime
from prefect.artifacts import create_table_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput

from flows.checked_flow import flow
from flows.configuration import PromoteConfig
from tasks import promotion
from yivl_core.errors import ConfigurationError
from yivl_core.promotion.configuration import PromotionConfig, PromotionSummary
from yivl_core.promotion.registry import read_registry
from yivl_core.settings import narrow

_SHOWN_EVENTS = 20


class Approval(RunInput):
    """What a person is asked before the current model is changed."""

    is_approved: bool
    reason: str = ""


@flow(name="promote")
def promote(config: PromoteConfig) -> PromotionSummary:
    """Make a model the current one if gate and comparison of its report say so; or go back to the one before."""
    settings = narrow(config, PromotionConfig)
    if config.approval:
        if runtime.deployment.id is None:
            raise ConfigurationError("`approval` is for runs of the promote deployment: leave it out here")
        checked = promotion.check(settings)
        if checked.result != "passed" or checked.was_current:
            return checked
        answer = _ask(settings, checked)
        if not answer.is_approved:
            return replace(checked, result="declined", reasons=(answer.reason or "it was declined without a reason",))
        note = "; ".join(part for part in (settings.note, f"approved: {answer.reason}".removesuffix(": ")) if part)
        settings = settings.model_copy(update={"note": note})
    summary = promotion.promote(settings)
    history = [event.model_dump() for event in read_registry(config.registry).history[-_SHOWN_EVENTS:]]
    create_table_artifact(key="promotions", table=history, description=f"The last changes of {summary.registry}")
    return summary


def _ask(settings: PromotionConfig, checked: PromotionSummary) -> Approval:
    """The answer. The run ends here when it asks, and begins anew when it is resumed: then the answer is there."""
    description = (
        f"May `{settings.model}` become the current model of `{checked.registry}`, in place of `{checked.model or 'none'}`? "
        f"Its gate has passed: see report.html in `{settings.report}`."
    )
    return suspend_flow_run(wait_for_input=Approval.with_initial_data(description=description), key="approval")
