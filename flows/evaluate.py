"""Predictions with references -> evaluation report."""

from flows.checked_flow import flow
from tasks import evaluation
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary


@flow(name="evaluate")
def evaluate(config: EvaluationConfig) -> EvaluationSummary:
    """Compare predictions with their references and write the report."""
    return evaluation.evaluate(config)
