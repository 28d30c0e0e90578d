import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.metrics.metric import BILLION, RowBatch
from yivl_core.evaluation.metrics.vqa import normalise_for_vqa, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two  cats.", "2 cats"),
        ("none", "0"),
        ("couldnt've couldn'tve cant", "couldn't've couldn't've can't"),
        ("yalld've", "yalld've"),
        ("somebody'd", "somebodyd"),
        ("im ive", "im ive"),  # the published table has them with a capital I, which lower case never meets
        ("3.5 m.", "3.5 m"),
        ("$1,000,000", "$1000000"),
        ("a-b, c/d", "b c d"),
        ("1,5 a-b", "15 ab"),  # a comma between digits makes every mark go without a space
        ("it's 10:30 'now'", "it's 10:30 'now'"),
        ("red\tand\nwhite", "red and white"),
        ("." * 33, "."),  # of full stops the first 32 go
        ("狗。", "狗。"),
    ],
)
def test_texts_are_made_alike_as_published(text: str, expected: str) -> None:
    assert normalise_for_vqa(text) == expected


@given(answers=st.lists(st.sampled_from("abc1"), min_size=10, max_size=10), answer=st.sampled_from("bc1"))
def test_accuracy_is_the_mean_over_the_sets_that_leave_one_out(answers: list[str], answer: str) -> None:
    sets = [answers[:place] + answers[place + 1 :] for place in range(10)]
    mean = sum(min(others.count(answer) / 3, 1) for others in sets) / 10
    counts = vqa_accuracy().measure(RowBatch([answer], [tuple(answers)], ["stop"]))
    assert counts[0, 1] / BILLION == pytest.approx(mean, abs=1e-9)


def test_answers_are_never_run_as_code() -> None:
    answer = "__import__('sys').exit(3)"
    assert vqa_accuracy().measure(RowBatch([answer], [("x",) * 10], ["stop"])).tolist() == [[1, 0]]
