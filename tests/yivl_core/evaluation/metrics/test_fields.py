import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.metrics.fields import field_accuracy, field_f1, read_fields, unparsable
from yivl_core.evaluation.metrics.metric import RowBatch
from yivl_core.evaluation.texts.normalisation import RAW


@pytest.mark.parametrize(
    ("answer", "fields"),
    [
        ("Total: 9\nnothing here\n* **Date** : 1 May", {"total": "9", "date": "1 May"}),
        ('x {"Invoice-No": 7.0, "paid": true, "b": null, "c": [1]}', {"invoice no": "7.0", "paid": "true", "c": "[1]"}),
        ("date:", {"date": ""}),
        (": 9", {}),
        ("", {}),
        ('{"a": 1', {}),
        ('{\n  "a": "1",\n  "b": "2', {}),
        ("x" * 81 + ": 9", {}),
        (" " * 50_000 + "a" + " " * 50_000 + ": 9", {"a": "9"}),
    ],
)
def test_fields_of_an_answer(answer: str, fields: dict[str, str]) -> None:
    assert read_fields(answer) == fields


def test_sums_are_over_fields_not_rows() -> None:
    references = [('{"a": "1"}',), ('{"a": "1", "b": "2", "c": "3"}',), ("none",)]
    batch = RowBatch(["a: 1", None, "a: 1"], references, ["stop", "error", "stop"])
    sums = field_accuracy().measure(batch).sum(axis=0)
    assert sums.tolist() == [2, 4, 1, 1]
    assert float(field_accuracy().figure(sums)) == 1 / 4
    assert float(field_f1().figure(sums)) == 2 / 5
    assert unparsable().measure(batch).tolist() == [[1, 0], [1, 1], [0, 0]]


def test_normaliser_decides_about_texts() -> None:
    batch = RowBatch(["a: SDN BHD"], [('{"a": "Sdn Bhd"}',)], ["stop"])
    assert field_accuracy().measure(batch)[0, 3] == 1
    assert field_accuracy(RAW).measure(batch)[0, 3] == 0


@pytest.mark.parametrize(
    ("number", "is_right"), [("1e2", True), ("100.00", True), ("1e999999999999999999999", False), ("99", False)]
)
def test_numbers_of_a_reference_may_have_exponents(number: str, is_right: bool) -> None:
    batch = RowBatch(["a: 100"], [(f'{{"a": {number}}}',)], ["stop"])
    assert field_accuracy().measure(batch)[0, 3] == is_right


@given(data=st.data())
def test_the_best_reference_counts_whatever_their_order(data: st.DataObject) -> None:
    references = ['{"a": "1"}', '{"a": "1", "b": "2"}', '{"a": "3"}', "none"]
    batch = RowBatch(["a: 1\nb: 2"], [tuple(data.draw(st.permutations(references)))], ["stop"])
    assert field_f1().measure(batch).tolist() == [[1, 2, 2, 2]]
