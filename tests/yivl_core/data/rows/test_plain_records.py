"""Rows that are taken at speed against `parse_record`: the same content, and nothing to say about it."""

import json
from typing import Any

import orjson
from hypothesis import event, given
from hypothesis import strategies as st

from yivl_core.data.configuration import Purpose
from yivl_core.data.dataset import record_to_json
from yivl_core.data.rows.parsing import parse_record
from yivl_core.data.rows.plain_records import plain_content
from yivl_core.digests import canonical_json

TEXTS = st.sampled_from(["a", "", " ", "中 文", "<image>", "a <image> b <image_placeholder>", "\u2028", 'q"\\', "<imagery>"])
ODD = st.none() | st.integers() | TEXTS | st.lists(TEXTS, max_size=2)
ROWS = st.fixed_dictionaries(
    {"query": TEXTS | ODD},
    optional={
        "response": TEXTS | ODD,
        "history": st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=2) | ODD,
        "images": st.lists(TEXTS | st.none(), max_size=3) | ODD,
        "references": st.lists(TEXTS, max_size=2) | ODD,
        "system": TEXTS | ODD,
        "id": TEXTS | ODD,
        "cluster_id": ODD,
        "meta": st.none() | st.dictionaries(TEXTS, ODD, max_size=2),
        "validated": ODD,
        "more": ODD,
    },
)


@given(ROWS, st.sampled_from(["training", "inference"]))
def test_what_is_taken_at_speed_is_the_record_that_parsing_gives(values: dict[str, Any], purpose: Purpose) -> None:
    content = plain_content(json.loads(json.dumps(values)), purpose)
    parsed = parse_record(values, purpose)
    event("plain" if content is not None else "left to parse_record")
    if content is None:
        return
    assert parsed.findings == ()
    assert parsed.record is not None
    assert content == record_to_json(parsed.record)
    assert orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode() == canonical_json(content)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_the_fast_writer_gives_the_canonical_form(value: dict[str, str]) -> None:
    assert orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode() == canonical_json(value)


def test_ordinary_rows_are_taken() -> None:
    for values in (
        {"query": "a", "response": "b"},
        {"query": "a", "response": "b", "images": ["a.png"], "history": [["c", "d"]], "system": "", "id": "7"},
        {"query": "<image> a <image>", "response": "b", "images": ["a.png", "b.png"], "references": ["c"], "cluster_id": "x"},
    ):
        assert plain_content(values, "training") == values
    assert plain_content({"query": "a", "response": None, "images": []}, "inference") == {"query": "a"}
