"""Records and images -> validated dataset."""

from prefect.logging import get_run_logger

from flows.checked_flow import flow
from tasks import dataset
from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.data.public_urls import redact_urls
from yivl_core.errors import DatasetError


@flow(name="validate")
def validate(config: ValidationConfig) -> ValidationSummary:
    """Check every record and image; write the clean ones as a dataset that the other flows read."""
    return dataset.validate(config)


def validate_to_go_on(config: ValidationConfig) -> ValidationSummary:
    """Validate as the first step of a longer flow, which goes on with the clean records.

    Raises:
        DatasetError: there are none.
    """
    summary = dataset.validate(config)
    if not summary.num_records:
        datasets = redact_urls(", ".join(config.dataset))
        raise DatasetError(f"{datasets}: no record can be used; {summary.output}/report.md tells why")
    if summary.num_quarantined:
        get_run_logger().warning(
            "%d of %d records cannot be used and are left out; %s/quarantine.jsonl tells which and why",
            summary.num_quarantined,
            summary.num_lines,
            summary.output,
        )
    if shared := sum(summary.findings_by_kind.get(kind, 0) for kind in ("leaked_record", "leaked_image")):
        get_run_logger().warning(
            "%d times a question or image is one of %s, too, which makes that measure too well; %s/report.md tells where",
            shared,
            ", ".join(config.apart_from),
            summary.output,
        )
    return summary
