"""Dataset files -> validated-dataset folder: every line is looked at, every finding kept, every image decoded in full.

```
split_raw_rows --> check_rows --> clean:    records.jsonl, images.parquet, digest
                             `--> rejected: quarantine.jsonl
```
"""

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.data.dataset import FILE_NAMES, READABLE_REPORT_NAME, REPORT_NAME, is_validated_dataset, parse_line
from yivl_core.data.findings import Source, warning
from yivl_core.data.images import ImageStore
from yivl_core.data.raw_rows import split_raw_rows
from yivl_core.data.reading import RowReader
from yivl_core.data.records import Record
from yivl_core.data.report import Lengths, Tally, build_report, render_report
from yivl_core.data.row_checks import KEY_BYTES, CheckedBlock, ImageChecker
from yivl_core.data.row_workers import FileRows, check_rows, count_cores
from yivl_core.data.writing import DatasetWriter
from yivl_core.errors import ConfigurationError, OutputError
from yivl_core.locks import sole_publisher
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import is_local, local_path, publish_folder

_ROWS_PER_PROGRESS = 50

CountTokens = Callable[[Record], int]
Place = tuple[str, int | None]  # the attributes of a `Source`


def validate_dataset(
    config: ValidationConfig, on_progress: OnProgress = ignore_progress, count_tokens: CountTokens | None = None
) -> ValidationSummary:
    """Check dataset files and write what can be used, and what is wrong with the rest, to a folder.

    Findings never stop it: look at `num_errors` and `num_records` of the summary. The folder appears when all is done; one
    that an earlier validation has written is replaced.

    Args:
        config: the files, the folder, and the limits.
        on_progress: called every few records.
        count_tokens: length of a record in tokens, its images included; given, the report tells the lengths. It is called in
            this process, and so takes more time than all else where many workers check the rows.

    Raises:
        ConfigurationError: a file or the image root is not there, or has an unknown format.
        OutputError: the output folder holds something else than an earlier validation's result.
        BusyError: another process validates into it.
        StorageError: reading or writing failed.
        ChildFailedError: a process that checks rows died.
    """
    output = _free_output(config)
    files = [_open_file(url, config) for url in config.dataset]
    tally = Tally(lengths=None if count_tokens is None else Lengths())
    with sole_publisher(output), publish_folder(output) as folder:
        with DatasetWriter(folder) as writer:
            seen: dict[bytes, Place] = {}
            images = ImageChecker(ImageStore(config.max_pixels))
            num_rows = 0  # since the last progress
            with closing(check_rows(files, images, _num_workers(config))) as blocks:
                for block in blocks:
                    writer.add(block)
                    _sort_out(block, writer, tally, seen)
                    if tally.lengths is not None and count_tokens is not None:
                        _count(block, count_tokens, tally.lengths)
                    num_rows += len(block.rows)
                    if num_rows >= _ROWS_PER_PROGRESS:
                        on_progress(_progress(tally, writer))
                        num_rows = 0
        report = build_report(config, tally, writer)
        _write(folder / REPORT_NAME, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        _write(folder / READABLE_REPORT_NAME, render_report(report))
    on_progress(_progress(tally, writer))
    return ValidationSummary(
        output=config.output,
        digest=writer.digest,
        num_lines=tally.num_lines.total(),
        num_records=writer.num_records,
        num_quarantined=writer.num_quarantined,
        num_errors=tally.num_findings("error"),
        num_images=writer.num_images,
        num_warnings=tally.num_findings("warning"),
        findings_by_kind=tally.by_kind,
    )


def _open_file(url: str, config: ValidationConfig) -> FileRows:
    for place in (url, config.image_root):
        if place is not None and not is_local(place):
            raise ConfigurationError(f"{place}: what is validated has to be on this machine; fetch it first")
    reader = RowReader.of_file(url, config.image_root, config.purpose)
    return reader, split_raw_rows(url, config.max_line_bytes)


def _sort_out(block: CheckedBlock, writer: DatasetWriter, tally: Tally, seen: dict[bytes, Place]) -> None:
    """Write what there is to say about each row to where it belongs; `seen` holds where each content stood first."""
    position = 0
    for row in block.rows:
        findings = row.findings
        if row.text is None:
            key = block.keys[position : position + KEY_BYTES]
            position += KEY_BYTES
            place = (block.file, row.line)
            if (first := seen.setdefault(key, place)) is not place:  # an equal place is the same line of a file given twice
                message = f"this record stands at {Source(file=first[0], line=first[1])} already"
                findings = (*findings, warning("duplicate_record", message, "keep one of them"))
        if findings:
            source = Source(file=block.file, line=row.line)
            if row.text is None:
                writer.warn(source, row.id, findings)
            else:
                writer.reject(source, row.id, findings, row.text)
            tally.add(source, row.id, findings)
    tally.add_lines(block.file, sum(row.line is not None for row in block.rows))


def _count(block: CheckedBlock, count_tokens: CountTokens, lengths: Lengths) -> None:
    for line in block.records.splitlines():
        validated = parse_line(line.decode())
        assert validated is not None
        lengths.add(count_tokens(validated.record), validated.source)


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
    for url in config.dataset:
        if Path(url).resolve().is_relative_to(output.resolve()):
            raise OutputError(f"{config.output}: the folder holds {url}, which is to be read; name another folder")
    return output
