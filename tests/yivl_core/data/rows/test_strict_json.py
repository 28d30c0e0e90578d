import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.rows.strict_json import MAX_DEPTH, JsonSyntaxError, StrictJsonReader, check_text

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@given(value=VALUES, ascii_only=st.booleans(), white_space=st.sampled_from(["", " ", "\t", "\r\n "]))
def test_every_json_value_is_read_as_pythons_reader_reads_it(value: Any, ascii_only: bool, white_space: str) -> None:
    text = white_space + json.dumps(value, ensure_ascii=ascii_only) + white_space
    assert StrictJsonReader().read_all(text) == (json.loads(text), [])


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ('{"a": 1, "a": 2}', "duplicate_key", 'the key "a" stands twice in one object'),
        ('{"a": {"b": 1, "b": 1}}', "duplicate_key", 'the key "b" stands twice in one object'),
        ("NaN", "invalid_json", "NaN is not a JSON number"),
        ("[-Infinity]", "invalid_json", "-Infinity is not a JSON number"),
        ("1e999", "invalid_json", 'the number "1e999" is too large'),
        ("9" * 5000, "invalid_json", "a number has 5000 digits"),
        (nested(MAX_DEPTH + 2), "invalid_json", f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_pythons_reader_lets_pass_is_found(text: str, kind: str, message: str) -> None:
    _, findings = StrictJsonReader().read_all(text)
    assert [finding.kind for finding in findings] == [kind]
    assert message in findings[0].message


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ('{"a": 1} xx', "trailing_garbage", 'behind the JSON value there is more text: "xx"'),
        ('{"a": 1', "invalid_json", "where the text ends"),
        ("{'a': 1}", "invalid_json", "enclosed in double quotes at character 2, before \"'a': 1}\""),
        ('"a', "invalid_json", "Unterminated string starting at character 1, before"),
        ("", "invalid_json", "Expecting value at character 1, where the text ends"),
        ('"a\x00"', "control_char", "the control character U+0000 stands at character 3"),
        ('"a\tb"', "control_char", "the control character U+0009 stands at character 3"),
        (nested(100_000), "invalid_json", "deep"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text: str, kind: str, message: str) -> None:
    with pytest.raises(JsonSyntaxError) as caught:
        StrictJsonReader().read_all(text)
    assert caught.value.finding.kind == kind
    assert message in caught.value.finding.message


def test_nesting_up_to_the_limit_is_fine_and_a_value_after_a_bad_one_is_not_blamed_for_it() -> None:
    reader = StrictJsonReader()
    assert reader.read_all("NaN")[1]
    assert reader.read_all(nested(MAX_DEPTH))[1] == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a\x00b", '"query" holds the control character U+0000'),
        ("\x1b[31m", '"query" holds the control character U+001B'),
        ("\x7f", '"query" holds the control character U+007F'),
        (["ok", "\x07"], '"query[1]" holds the control character U+0007'),
        ({"k\x01": 1}, '"a key of query" holds the control character U+0001'),
        ({"k": "\ud83d"}, '"query.k" holds U+D83D, half of a surrogate pair'),
    ],
)
def test_text_that_cannot_be_stored_is_found_at_its_place(value: Any, message: str) -> None:
    assert [finding.message for finding in check_text(value, "query")] == [message]


@given(value=VALUES)
def test_text_without_findings_can_be_written_as_utf8(value: Any) -> None:
    if not list(check_text(value, "value")):
        json.dumps(value, ensure_ascii=False).encode()


def test_line_ends_tabs_and_signs_of_old_encodings_are_text() -> None:
    assert list(check_text("a\tb\r\nc\u0085d\u2028e😀", "query")) == []


@pytest.mark.parametrize("name", ["x", "k" * 1_000_000])
def test_the_place_of_a_fault_below_a_long_key_costs_no_more_than_another(name: str) -> None:
    value = {"k" * 1_000_000: ["a"] * 20_000 + ["\x00"]}
    start = time.process_time()
    (finding,) = check_text(value if name == "x" else next(iter(value.values())), name)
    assert time.process_time() - start < 20  # a minute and more where it grows with the square
    assert finding.message.startswith('"x.kkk' if name == "x" else '"kkk')
    assert finding.message.endswith("holds the control character U+0000")
