"""The fast reader against the strict one: what it takes, that takes with the same value and no finding."""

import json
from typing import Any

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from yivl_core.data.rows.plain_json import read_plain_object
from yivl_core.data.rows.strict_json import JsonSyntaxError, StrictJsonReader, check_text

TEXTS = st.text(st.characters(codec="utf-8")) | st.sampled_from(['"', "\\", "\x7f", "\x00", "\b", "a\nb", 'say "a"', "\\u0022"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def strictly(line: bytes) -> dict[str, Any] | None:
    """What the strict reader has nothing to say about."""
    try:
        value, findings = StrictJsonReader().read_all(line.decode())
    except (UnicodeDecodeError, JsonSyntaxError):
        return None
    return value if isinstance(value, dict) and not findings and not list(check_text(value, "a")) else None


@given(st.dictionaries(TEXTS, VALUES, max_size=4), st.booleans(), st.sampled_from(["", " ", "\t"]))
@example({"a": 'say "b"', 'k"ey': "\u00e9\x01"}, True, "")
def test_what_is_read_at_speed_is_what_the_strict_reader_gives(value: dict[str, Any], is_ascii: bool, blank: str) -> None:
    line = json.dumps(value, ensure_ascii=is_ascii, separators=(f",{blank}", f":{blank}")).encode()
    plain = read_plain_object(line)
    event("plain" if plain is not None else "left to the strict reader")
    if plain is not None:
        assert strictly(line) == plain
        assert list(plain) == list(value)


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,\\u0a1 \n\x00', max_size=40).map(str.encode))
def test_whatever_a_line_holds_is_read_rightly_or_left_to_the_strict_reader(line: bytes) -> None:
    plain = read_plain_object(line.strip())
    if plain is not None:
        assert strictly(line.strip()) == plain


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": "c", "b": "c"}}',
        rb'{"a": "\u0022", "a": "b"}',
        rb'{"a\"": "b", "a\"": "c"}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": 123456789012345678901234567890}',
        b'{"a": "\x00"}',
        b'{"a": "\x7f"}',
        rb'{"a": "\u0000"}',
        rb'{"a": "\b"}',
        rb'{"a": "\ud83d"}',
        b'{"a": "\xff"}',
        b'{"a": 1} x',
        b"[1]",
        b"{" + b'"a":[' * 20 + b"]" * 20 + b"}",
    ],
)
def test_what_the_strict_reader_has_to_judge_is_left_to_it(line: bytes) -> None:
    assert read_plain_object(line) is None


@pytest.mark.parametrize("line", [rb'{"a": "say \"b\"\n", "c": ["\u4e2d", 3]}', '{"a": "中 \u2028", "c": null}'.encode()])
def test_ordinary_lines_are_taken(line: bytes) -> None:
    assert read_plain_object(line) == json.loads(line)
