"""The task around `validate_dataset`."""

from prefect import task
from prefect.artifacts import create_markdown_artifact

from tasks.artifacts import shortened
from tasks.caching import CORE_TASK
from tasks.relay import ProgressRelay
from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.data.validation import validate_dataset
from yivl_core.storage import join, read_bytes


@task(name="validate", **CORE_TASK)
def validate(config: ValidationConfig) -> ValidationSummary:
    """Validate a dataset. Not cached: only looking at every image shows whether the content is still the same."""
    summary = validate_dataset(config, ProgressRelay("validate"))
    report = join(summary.output, "report.md")
    create_markdown_artifact(shortened(read_bytes(report).decode(), report), key="validation-report", description=summary.output)
    return summary
