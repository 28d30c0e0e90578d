import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.dataset import record_to_json
from yivl_core.data.findings import MAX_ROW_FINDINGS
from yivl_core.data.records import Record
from yivl_core.data.rows.formats import detect_format, to_record_values
from yivl_core.data.rows.parsing import ParsedRow, parse_record
from yivl_core.data.rows.strict_json import MAX_DEPTH, StrictJsonReader

GOOD: dict[str, Any] = {"query": "Read it.", "response": "12.50", "images": ["a.png"]}


def kinds(parsed: ParsedRow) -> list[str]:
    return [finding.kind for finding in parsed.findings]


def test_every_field_reaches_the_record() -> None:
    values = {
        **GOOD,
        "history": [["a", "b"]],
        "images": ["a.png", None],
        "system": "",
        "id": "inv-31",
        "references": ["12,50"],
        "cluster_id": "page 3",
        "meta": {"till": 3},
    }
    parsed = parse_record(values, "training")
    assert parsed.findings == ()
    assert parsed.record == Record(
        query="Read it.",
        response="12.50",
        history=(("a", "b"),),
        images=("a.png", None),
        system="",
        id="inv-31",
        references=("12,50",),
        cluster_id="page 3",
        meta={"till": 3},
    )
    assert parsed.addresses == ("a.png",)


@pytest.mark.parametrize("name", ["history", "images", "system", "id", "references", "cluster_id", "meta"])
def test_null_is_the_same_as_absent_for_fields_that_may_be_absent(name: str) -> None:
    values = {"query": "q", "response": "r"}
    assert parse_record({**values, name: None}, "training") == parse_record(values, "training")


def test_whole_numbers_may_name_records_and_clusters() -> None:
    record = parse_record({**GOOD, "id": 17, "cluster_id": 0}, "training").record
    assert record is not None
    assert (record.id, record.cluster_id) == ("17", "0")


def test_unknown_fields_are_kept_in_meta_with_one_warning() -> None:
    parsed = parse_record({**GOOD, "source": "till 3", "n": [1], "meta": {"a": 1}}, "training")
    assert parsed.record is not None
    assert parsed.record.meta == {"a": 1, "source": "till 3", "n": [1]}
    assert [(finding.kind, finding.severity) for finding in parsed.findings] == [("unknown_field", "warning")]
    assert parsed.findings[0].message == 'fields that are not known: ["source", "n"]'


def test_an_unknown_field_is_refused_where_meta_would_be_too_deep_to_be_read_again() -> None:
    deep: Any = "x"
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    kept = parse_record({"query": "a", "x": deep}, "inference").record
    assert kept is not None
    assert StrictJsonReader().read_all(json.dumps(record_to_json(kept))) == (record_to_json(kept), [])
    parsed = parse_record({"query": "a", "x": [deep]}, "inference")
    assert parsed.record is None
    assert str(parsed.findings[-1]) == "in `meta` lists or objects are nested more than 64 deep; store such a value as a string"


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"query": 7}, "wrong_type", "`query` is a number: 7; write a string"),
        ({"query": None}, "wrong_type", "`query` is null; write a string"),
        ({"query": " \t"}, "empty_field", "`query` is empty; fill it"),
        ({"response": ["a"]}, "wrong_type", '`response` is a list: ["a"]; write a string'),
        ({"response": None}, "wrong_type", "`response` is null; write a string, or validate for inference"),
        ({"response": "\n"}, "empty_field", "`response` is empty; fill it, or validate for inference"),
        ({"images": "a.png"}, "wrong_type", '`images` is a string: "a.png"; write a list of addresses'),
        ({"images": [1]}, "wrong_type", "`images` is a list: [1]; write a list of addresses"),
        ({"system": 3}, "wrong_type", "`system` is a number: 3"),
        ({"id": True}, "wrong_type", "`id` is a boolean: true"),
        ({"id": 1.5}, "wrong_type", "`id` is a number: 1.5"),
        ({"references": "a"}, "wrong_type", '`references` is a string: "a"; write a list of strings'),
        ({"references": [None]}, "wrong_type", "`references` is a list: [null]"),
        ({"meta": []}, "wrong_type", "`meta` is a list: []; write an object"),
        ({"history": {"a": "b"}}, "history_shape", '`history` is an object: {"a": "b"}'),
        ({"history": [["a"]]}, "history_shape", '`history[0]` is not a pair of strings: ["a"]'),
        ({"history": [["a", "b"], ["a", None]]}, "history_shape", '`history[1]` is not a pair of strings: ["a", null]'),
        ({"history": [["a", " "]]}, "empty_field", "the answer of `history[0]` is empty"),
        ({"query": "<image><image>"}, "image_count_mismatch", "2 <image> tag(s) in query and history for 1 image(s)"),
        ({"query": "a\x00"}, "control_char", '"query" holds the control character U+0000'),
        ({"other": "\ud800"}, "bad_unicode", '"other" holds U+D800'),
        ({"bad\x01name": 1}, "control_char", '"the name of a field" holds the control character U+0001'),
        ({"page": 1, "meta": {"page": 2}}, "duplicate_key", 'the field "page" stands in the record and in its `meta`'),
    ],
)
def test_each_defect_is_found_and_leaves_no_record(values: dict[str, Any], kind: str, message: str) -> None:
    parsed = parse_record({**GOOD, **values}, "training")
    assert parsed.record is None
    errors = [finding for finding in parsed.findings if finding.severity == "error"]
    assert [finding.kind for finding in errors] == [kind]
    assert message in str(errors[0])


def test_a_missing_query_is_an_error_and_a_missing_response_only_for_training() -> None:
    assert kinds(parse_record({"response": "a"}, "inference")) == ["missing_field"]
    assert kinds(parse_record({"query": "a"}, "training")) == ["missing_field"]
    for response in ({}, {"response": None}, {"response": ""}):
        assert kinds(parse_record({"query": "a", **response}, "inference")) == []
    empty = parse_record({"query": "a", "response": ""}, "inference").record
    assert empty is not None
    assert empty.response == ""


def test_all_defects_of_a_row_are_found_at_once_and_its_images_are_still_named() -> None:
    parsed = parse_record({"query": 7, "history": 8, "images": ["a.png", None, "b.png"], "other": 1}, "training")
    assert sorted(kinds(parsed)) == ["history_shape", "missing_field", "unknown_field", "wrong_type"]
    assert parsed.addresses == ("a.png", "b.png")


def test_long_values_do_not_flood_a_message() -> None:
    parsed = parse_record({**GOOD, "query": ["x" * 100_000]}, "training")
    assert len(parsed.findings[0].message) < 200


WORDS = st.text(alphabet="ab中<> \n\u2028😀", min_size=1, max_size=8).filter(str.strip)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
RECORDS = st.builds(
    Record,
    query=WORDS,
    response=st.none() | WORDS,
    history=st.lists(st.tuples(WORDS, WORDS), max_size=2).map(tuple),
    images=st.just(()) | WORDS.map(lambda word: (word,)),
    system=st.none() | st.just("") | WORDS,
    id=st.none() | WORDS,
    references=st.lists(WORDS, max_size=2).map(tuple),
    cluster_id=st.none() | WORDS,
    meta=st.dictionaries(WORDS, JSON_VALUES, max_size=2),
)


@given(record=RECORDS)
def test_a_record_written_as_json_is_read_back_without_findings(record: Record) -> None:
    parsed = parse_record(record_to_json(record), "inference")
    assert parsed.findings == ()
    assert parsed.record == record


@pytest.mark.parametrize(
    "values",
    [
        {"query": "a", "history": [0] * 300_000},
        {"query": "a", "meta": {"list": ["\x00"] * 300_000}},
        {"messages": [0] * 300_000},
        {"messages": [{"role": "user", "content": [{"type": "sound"}] * 300_000}]},
        {"instruction": "a", "images": [0] * 300_000},
    ],
)
def test_no_row_has_a_million_findings(values: dict[str, Any]) -> None:
    converted, findings = to_record_values(values, detect_format(values))
    found = findings or [*parse_record(converted, "inference").findings]
    assert MAX_ROW_FINDINGS <= len(found) <= MAX_ROW_FINDINGS + 2
    assert found[-1].kind == "too_many_findings"


def test_a_text_with_a_million_numbers_that_are_none_is_told_of_in_short() -> None:
    _, findings = StrictJsonReader().read_all(f"[{','.join(['NaN'] * 300_000)}]")
    assert len(findings) == MAX_ROW_FINDINGS
