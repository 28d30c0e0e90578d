import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.metrics.metric import Metric, RowBatch
from yivl_core.evaluation.metrics.ocrbench import ocrbench, ocrbench_hme


@pytest.mark.parametrize("metric", [ocrbench(), ocrbench_hme()], ids=lambda metric: metric.name)
def test_definition_warns(metric: Metric) -> None:
    assert "a reader that prints everything wins, so this is no error rate" in metric.definition


@given(before=st.text(max_size=8), reference=st.text(max_size=8), after=st.text(max_size=8))
def test_more_text_never_makes_an_answer_wrong(before: str, reference: str, after: str) -> None:
    answers = [reference, f"{before} {reference.strip()} {after}"]
    for metric in (ocrbench(), ocrbench_hme()):
        assert metric.measure(RowBatch(answers, [(reference,)] * 2, ["stop"] * 2)).tolist() == [[1, 1], [1, 1]]
