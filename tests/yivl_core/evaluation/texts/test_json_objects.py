import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.evaluation.texts.json_objects import JsonNumber, as_canonical_json, first_json_object, whole_json_object

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(st.characters(codec="utf-8")), values, max_size=4)


def test_numbers_stay_as_written() -> None:
    found = first_json_object('{"total": 17.30, "n": 1E2, "id": 00}') or first_json_object('{"total": 17.30, "n": 1E2}')
    assert found == {"total": "17.30", "n": "1E2"}
    assert all(isinstance(value, JsonNumber) for value in found.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("no {brace} opens one", None),
        ('{"a": 1', None),
        ('x {"a": "b"} {"c": "d"}', {"a": "b"}),
        ('{"cut": {"whole": "b"}, "o', {"whole": "b"}),
        ('{"a": Infinity}', None),
        ('{"a":' * 5000, None),
    ],
)
def test_first_object_of_a_text(text: str, found: object) -> None:
    assert first_json_object(text) == found


@pytest.mark.parametrize("text", ["", "x", "[]", "9", '"a"', '{"a": 1} x', "{", '{"a": NaN}', "[" * 5000])
def test_whole_text_must_be_one_object(text: str) -> None:
    assert whole_json_object(text) is None


@settings(deadline=None)
@given(value=objects, indent=st.none() | st.integers(0, 3), before=st.text(st.characters(exclude_characters="{"), max_size=5))
def test_canonical_text_keeps_the_value_and_forgets_how_it_was_written(
    value: dict[str, object], indent: int | None, before: str
) -> None:
    written = json.dumps(value, indent=indent)
    found = first_json_object(before + written + "}{")
    assert found is not None
    assert json.loads(as_canonical_json(found)) == value
    assert as_canonical_json(found) == json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert whole_json_object(f" {written}\n") == found
