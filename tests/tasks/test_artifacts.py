from tasks.artifacts import MAX_BYTES, MAX_CELL_CHARACTERS, finding_rows, prediction_rows, shortened
from yivl_core.outputs.predictions import Prediction


def prediction(**changes) -> Prediction:
    columns = {
        "sample_id": "s",
        "cluster_id": None,
        "record_index": 3,
        "source": "val.jsonl:4",
        "query": "Read it.",
        "history": (),
        "system": None,
        "images": (),
        "reference": "12",
        "references": (),
        "meta": "{}",
        "response": "13",
        "finish_reason": "stop",
        "completion_tokens": 2,
    }
    return Prediction(**{**columns, **changes})


def test_a_short_report_is_shown_whole_with_its_place():
    assert shortened("# Report\n", "out/report.md") == "# Report\n\n\nThis report: `out/report.md`\n"


def test_a_long_report_is_cut_at_a_line_and_stays_below_the_limit():
    text = shortened("行 of a table\n" * 50_000, "out/report.md")
    assert MAX_BYTES / 2 < len(text.encode()) < 100_000
    *lines, end, _ = text.split("\n")
    assert end == "(cut here; the whole report: `out/report.md`)"
    assert set(lines) == {"行 of a table", ""}


def test_a_prediction_is_a_row_that_a_person_reads():
    (row,) = prediction_rows([prediction()])
    assert row == {"record": 3, "question": "Read it.", "reference": "12", "answer": "13", "ended by": "stop", "error": ""}


def test_failed_and_long_predictions_fit_too():
    failed = prediction(response=None, completion_tokens=None, finish_reason="error", error_kind="truncated", error="x" * 1000)
    (row,) = prediction_rows([failed])
    assert row["answer"] == ""
    assert row["error"] == "x" * (MAX_CELL_CHARACTERS - 1) + "…"


def test_a_kind_of_finding_is_a_row_with_its_first_example():
    example = {"source": "rows.jsonl:3", "message": "m" * 1000, "remedy": "mend it"}
    findings = [{"kind": "tiny", "severity": "warning", "count": 7, "examples": [example, {**example, "source": "rows.jsonl:9"}]}]
    tiny, last = finding_rows({"findings": findings, "num_records": 1200, "num_lines": 1300})
    assert tiny == {
        "kind": "tiny",
        "severity": "warning",
        "count": 7,
        "first at": "rows.jsonl:3",
        "what": "m" * (MAX_CELL_CHARACTERS - 1) + "…",
        "remedy": "mend it",
    }
    assert (last["count"], last["what"]) == (1300, "1,200 of 1,300 records can be used")


def test_what_looks_like_html_is_seen_in_a_table():
    example = {"source": "rows.jsonl:3", "message": "2 <image> tags", "remedy": "mend it"}
    findings = [{"kind": "image_count_mismatch", "severity": "error", "count": 1, "examples": [example]}]
    tags, _ = finding_rows({"findings": findings, "num_records": 0, "num_lines": 1})
    assert tags["what"] == r"2 \<image> tags"
