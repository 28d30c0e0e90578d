import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yivl_core.data.findings import KINDS


def test_the_report_counts_each_kind_and_shows_a_few_examples_with_place_and_remedy(
    write_rows: Callable[..., Path], validate: Callable[..., Any]
) -> None:
    good = {"query": "a", "response": "1"}
    path = write_rows(
        *([{"query": 7, "response": "1"}] * 8), good, {**good, "id": "inv-31", "images": ["no|pe.png"]}, {**good, "x": 1}
    )
    result = validate(path)
    findings = {entry["kind"]: entry for entry in result.report["findings"]}
    assert {kind: (entry["severity"], entry["count"], len(entry["examples"])) for kind, entry in findings.items()} == {
        "wrong_type": ("error", 8, 5),
        "image_missing": ("error", 1, 1),
        "unknown_field": ("warning", 1, 1),
    }
    assert result.report["files"] == [{"file": str(path), "format": "swift", "num_lines": 11, "num_quarantined": 9}]
    assert result.summary.findings_by_kind == {"wrong_type": 8, "image_missing": 1, "unknown_field": 1}
    text = (result.folder / "report.md").read_text()
    assert "**2 of 11 records can be used for training**; 9 were rejected and stand in `quarantine.jsonl`." in text
    assert f"- {path}:1: `query` is a number: 7; write a string." in text
    assert "- and 3 more in `quarantine.jsonl`" in text
    assert rf'- {path}:10 (record inv-31): image "no\|pe.png" is not there' in text
    assert text.index("wrong_type") < text.index("image_missing") < text.index("unknown_field")
    assert f"Digest of the content: `{result.summary.digest}`" in text


def test_a_clean_dataset_says_so(write_rows: Callable[..., Path], validate: Callable[..., Any]) -> None:
    text = (validate(write_rows({"query": "a", "response": "1"})).folder / "report.md").read_text()
    assert "**1 of 1 records can be used for training**. They show 0 different images." in text
    assert "\nNothing was found.\n" in text


def test_names_from_the_data_cannot_break_the_markdown(write_rows: Callable[..., Path], validate: Callable[..., Any]) -> None:
    path = write_rows({"query": "a", "response": "1", "id": "x\n# Title <script>", "images": ["nope.png"]})
    text = (validate(path).folder / "report.md").read_text()
    assert "(record x # Title &lt;script>)" in text
    assert not re.search(r"^# Title", text, re.MULTILINE)


def test_text_from_the_data_makes_no_link_no_image_and_no_column(
    make_image: Callable[..., Path], write_rows: Callable[..., Path], validate: Callable[..., Any]
) -> None:
    """Whoever looks at the report would otherwise load what a row names."""
    hostile = r"![a](http://host/a.png) b\|c [d]: e"
    path = write_rows(
        {"query": "a", "response": "1", "id": hostile, "x": 1}, {"query": "b", "response": "1", "images": ["n|o](p).png"]}
    )
    make_image("n|o](p).png")
    text = (validate(path).folder / "report.md").read_text()
    assert r"(record ![a]\(http://host/a.png) b\\\|c [d]\: e)" in text
    assert r"| 1 | n\|o]\(p).png |" in text


def test_a_long_text_from_the_data_is_cut(write_rows: Callable[..., Path], validate: Callable[..., Any]) -> None:
    path = write_rows(*({"query": "a", "response": "1", "id": "i" * 100_000, "images": ["n" * 100_000]} for _ in range(3)))
    text = (validate(path).folder / "report.md").read_text()
    assert len(text) < 10_000
    assert "i" * 499 + "…" in text


def test_each_kind_is_explained_in_the_description_of_the_format(repository: Path) -> None:
    description = (repository / "data/README.md").read_text(encoding="utf-8")
    table = description.split("| kind | meaning |\n|---|---|\n")[1].split("\n\n")[0]
    assert table.splitlines() == [f"| `{kind}` | {meaning} |" for kind, meaning in KINDS.items()]
