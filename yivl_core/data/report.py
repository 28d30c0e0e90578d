"""What a validation found, counted while it runs, as JSON for programs and as Markdown for people."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yivl_core.data.checks.across_rows import AcrossRows
from yivl_core.data.checks.record_lengths import Distribution
from yivl_core.data.configuration import UNDECIDING, ValidationConfig
from yivl_core.data.dataset import FORMAT, FORMAT_VERSION, QUARANTINE_NAME, SHEET_NAME, WARNINGS_NAME
from yivl_core.data.findings import KINDS, Finding, Severity, Source, shown
from yivl_core.data.public_urls import redact_urls
from yivl_core.data.references import ImageInfo
from yivl_core.data.writing import DatasetWriter

_MAX_EXAMPLES = 5
_BAR_CHARS = 40
_MAX_CELL_CHARS = 500  # of an id, a message or an address; what is longer stands in `quarantine.jsonl`
_BACKSLASH_OF_MARKDOWN = re.compile(r"\\(?=[!-/:-@\[-`{-~])")  # which would take the meaning of the next character


@dataclass(slots=True)
class Tally:
    """Counts of what was found so far.

    Attributes:
        num_lines: records looked at, by file.
        num_rejected: rejected ones among them, by file.
        counts: findings by severity and kind.
        details: why images cannot be read, how often each.
        examples: the first few findings of each severity and kind.
    """

    num_lines: Counter[str] = field(default_factory=Counter)
    num_rejected: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[Severity, str]] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[Severity, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

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


def build_report(
    config: ValidationConfig,
    formats: Mapping[str, str],
    tally: Tally,
    writer: DatasetWriter,
    across: AcrossRows,
    sample: Sequence[tuple[ImageInfo, str]],
    max_length: int | None,
) -> dict[str, Any]:
    """`report.json`. The same files and settings give the same report.

    Args:
        config: the settings.
        formats: that of the rows of each file, by its name.
        tally: what was found.
        writer: has written the records.
        across: what shows between them.
        sample: the images on the sheet, each with the place of a record that shows it.
        max_length: most tokens of a record.
    """
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "digest": writer.digest,
        "purpose": config.purpose,
        "num_lines": tally.num_lines.total(),
        "num_records": writer.num_records,
        "num_quarantined": writer.num_quarantined,
        "num_images": across.num_images,
        "tokens": _lengths(across.num_tokens(), writer, across),
        "max_length": max_length,
        "answers": _answers(writer, across),
        "image_sizes": across.image_sizes(),
        "most_used_images": [{"uri": uri, "count": count} for uri, count in across.most_used_images()],
        "sample_images": [
            {"uri": info.uri, "width": info.width, "height": info.height, "mode": info.mode, "at": place}
            for info, place in sample
        ],
        "settings": _without_secrets(config.model_dump(mode="json", exclude=set(UNDECIDING))),
        "files": [
            {"file": file, "format": name, "num_lines": tally.num_lines[file], "num_quarantined": tally.num_rejected[file]}
            for file, name in formats.items()
        ],
        "unreadable_images": dict(sorted(tally.details.items())),
        "findings": [
            {"kind": kind, "severity": severity, "count": count, "examples": tally.examples[severity, kind]}
            for (severity, kind), count in sorted(tally.counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
        ],
    }


def _without_secrets(value: Any) -> Any:
    """Settings in which no address shows what is secret of it."""
    if isinstance(value, str):
        return redact_urls(value)
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return {name: _without_secrets(item) for name, item in value.items()} if isinstance(value, dict) else value


def _lengths(lengths: Distribution | None, writer: DatasetWriter, across: AcrossRows) -> dict[str, Any] | None:
    if lengths is None:
        return None
    (longest,) = writer.read(across.places([lengths.longest_number]))
    return {
        "num": lengths.num,
        "total": lengths.total,
        "shortest": lengths.shortest,
        "median": lengths.median,
        "95%": lengths.long,
        "longest": lengths.longest,
        "longest_at": str(longest.source),
        "histogram": [{"from": start, "to": end, "count": count} for start, end, count in lengths.bins],
    }


def _answers(writer: DatasetWriter, across: AcrossRows) -> dict[str, Any] | None:
    lengths = _lengths(across.answer_lengths(), writer, across)
    if lengths is None:
        return None
    num_different, frequent = across.frequent_answers()
    frequent = [answer for answer in frequent if answer.num_entries > 1]
    records = writer.read(across.places([answer.number for answer in frequent]))
    numbers = sorted(answer.number for answer in frequent)
    texts = {number: record.record.response for number, record in zip(numbers, records, strict=True)}
    return {
        "characters": lengths,
        "num_different": num_different,
        "most_frequent": [{"text": texts[answer.number], "count": answer.num_entries} for answer in frequent],
    }


def render_report(report: dict[str, Any]) -> str:
    """`report.md`: the counts, then each kind of finding with examples and what to do, errors first."""
    parts = (_summary_lines, _file_lines, _finding_lines, _length_lines, _answer_lines, _image_lines)
    return "\n".join(line for part in parts for line in part(report)) + "\n"


def _summary_lines(report: dict[str, Any]) -> list[str]:
    lines = [
        "# Validated dataset",
        "",
        f"**{report['num_records']:,} of {report['num_lines']:,} records can be used for {report['purpose']}**"
        f"{_rejected_text(report['num_quarantined'])}. They show {report['num_images']:,} different images.",
    ]
    return [*lines, "", f"Digest of the content: `{report['digest']}`", ""]


def _rejected_text(num_quarantined: int) -> str:
    if not num_quarantined:
        return ""
    were, stand = ("was", "stands") if num_quarantined == 1 else ("were", "stand")
    return f"; {num_quarantined:,} {were} rejected and {stand} in `{QUARANTINE_NAME}`"


def _file_lines(report: dict[str, Any]) -> list[str]:
    rows = []
    for entry in report["files"]:
        numbers = f"{entry['num_lines']:,} | {entry['num_quarantined']:,}"
        rows.append(f"| {_cell(entry['file'])} | {entry['format']} | {numbers} |")
    return ["| file | format | records | rejected |", "|---|---|---:|---:|", *rows, ""]


def _finding_lines(report: dict[str, Any]) -> list[str]:
    if not report["findings"]:
        return ["Nothing was found.", ""]
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
    return [*lines, ""]


def _length_lines(report: dict[str, Any]) -> list[str]:
    tokens = report["tokens"]
    if tokens is None:
        return []
    max_length = report["max_length"]
    limit = "" if max_length is None else f" {max_length:,} may be read."
    return [
        "## Lengths in tokens, images included",
        "",
        f"{tokens['total']:,} in all; the median is {tokens['median']:,}, 95 % have at most {tokens['95%']:,}, the longest "
        f"{tokens['longest']:,} ({_cell(tokens['longest_at'])}).{limit}",
        "",
        *_histogram(tokens["histogram"], max_length),
    ]


def _answer_lines(report: dict[str, Any]) -> list[str]:
    answers = report["answers"]
    if answers is None:
        return []
    lengths = answers["characters"]
    lines = [
        "## Answers",
        "",
        f"{answers['num_different']:,} different ones in {lengths['num']:,} records. Of their characters: the median is "
        f"{lengths['median']:,}, 95 % have at most {lengths['95%']:,}, the longest {lengths['longest']:,} "
        f"({_cell(lengths['longest_at'])}).",
        "",
        *_histogram(lengths["histogram"]),
    ]
    if answers["most_frequent"]:
        lines += ["| the most frequent answers | records |", "|---|---:|"]
        lines += [f"| {_cell(shown(answer['text']))} | {answer['count']:,} |" for answer in answers["most_frequent"]]
        lines.append("")
    return lines


def _image_lines(report: dict[str, Any]) -> list[str]:
    sizes, sample = report["image_sizes"], report["sample_images"]
    if sizes is None:
        return []
    smallest, largest = (f"{width:,} x {height:,}" for width, height in (sizes["smallest"], sizes["largest"]))
    lines = [
        "## Images",
        "",
        f"{report['num_images']:,} different ones, {_size_text(sizes['num_bytes'])}; the smallest has {smallest} pixels, "
        f"the largest {largest}.",
        "",
        f"![{len(sample)} of the images, numbered]({SHEET_NAME})",
        "",
        "| | image | pixels | mode | first shown by |",
        "|---:|---|---|---|---|",
    ]
    for number, entry in enumerate(sample, 1):
        size = f"{entry['width']:,} x {entry['height']:,}"
        lines.append(f"| {number} | {_cell(entry['uri'])} | {size} | {entry['mode']} | {_cell(entry['at'])} |")
    if report["most_used_images"]:
        lines += ["", "| the most used images | times |", "|---|---:|"]
        lines += [f"| {_cell(entry['uri'])} | {entry['count']:,} |" for entry in report["most_used_images"]]
    return [*lines, ""]


def _size_text(num_bytes: int) -> str:
    unit, divisor = ("kB", 1e3) if num_bytes < 1e6 else ("MB", 1e6) if num_bytes < 1e9 else ("GB", 1e9)
    return f"{num_bytes / divisor:,.1f} {unit}"


def _histogram(bins: list[dict[str, int]], limit: int | None = None) -> list[str]:
    largest = max(entry["count"] for entry in bins)
    width = len(f"{bins[-1]['to']:,}")
    rows = [
        f"{entry['from']:>{width},} - {entry['to']:>{width},}  {'█' * -(-_BAR_CHARS * entry['count'] // largest):{_BAR_CHARS}}  "
        f"{entry['count']:,}{'  <- max_length' if limit is not None and entry['from'] <= limit <= entry['to'] else ''}"
        for entry in bins
    ]
    return ["```text", *rows, "```", ""]


def _example(example: dict[str, Any]) -> str:
    record = f" (record {_cell(example['id'])})" if example["id"] else ""
    return f"{_cell(example['source'])}{record}: {_cell(example['message'])}; {_cell(example['remedy'])}."


def _cell(text: str) -> str:
    """Text that stays one piece in Markdown, whatever a file or a record is called: no table, link or image comes of it."""
    text = " ".join(text[: _MAX_CELL_CHARS + 1].split())
    if len(text) > _MAX_CELL_CHARS:
        text = f"{text[: _MAX_CELL_CHARS - 1]}…"
    text = _BACKSLASH_OF_MARKDOWN.sub(r"\\\\", text)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(").replace("]:", "]\\:")
