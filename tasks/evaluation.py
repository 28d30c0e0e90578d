"""The task around `evaluate_predictions`."""

from dataclasses import asdict

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.artifacts import shortened
from tasks.caching import CORE_TASK
from tasks.relay import ProgressRelay
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.evaluation.report import evaluate_predictions
from yivl_core.storage import join, read_bytes


@task(name="evaluate", **CORE_TASK)
def evaluate(config: EvaluationConfig) -> EvaluationSummary:
    """Evaluate predictions. Not cached: it takes seconds, and the same predictions give the same bytes."""
    summary = evaluate_predictions(config, ProgressRelay("evaluate"))
    report = join(summary.output, "report.md")
    figures = {name: value for name, value in asdict(summary).items() if name not in ("output", "gate_reasons")}
    create_table_artifact(key="metrics", table=[figures], description=f"Metrics of {config.predictions}")
    create_markdown_artifact(shortened(read_bytes(report).decode(), report), key="evaluation-report", description=summary.output)
    return summary
