"""The files of a report folder: what may be written over, and in which order they appear."""

import json
from pathlib import Path
from typing import Any

from yivl_core.errors import OutputError
from yivl_core.storage import is_local, join, list_files, publish_bytes, read_bytes

FORMAT = "yivl evaluation report"
REPORT_VERSION = 2
REPORT_NAME, READABLE_REPORT_NAME, PAGE_NAME = "report.json", "report.md", "report.html"
FREQUENCIES_NAME = "document_frequencies.parquet"

_OTHERS = (READABLE_REPORT_NAME, PAGE_NAME, FREQUENCIES_NAME)


def refuse_foreign_reports(output: str) -> None:
    """Make sure that only a report is written over.

    Raises:
        OutputError: the folder holds a file of a report's name that is none, or is a file.
        StorageError: it cannot be read.
    """
    if is_local(output) and Path(output).is_file():
        raise OutputError(f"{output}: this is a file; name a folder for the report")
    names, url = list_files(output), join(output, REPORT_NAME)
    others = [name for name in _OTHERS if name in names]
    if REPORT_NAME in names:
        try:
            there = json.loads(read_bytes(url))
        except (ValueError, RecursionError) as cause:
            raise OutputError(
                f"{url} cannot be read as JSON, so nobody can tell whose it is; if it is a damaged evaluation report, remove it "
                f"and {READABLE_REPORT_NAME}, or choose another folder"
            ) from cause
        if not isinstance(there, dict) or there.get("format") != FORMAT:
            raise OutputError(f"{url} is no evaluation report, and would be overwritten; choose another folder")
    elif others:
        raise OutputError(
            f"{join(output, others[0])} stands without the {REPORT_NAME} of an evaluation, and would be overwritten; "
            "remove it, or choose another folder"
        )


def publish_report(output: str, report: dict[str, Any], *, markdown: str, page: str) -> None:
    """Write the files, each in one step; report.json first, since it tells whose the others beside it are.

    Raises:
        StorageError: one cannot be written.
    """
    publish_bytes(join(output, REPORT_NAME), report_bytes(report))
    publish_bytes(join(output, READABLE_REPORT_NAME), markdown.encode())
    publish_bytes(join(output, PAGE_NAME), page.encode())


def report_bytes(report: dict[str, Any]) -> bytes:
    """The report as the file has it: equal reports give equal bytes."""
    return json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
