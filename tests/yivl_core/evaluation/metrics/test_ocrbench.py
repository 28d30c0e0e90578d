import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.metrics.metric import RowBatch
from yivl_core.evaluation.metrics.ocrbench import ocrbench

FORMULAS = "Handwritten Mathematical Expression Recognition"


def test_definition_warns() -> None:
    assert "a reader that prints everything wins, so this is no error rate" in ocrbench().definition


@pytest.mark.parametrize(
    ("meta", "is_right"),
    [
        ({"dataset_name": "HME100k"}, True),
        ({"category": FORMULAS}, True),
        ({"type": FORMULAS}, True),
        ({"dataset_name": "SROIE", "category": "Key Information Extraction"}, False),
        ({"note": f"no {FORMULAS}, and not HME100k"}, False),
        ({}, False),
    ],
)
def test_formulas_are_known_by_their_category(meta: dict[str, str], is_right: bool) -> None:
    batch = RowBatch(["x + 1"], [("x+1",)], ["stop"], [json.dumps(meta)])
    assert ocrbench().measure(batch).tolist() == [[1, is_right]]


@given(before=st.text(max_size=8), reference=st.text(max_size=8), after=st.text(max_size=8))
def test_more_text_never_makes_an_answer_wrong(before: str, reference: str, after: str) -> None:
    answers = [reference, f"{before} {reference.strip()} {after}"]
    for meta in ("{}", '{"dataset_name": "HME100k"}'):
        batch = RowBatch(answers, [(reference,)] * 2, ["stop"] * 2, [meta] * 2)
        assert ocrbench().measure(batch).tolist() == [[1, 1], [1, 1]]
