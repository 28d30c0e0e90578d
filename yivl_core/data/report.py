"""What a validation found, counted while it runs, as JSON for programs and as Markdown for people."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import FORMAT, FORMAT_VERSION, QUARANTINE_NAME, WARNINGS_NAME
from yivl_core.data.findings import KINDS, Finding, Severity, Source
from yivl_core.data.writing import DatasetWriter

_MAX_EXAMPLES = 5


@dataclass(slots=True)
class Lengths:
    """Lengths of records in tokens.

    Attributes:
        total: of all records together.
        longest: of the longest record.
        longest_source: where that one is.
    """

    total: int = 0
    longest: int = 0
    longest_source: str | None = None

    def add(self, num_tokens: int, source: Source) -> None:
        """Count one more record."""
        self.total += num_tokens
        if self.longest_source is None or num_tokens > self.longest:
            self.longest, self.longest_source = num_tokens, str(source)


@dataclass(slots=True)
class Tally:
    """Counts of what was found so far.

    Attributes:
        num_lines: records looked at, by file.
        num_rejected: rejected ones among them, by file.
        counts: findings by severity and kind.
        details: why images cannot be read, how often each.
        examples: the first few findings of each severity and kind.
        lengths: None if tokens are not counted.
    """

    num_lines: Counter[str] = field(default_factory=Counter)
    num_rejected: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[Severity, str]] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[Severity, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    lengths: Lengths | None = None

    def add_lines(self, file: str, num_lines: int) -> None:
        """Count so many more records of a file."""
        self.num_lines[file] += num_lines

    def add(self, source: Source, record_id: str | None, findings: tuple[Finding, ...]) -> None:
        """Count what was found about a row."""
        self.num_rejected[source.file] += source.line is not None and any(f.severity == "error" for f in findings)
        for finding in findings:
            key = (finding.severity, finding.kind)
            self.counts[key] += 1
            if finding.detail:
                self.details[finding.detail] += 1
            if len(self.examples[key]) < _MAX_EXAMPLES:
                self.examples[key].append({"source": str(source), "id": record_id, **finding.to_json()})

    def num_findings(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(count for (of_severity, _), count in self.counts.items() if of_severity == severity)

    @property
    def by_kind(self) -> dict[str, int]:
        """How often each kind was found, the most frequent first."""
        kinds: Counter[str] = Counter()
        for (_, kind), count in self.counts.items():
            kinds[kind] += count
        return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def build_report(config: ValidationConfig, tally: Tally, writer: DatasetWriter) -> dict[str, Any]:
    """`report.json`. The same files and settings give the same report."""
    lengths = tally.lengths
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "digest": writer.digest,
        "purpose": config.purpose,
        "num_lines": tally.num_lines.total(),
        "num_records": writer.num_records,
        "num_quarantined": writer.num_quarantined,
        "num_images": writer.num_images,
        "tokens": None if lengths is None else {"total": lengths.total, "longest": lengths.longest, "at": lengths.longest_source},
        "settings": config.model_dump(mode="json", exclude={"output", "num_workers"}),
        "files": [
            {"file": file, "num_lines": tally.num_lines[file], "num_quarantined": tally.num_rejected[file]}
            for file in tally.num_lines
        ],
        "unreadable_images": dict(sorted(tally.details.items())),
        "findings": [
            {"kind": kind, "severity": severity, "count": count, "examples": tally.examples[severity, kind]}
            for (severity, kind), count in sorted(tally.counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
        ],
    }


def render_report(report: dict[str, Any]) -> str:
    """`report.md`: the counts, then each kind of finding with examples and what to do, errors first."""
    return "\n".join([*_summary_lines(report), *_file_lines(report), *_finding_lines(report)]) + "\n"


def _summary_lines(report: dict[str, Any]) -> list[str]:
    lines = [
        "# Validated dataset",
        "",
        f"**{report['num_records']:,} of {report['num_lines']:,} records can be used for {report['purpose']}**"
        f"{_rejected_text(report['num_quarantined'])}. They show {report['num_images']:,} different images.",
    ]
    if (tokens := report["tokens"]) is not None:
        lines += ["", f"They are {tokens['total']:,} tokens long together, the longest {tokens['longest']:,} ({tokens['at']})."]
    return [*lines, "", f"Digest of the content: `{report['digest']}`", ""]


def _rejected_text(num_quarantined: int) -> str:
    return f"; {num_quarantined:,} were rejected and stand in `{QUARANTINE_NAME}`" if num_quarantined else ""


def _file_lines(report: dict[str, Any]) -> list[str]:
    rows = [f"| {_cell(entry['file'])} | {entry['num_lines']:,} | {entry['num_quarantined']:,} |" for entry in report["files"]]
    return ["| file | records | rejected |", "|---|---:|---:|", *rows, ""]


def _finding_lines(report: dict[str, Any]) -> list[str]:
    if not report["findings"]:
        return ["Nothing was found."]
    lines = ["## What was found", "", "| kind | severity | count | meaning |", "|---|---|---:|---|"]
    lines += [
        f"| `{entry['kind']}` | {entry['severity']} | {entry['count']:,} | {KINDS[entry['kind']]} |"
        for entry in report["findings"]
    ]
    if report["unreadable_images"]:
        reasons = ", ".join(f"{count:,} {detail}" for detail, count in report["unreadable_images"].items())
        lines += ["", f"Why images cannot be read: {reasons}."]
    for entry in report["findings"]:
        file_name = QUARANTINE_NAME if entry["severity"] == "error" else WARNINGS_NAME
        lines += ["", f"### {entry['kind']} ({entry['severity']}, {entry['count']:,})", ""]
        lines += [f"- {_example(example)}" for example in entry["examples"]]
        if entry["count"] > len(entry["examples"]):
            lines.append(f"- and {entry['count'] - len(entry['examples']):,} more in `{file_name}`")
    return lines


def _example(example: dict[str, Any]) -> str:
    record = f" (record {_cell(example['id'])})" if example["id"] else ""
    return f"{_cell(example['source'])}{record}: {_cell(example['message'])}; {_cell(example['remedy'])}."


def _cell(text: str) -> str:
    """Text that stays one piece in Markdown, whatever a file or a record is called."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
