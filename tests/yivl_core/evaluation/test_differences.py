from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq

from yivl_core.evaluation.differences import find_differences
from yivl_core.evaluation.texts.normalisation import normalise
from yivl_core.outputs.page import MAX_CHARACTERS

TEXT = st.text(st.sampled_from("aAbB \né"), max_size=12)


@given(answer=TEXT, reference=TEXT)
def test_differences_rebuild_the_answer_and_are_none_only_where_the_texts_are_equal(answer: str, reference: str) -> None:
    pieces = find_differences(answer, reference)
    assert "".join(piece.text for piece in pieces if piece.kind != "missing") == answer.strip()
    assert ({piece.kind for piece in pieces} <= {"same"}) == (normalise(answer) == normalise(reference))
    same = normalise("".join(piece.text for piece in pieces if piece.kind == "same"))
    assert len(same) <= LCSseq.similarity(normalise(answer), normalise(reference))


def test_differences_of_cut_texts_do_not_call_the_rest_missing() -> None:
    pieces = find_differences("a" * (MAX_CHARACTERS + 9), "a" * (MAX_CHARACTERS - 5) + "b" * 99)
    assert [piece.kind for piece in pieces] == ["same", "other"]
    assert [piece.kind for piece in find_differences("abc", "abc" + "d" * MAX_CHARACTERS)] == ["same"]


def test_fewer_characters_are_looked_at_where_that_is_asked_for() -> None:
    pieces = find_differences("TOTAL 12.80", "TOTAL 12.30 RM", 7)
    assert [(piece.kind, piece.text) for piece in pieces] == [("same", "TOTAL 1")]
    assert [piece.text for piece in find_differences("TOTAL 12.80", "TOTAL 12.30", 10) if piece.kind == "other"] == ["8"]
