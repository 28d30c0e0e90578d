"""The task around `validate_dataset`."""

import json

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.artifacts import finding_rows, shortened
from tasks.caching import CORE_TASK
from tasks.relay import ProgressRelay
from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.data.public_urls import redact_urls
from yivl_core.data.validation import validate_dataset
from yivl_core.storage import join, read_bytes


@task(name="validate", **CORE_TASK)
def validate(config: ValidationConfig) -> ValidationSummary:
    """Validate a dataset. Not cached: only looking at every image shows whether the content is still the same."""
    summary = validate_dataset(config, ProgressRelay("validate"))
    report = join(summary.output, "report.md")
    table = finding_rows(json.loads(read_bytes(join(summary.output, "report.json"))))
    datasets = redact_urls(", ".join(config.dataset))
    create_table_artifact(table, key="validation-findings", description=f"What was found in {datasets}")
    create_markdown_artifact(shortened(read_bytes(report).decode(), report), key="validation-report", description=summary.output)
    return summary
