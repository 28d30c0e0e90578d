"""Dataset files -> validated-dataset folder: every line is looked at, every finding kept, every image decoded in full.

```
split_lines --> check_rows --+--> clean:    records.jsonl, images.parquet, digest
                             +--> rejected: quarantine.jsonl
                             `--> AcrossRows --> what shows only between rows, at the end
```
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from yivl_core.data.checks.across_rows import AcrossRows
from yivl_core.data.checks.checked_rows import CheckedBlock
from yivl_core.data.checks.input_states import digest_inputs, is_unchanged, write_inputs
from yivl_core.data.checks.policies import Policies
from yivl_core.data.checks.row_checks import CheckSettings, open_checker
from yivl_core.data.checks.row_workers import Pace, check_rows, count_cores
from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.data.dataset import (
    FILE_NAMES,
    READABLE_REPORT_NAME,
    REPORT_NAME,
    SHEET_NAME,
    ValidatedDataset,
    is_validated_dataset,
)
from yivl_core.data.findings import Finding, Source, shown
from yivl_core.data.network.url_access import cache_folder, implied_urls, open_fetcher
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.data.reading import readable
from yivl_core.data.references import is_text
from yivl_core.data.report import Tally, build_report, render_report
from yivl_core.data.rows.mixed_files import open_files
from yivl_core.data.thumbnail_sheet import MAX_IMAGES, write_sheet
from yivl_core.data.writing import DatasetWriter
from yivl_core.errors import DatasetError, OutputError
from yivl_core.locks import sole_publisher
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import is_local, local_path, publish_folder

_ROWS_PER_PROGRESS = 50


def validate_dataset(config: ValidationConfig, on_progress: OnProgress = ignore_progress) -> ValidationSummary:
    """Check dataset files and write what can be used, and what is wrong with the rest, to a folder.

    Findings do not stop it, unless a policy says so: look at `num_errors` and `num_records` of the summary. The folder appears
    when all is done; one that an earlier validation has written is replaced.

    Args:
        config: the files, the folder, and the limits.
        on_progress: called every few records.

    Raises:
        ConfigurationError: a file or the image root is not there, or has an unknown format; a policy that cannot be.
        CheckpointError: the tokenizer of the model cannot be read.
        DatasetError: a finding was made that is to stop the validation.
        OutputError: the output folder holds something else than an earlier validation's result.
        BusyError: another process validates into it.
        StorageError: reading or writing failed.
        ChildFailedError: a process that checks rows died.
    """
    output = _free_output(config)
    policies = Policies.of(config.policy)
    url_policy = UrlPolicy.of([*config.allow_url, *implied_urls([config.image_root] if config.image_root else config.dataset)])
    pace = Pace()
    files = open_files(config, pace.block_bytes)
    urls = [file.url for file in files]
    _refuse_reading(output, [*urls, *config.apart_from])
    with sole_publisher(output):
        digest = digest_inputs(config, urls)
        if not config.refresh_urls and is_unchanged(output, digest):
            report: dict[str, Any] = json.loads((output / REPORT_NAME).read_bytes())
            return _summary(config.output, report, was_there=True)
        with (
            publish_folder(output) as folder,
            open_checker(_settings(config, policies)) as checker,
            open_fetcher(config, url_policy) as fetcher,
            DatasetWriter(folder) as writer,
            AcrossRows(policies) as across,
        ):
            for apart in config.apart_from:
                across.keep_apart(ValidatedDataset.open(apart))
            tally = _Judge(policies)
            rows = [(file.reader, file.rows) for file in files]
            with closing(check_rows(rows, checker, _num_workers(config), fetcher)) as blocks:
                _take_in(blocks, tally, writer, across, pace, on_progress)
            _look_across(across, writer, tally)
            sample = across.sample_images(MAX_IMAGES)
            if sample:
                write_sheet(folder / SHEET_NAME, [info for info, _ in sample], config.max_pixels)
            formats = {file.reader.file: file.row_format for file in files}
            report = build_report(config, formats, tally, writer, across, sample, checker.max_length)
            writer.close()
            _write(folder / REPORT_NAME, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
            _write(folder / READABLE_REPORT_NAME, render_report(report))
            if not across.num_unsettled:  # what is not to be had now may be next time
                write_inputs(folder, digest, across.image_files())
    on_progress(_progress(tally, writer))
    return _summary(config.output, report)


def _take_in(
    blocks: Iterable[CheckedBlock],
    tally: "_Judge",
    writer: DatasetWriter,
    across: AcrossRows,
    pace: Pace,
    on_progress: OnProgress,
) -> None:
    num_rows = 0  # since the last progress
    for block in blocks:
        tally.take(block)
        writer.add(block)
        across.add(block)
        pace.note(block)
        num_rows += block.num_rows
        if num_rows >= _ROWS_PER_PROGRESS:
            on_progress(_progress(tally, writer))
            num_rows = 0


def _summary(output: str, report: dict[str, Any], *, was_there: bool = False) -> ValidationSummary:
    numbers: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for entry in report["findings"]:
        numbers[entry["severity"]] += entry["count"]
        kinds[entry["kind"]] += entry["count"]
    return ValidationSummary(
        output=output,
        digest=report["digest"],
        num_lines=report["num_lines"],
        num_records=report["num_records"],
        num_quarantined=report["num_quarantined"],
        num_errors=numbers["error"],
        num_images=report["num_images"],
        num_warnings=numbers["warning"],
        findings_by_kind=dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
        was_there=was_there,
    )


class _Judge(Tally):
    """Counts findings, and stops at those that the user wants to be stopped at."""

    def __init__(self, policies: Policies) -> None:
        super().__init__()
        self._policies = policies

    def take(self, block: CheckedBlock) -> None:
        """Count what was found about the rows of a block.

        Raises:
            DatasetError: a finding is to stop the validation.
        """
        for row in block.noted:
            self.tell(Source.of_place(block.file, row.line), row.id, row.findings)
        self.add_lines(block.file, block.num_rows)

    def tell(self, source: Source, record_id: str | None, findings: tuple[Finding, ...]) -> None:
        """Count what was found about a row.

        Raises:
            DatasetError: a finding is to stop the validation.
        """
        for finding in findings:
            if self._policies.stops_at(finding):
                name = "" if record_id is None else f" (record {shown(record_id)})"
                raise DatasetError(f"{source}{name}: {finding} (policy {finding.kind}=stop)")
        self.add(source, record_id, findings)


def _look_across(across: AcrossRows, writer: DatasetWriter, tally: _Judge) -> None:
    """Add what shows only between rows, when all of them have come."""
    rejected = writer.revise(across.late_findings(), tally.tell)
    if len(rejected):
        across.leave_out(rejected, writer.leave_out(rejected))
    writer.write_images(across.images())


def _settings(config: ValidationConfig, policies: Policies) -> CheckSettings:
    return CheckSettings(
        max_pixels=config.max_pixels,
        depth=config.image_depth,
        max_worker_bytes=config.max_worker_bytes,
        cache=str(cache_folder(config)),
        policy=policies.choices,
        wants_questions=bool(config.apart_from),
        model=config.model,
        with_response=config.purpose == "training",
        max_length=config.max_length,
    )


def _num_workers(config: ValidationConfig) -> int:
    """Helping processes; one core has nothing to spare for any."""
    if config.num_workers is not None:
        return config.num_workers
    num_cores = count_cores()
    return num_cores if num_cores > 1 else 0


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="backslashreplace"))  # names of files need not be UTF-8


def _progress(tally: Tally, writer: DatasetWriter) -> Progress:
    figures = {"rejected": float(writer.num_quarantined)}
    return Progress(stage="validate", done=tally.num_lines.total(), total=None, unit="record", figures=figures)


def _free_output(config: ValidationConfig) -> Path:
    """The output folder, if nothing is lost by writing it anew."""
    output = Path(os.path.abspath(local_path(config.output, "the output of a validation")))  # noqa: PTH100 (links stay)
    if not is_text(str(output)):
        raise OutputError(f"{readable(str(output))}: the path is not UTF-8; rename the folder, or name another one")
    if not output.exists():
        return output
    if not output.is_dir():
        raise OutputError(f"{config.output}: this is a file; name a folder for the validated dataset")
    names = sorted(path.name for path in output.iterdir())
    foreign = [name for name in names if name not in FILE_NAMES] if is_validated_dataset(str(output)) else names
    if foreign:
        raise OutputError(
            f"{config.output}: the folder holds {foreign[0]}, which is no result of `yivl validate`; name a new or empty folder"
        )
    return output


def _refuse_reading(output: Path, urls: Iterable[str]) -> None:
    """Keep a result from being read for the next one, which a pattern may do unseen."""
    for url in urls:
        if is_local(url) and Path(url).resolve().is_relative_to(output.resolve()):
            raise OutputError(f"{output}: the folder holds {url}, which is to be read; name another folder")
