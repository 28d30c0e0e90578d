"""What a report says in Markdown, and in which order; the figures themselves are tested where they are made."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from yivl_core.evaluation.markdown import render_markdown
from yivl_core.outputs.manifest import write_manifest

Write = Callable[..., str]
Evaluate = Callable[..., Any]

ROWS: list[tuple[Any, ...]] = [
    ("TOTAL 12.30", "total 12.30"),
    ("tota1", "Total"),
    ("", "abc"),
    (None, "fourteen chars"),
    ("what nobody asked for", None),
    (" x ", "x"),
]


def lines_after(page: str, heading: str) -> list[str]:
    """The lines of a section."""
    lines = page.split(f"\n{heading}\n")[1].split("\n## ")[0].splitlines()
    return [line for line in lines if line]


def test_the_verdict_of_gate_and_comparison_stands_first(write_rows: Write, evaluate: Evaluate) -> None:
    rows = [("a", "a")] * 60
    here, there = write_rows(rows, name="here"), write_rows([("b", "a")] * 60, name="there")
    report = evaluate(here, baseline=there).report
    found = {"cut rose": False, "n is 60": True, "was skipped": None}
    checks = [{"text": text, "passed": passed} for text, passed in found.items()]
    report["gate"] = {"result": "regression", "reasons": ["`cer` is above <b>0.1</b>", "cut rose"], "checks": checks}
    assert render_markdown(report).splitlines()[:10] == [
        "# Evaluation report",
        "",
        "**Gate: regression**",
        "",
        "- \\`cer\\` is above &#60;b&#62;0.1&#60;/b&#62;",
        "- cut rose",
        "- was skipped",
        "",
        "**Beside the baseline: better**: CER 0.00 % here and 100.00 % there; difference -100.00 points "
        "(interval: none, no spread); p: < 0.001; 60 rows that both have.",
        "",
    ]
    report["gate"] = {"result": "passed", "reasons": [], "checks": checks[1:2]}
    assert render_markdown(report).startswith("# Evaluation report\n\n**Gate: passed**\n\n**Beside the baseline")


def test_without_gate_and_baseline_the_main_figures_stand_first(write_rows: Write, evaluate: Evaluate) -> None:
    """By hand: 11 + 5 + 3 + 14 + 1 characters and 18 edits, 4 of 20 in answered rows; two of five, or of four, are right."""
    page = evaluate(write_rows(ROWS)).markdown
    assert page.splitlines()[2:6] == [
        "| figure | all rows | 95 % interval | method | n | answered rows only | n of these | good is |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        page.splitlines()[4],
        "| **exact match** | 40.00 % | 11.76 to 76.93 % | wilson | 5 | 50.00 % | 4 | high |",  # SciPy's Wilson interval
    ]
    assert page.splitlines()[4].startswith("| **CER** | 52.94 % | ")
    assert page.splitlines()[4].endswith(" | t, few rows | 5 | 20.00 % | 4 | low |")
    assert "5 rows of 5 clusters count; CER decides. A failed row counts as an empty answer and as wrong." in page
    assert "- CER: 18 edits (insertions 0, deletions 17, substitutions 1) for 34 characters of references" in page
    assert "Gate" not in page
    assert "baseline" not in page


def test_rows_bad_answers_and_failures_are_counted(write_rows: Write, evaluate: Evaluate) -> None:
    lines = lines_after(evaluate(write_rows(ROWS)).markdown, "## Rows and bad answers")
    assert lines[2:6] == [
        "| in the predictions | 6 |  |  |",
        "| without a reference, left out | 1 |  |  |",
        "| compared | 5 |  |  |",
        "| answered (coverage) | 4 | 80.00 % |  |",
    ]
    assert [line.split(" | ")[:3] for line in lines[6:]] == [
        ["| failed", "1", "20.00 %"],
        ["| empty", "1", "20.00 %"],
        ["| cut off", "0", "0.00 %"],
        ["| looping", "0", "0.00 %"],
        ["| refused", "0", "0.00 %"],
    ]
    failed = lines_after(evaluate(write_rows(ROWS)).markdown, "## Failed rows")
    assert failed[2:] == ["| truncated | 1 | a.png is cut off | rows.jsonl:4 |"]


def test_ten_worst_and_five_right_answers_are_shown(write_rows: Write, evaluate: Evaluate) -> None:
    wrong = [("x" * length, "y") for length in (3, 14, 1, 15, 9, 2, 6, 5, 4, 7, 8, 6)]
    right = [(str(number), str(number)) for number in range(8)]
    page = evaluate(write_rows([*right, *wrong])).markdown
    worst = [line.split(" | ") for line in lines_after(page, "## Worst answers")[3:]]
    assert [(len(cells[2]), cells[3]) for cells in worst] == [
        (15, "rows.jsonl:12"),
        (14, "rows.jsonl:10"),
        (9, "rows.jsonl:13"),
        (8, "rows.jsonl:19"),
        (7, "rows.jsonl:18"),
        (6, "rows.jsonl:15"),
        (6, "rows.jsonl:20"),
        (5, "rows.jsonl:16"),
        (4, "rows.jsonl:17"),
        (3, "rows.jsonl:9"),
    ]
    assert worst[0][0] == "| 1500.00 %"
    assert lines_after(page, "## Right answers")[3:] == [
        f"| {number} | {number} | rows.jsonl:{number + 1} |" for number in range(5)
    ]


def test_nothing_wrong_and_nothing_right_are_told(write_rows: Write, evaluate: Evaluate) -> None:
    page = evaluate(write_rows([("b", None, {"references": ("a", "b")})])).markdown
    assert lines_after(page, "## Worst answers") == ["By CER no answered row is wrong."]
    assert "| a *or* b | b | rows.jsonl:1 |" in page
    page = evaluate(write_rows([("a" * 30, "a", {"finish_reason": "length"})])).markdown
    assert lines_after(page, "## Right answers") == ["None of the answers shown equals a reference."]
    assert f"| 2900.00 % | a | {'a' * 30} | rows.jsonl:1 | cut, looping, wrong |" in page


def test_a_main_metric_without_rows_is_told(write_rows: Write, evaluate: Evaluate) -> None:
    page = evaluate(write_rows([("a", "b")]), metrics=("fields",)).markdown
    assert "| **field accuracy** | - | - | none, no rows | 0 | - | 0 | high |" in page
    assert lines_after(page, "## Worst answers") == ["field accuracy is defined for none of the rows."]


def test_no_answer_is_shown_where_none_was_asked_for(write_rows: Write, evaluate: Evaluate) -> None:
    page = evaluate(write_rows(ROWS), max_samples=0).markdown
    assert "## Worst answers" not in page
    assert "## Right answers" not in page


def test_a_comparison_tells_figures_groups_and_what_differs(write_rows: Write, evaluate: Evaluate) -> None:
    here = write_rows([("a", "a", {"query": "Read."}), ("a", "a"), ("b", "a"), ("c", "a")], name="here")
    there = write_rows([("b", "a"), ("a", "a"), ("a", "a"), ("d", "a"), ("e", "a")], name="there")
    page = evaluate(here, baseline=there).markdown
    assert "**Beside the baseline: not comparable**, since these differ: query of 1 (id-0); rows that only one side has." in page
    lines = lines_after(page, "## Comparison with the baseline")
    assert lines[0] == "4 rows are in both, 0 only here, 1 only in the baseline."
    assert lines[-3:] == [
        "| manifest | manifest | none | none | warns |",
        "| data | query of 1 (id-0) |  | another | **blocks** |",
        "| rows | rows that only one side has | missing | 1 (id-4) | **blocks** |",
    ]
    page = evaluate(here, baseline=there, allow_difference=("data", "rows")).markdown
    assert "They are compared although the runs differ in data and rows, which was allowed." in page
    assert "mended 1, lost 1, stayed wrong 1, stayed right 1." in page
    exact = next(line for line in lines_after(page, "## Comparison with the baseline") if line.startswith("| exact match |"))
    assert exact.startswith("| exact match | 50.00 % | 50.00 % | 0.00 points | ")
    assert " | not distinguishable | 1 / 1 / 2 | 4 | " in exact
    assert "| data | query of 1 (id-0) |  | another | allowed |" in page
    assert "| 100.00 % | a | b | a | rows.jsonl:3 | wrong |" in page, "the baseline's answer stands beside the worst"


def test_a_baseline_that_shares_no_row_is_told(write_rows: Write, evaluate: Evaluate) -> None:
    there = write_rows([("a", "a", {"sample_id": "other"})], name="there")
    page = evaluate(write_rows([("a", "a")]), baseline=there, allow_difference=("rows",)).markdown
    assert "**Beside the baseline: not comparable**, since they have no row with a reference in common." in page


def test_model_and_adapter_are_what_is_compared(write_rows: Write, evaluate: Evaluate) -> None:
    here, there = write_rows([("a", "a")], name="here"), write_rows([("a", "a")], name="there")
    for predictions, digest in ((here, "a"), (there, "b")):
        write_manifest(f"{predictions}/manifest.json", {"model": {"digest": digest}}, {})
    page = evaluate(here, baseline=there).markdown
    assert '| model | model.digest | "a" | "b" | what is compared |' in page
    assert "## Where the baseline comes from" in page


def test_slices_have_their_figures(write_rows: Write, evaluate: Evaluate) -> None:
    rows = [("a", "a", {"meta": '{"shop": "<b>"}'}), ("b", "12345", {"meta": '{"shop": "<b>"}'})]
    page = evaluate(write_rows(rows), slice_by=("shop",)).markdown
    lines = lines_after(page, "## Parts of the rows")
    assert lines[0] == "| length | rows | CER | 95 % interval | exact match | 95 % interval |"
    assert lines[2].startswith("| 1 to 4 | 1 | 0.00 % | - | 100.00 % | ")
    assert lines[3].startswith("| 5 to 9 | 1 | 100.00 % | - | 0.00 % | ")
    assert any(line.startswith("| &#60;b&#62; | 2 | 83.33 % | ") for line in lines)


def test_the_smallest_difference_that_shows_is_told(write_rows: Write, evaluate: Evaluate) -> None:
    rows = [("a" if index % 3 else "b", "a") for index in range(60)]
    alone = evaluate(write_rows(rows))
    smallest = alone.report["figures"]["cer"]["smallest_difference"]
    assert f"a true difference in CER of {100 * smallest:.2f} points would be found in 80 % of cases" in alone.markdown
    there = write_rows([("a" if index % 4 else "b", "a") for index in range(60)], name="there")
    paired = evaluate(write_rows(rows, name="here"), baseline=there)
    smallest = paired.report["comparison"]["figures"]["cer"]["smallest_detectable"]
    assert (
        f"A true difference in CER of {100 * smallest:.2f} points would be found in 80 % of such comparisons." in paired.markdown
    )
    assert "These rows do not tell how large" in evaluate(write_rows([("a", "a")], name="one")).markdown
    assert "These rows do not tell how large" in evaluate(write_rows([("a", "a")] * 40, name="all right")).markdown


def test_how_it_was_measured_stands_with_versions_and_digests(write_rows: Write, evaluate: Evaluate) -> None:
    found = evaluate(write_rows(ROWS), metrics=("caption",), extractor="first-line", slice_by=("shop", "day"))
    lines = lines_after(found.markdown, "## How it was measured")
    assert "| `exact_match` | 1 | nfc+casefold+ws1 | share of rows whose answer equals a reference |" in lines
    assert "| `extractor.name` | first-line |" in lines
    assert "| `bleu_tokenizer` | 13a |" in lines
    assert "| `slice_by` | shop, day |" in lines
    assert f"| `document_frequencies.digest` | {found.report['scoring']['document_frequencies']['digest']} |" in lines
    assert "| **BLEU-4, answers as written** | " in found.markdown


def test_origin_is_the_manifest_without_places(write_rows: Write, evaluate: Evaluate) -> None:
    predictions = write_rows(ROWS)
    content = {
        "model": {"digest": "m" * 64},
        "adapter": None,
        "decoding": {"max_new_tokens": 64, "stop": ["\n", 1], "top_k": None},
    }
    write_manifest(f"{predictions}/manifest.json", {**content, "paths": {"model": "/secret"}}, {"began": "2026"})
    found = evaluate(predictions)
    lines = lines_after(found.markdown, "## Where the predictions come from")
    assert lines[2:8] == [
        f"| content of the predictions | `{found.report['predictions']['content_digest']}` |",
        f"| `model.digest` | {'m' * 64} |",
        "| `adapter` | none |",
        "| `decoding.max_new_tokens` | 64 |",
        "| `decoding.stop` | ⏎, 1 |",
        "| `decoding.top_k` | none |",
    ]
    assert "/secret" not in found.markdown
    assert "2026" not in found.markdown


@pytest.mark.parametrize("has_baseline", [False, True])
def test_it_follows_from_the_file_of_the_report(write_rows: Write, evaluate: Evaluate, has_baseline: bool) -> None:
    rows = [*ROWS, (None, "b", {"error_kind": "missing", "error": "no file"})]
    baseline = write_rows([("x", row[1]) for row in rows], name="there") if has_baseline else None
    found = evaluate(write_rows(rows), baseline=baseline, metrics=("caption", "ocr"))
    assert render_markdown(found.report) == render_markdown(json.loads(json.dumps(found.report))) == found.markdown


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


def test_what_others_wrote_stays_text_everywhere(write_rows: Write, evaluate: Evaluate) -> None:
    attack = "</script><script>alert(1)</script> | [x](javascript:alert(1)) ![y](z) `k`\n# heading\n- item"
    changes = {"meta": json.dumps({"shop": attack}), "source": attack, "sample_id": attack}
    rows = [(attack, attack + "!", changes), (attack, attack), (None, "b", {"error_kind": attack, "error": attack})]
    there = write_rows([(attack, "c", {"query": "other"})], name="there")
    predictions = write_rows(rows)
    write_manifest(f"{predictions}/manifest.json", {"model": {"digest": attack, attack.replace("`k`", ""): 1}}, {})
    page = evaluate(predictions, baseline=there, slice_by=("shop",)).markdown
    parser = Tags()
    parser.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(page))
    allowed = {"h1", "h2", "h3", "p", "strong", "em", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert parser.tags <= allowed
    assert page.count("\n# heading") == 0
    widths = {line.count(" | ") for line in lines_after(page, "## Worst answers")[1:]}
    assert len(widths) == 1, "no cell more than the heading has"
