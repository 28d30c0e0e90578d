"""What holds of every finding, whatever the row or image that it is about."""

import json
from collections.abc import Iterable

from yivl_core.data.findings import KINDS, WARNING_KINDS, Finding

MAX_SHOWN_BYTES = 20_000  # of a message: it shows a value's start, never all of it


def check_findings(findings: Iterable[Finding]) -> None:
    """Each has a known kind, a severity that fits it, says what is wrong and how to mend it, and can be stored."""
    for finding in findings:
        assert finding.kind in KINDS, finding
        assert finding.severity == ("warning" if finding.kind in WARNING_KINDS else "error"), finding
        assert finding.message.strip(), finding
        assert finding.remedy.strip(), finding
        assert len(finding.message) < MAX_SHOWN_BYTES, finding
        check_storable(finding.to_json())


def check_storable(value: object) -> None:
    """It can be written as a line of UTF-8 JSON, as the quarantine is, and read again."""
    line = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")
    assert b"\n" not in line, line
    json.loads(line.decode())
