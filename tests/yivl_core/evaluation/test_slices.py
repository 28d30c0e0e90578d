import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.slices import MAX_VALUES, OTHERS, slice_names, slice_values, to_slice


@pytest.mark.parametrize(
    ("reference", "length", "characters"),
    [
        ("", "0", "neither"),
        ("a", "1 to 4", "letters"),
        ("1234", "1 to 4", "digits"),
        ("12.30", "5 to 9", "digits"),
        ("rm 9.00 a", "5 to 9", "letters and digits"),
        ("x" * 10, "10 to 19", "letters"),
        ("x" * 19, "10 to 19", "letters"),
        ("x" * 20, "20 to 49", "letters"),
        ("x" * 50, "50 to 199", "letters"),
        ("x" * 199, "50 to 199", "letters"),
        ("x" * 200, "200 and more", "letters"),
        ("-----", "5 to 9", "neither"),
        ("总计", "1 to 4", "letters"),
        ("٣", "1 to 4", "digits"),
    ],
)
def test_a_reference_tells_length_and_kind_of_characters(reference: str, length: str, characters: str) -> None:
    assert slice_values(reference, "{}", (), None) == (length, characters)


def test_training_texts_tell_reading_from_remembering() -> None:
    assert [slice_values(text, "{}", (), {"total"})[2] for text in ("total", "cash")] == ["yes", "no"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("good", "good"),
        ("", "(empty)"),
        (None, "(none)"),
        (True, "true"),
        (1.5, "1.5"),
        ({"b": [1], "a": "总"}, '{"a": "总", "b": [1]}'),
        ("x" * 61, "x" * 60 + "…"),
    ],
)
def test_fields_of_records_are_slices(value: object, shown: str) -> None:
    assert slice_values("a", json.dumps({"scan": value}), ("scan", "other"), None)[2:] == (shown, "(none)")


def test_half_a_surrogate_pair_is_a_value_that_a_file_can_hold() -> None:
    meta = '{"scan": "\\ud800x", "shop": ["\\udfff"]}'
    assert slice_values("a", meta, ("scan", "shop"), None)[2:] == ("\\ud800x", '["\\udfff"]')


def test_names_go_with_values() -> None:
    names = slice_names(("scan", "shop"), has_training_texts=True)
    assert names == ("length", "characters", "text in training", "meta.scan", "meta.shop")
    assert len(slice_values("a", "{}", ("scan", "shop"), set())) == len(names)


def test_values_stand_in_a_fixed_order_or_by_frequency() -> None:
    assert to_slice("length", ["5 to 9", "0", "1 to 4"]).values == ("0", "1 to 4", "5 to 9")
    part = to_slice("meta.shop", ["b", "c", "b", "a"])
    assert (part.values, part.codes.tolist()) == (("b", "a", "c"), [0, 2, 0, 1])


def test_rare_values_stand_together() -> None:
    values = [f"v{number:02d}" for number in range(MAX_VALUES + 5) for _ in range(50 - number)]
    part = to_slice("meta.shop", values)
    assert part.values == (*(f"v{number:02d}" for number in range(MAX_VALUES - 1)), OTHERS)
    assert np.bincount(part.codes).tolist() == [*range(50, 31, -1), sum(range(26, 32))]


def test_a_value_that_is_called_as_the_rest_stands_with_it() -> None:
    values = [OTHERS] * 100 + [f"v{number}" for number in range(MAX_VALUES)]
    part = to_slice("meta.shop", values)
    assert part.values.count(OTHERS) == 1
    assert part.values[-1] == OTHERS
    assert len(part.values) <= MAX_VALUES
    assert np.count_nonzero(part.codes == len(part.values) - 1) >= 100


@given(st.lists(st.sampled_from([*"abcdefghijklmnopqrstuvwxyz", OTHERS])))
def test_each_row_has_one_value_and_each_value_a_row(values: list[str]) -> None:
    part = to_slice("meta.field", values)
    assert len(part.codes) == len(values)
    assert len(set(part.values)) == len(part.values) <= MAX_VALUES
    assert set(part.codes.tolist()) == set(range(len(part.values)))
    for value, code in zip(values, part.codes, strict=True):
        assert part.values[code] in (value, OTHERS)
