from collections.abc import Iterable
from functools import reduce
from operator import add

import jiwer
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from yivl_core.evaluation.metrics.edits import EDIT_METRICS, Score, score_answer
from yivl_core.evaluation.metrics.metric import Metric, RowBatch
from yivl_core.evaluation.texts.normalisation import MAIN, normalise

texts = st.text(max_size=30) | st.text(alphabet="ab 1é\u0301", max_size=12)
pairs = st.tuples(st.none() | texts, st.lists(texts, min_size=1, max_size=3))


def total(scores: Iterable[Score]) -> Score:
    return reduce(add, scores, Score())


def slow_distance(a: str, b: str) -> int:
    """Levenshtein's recurrence as it stands in the textbook."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


GOLDEN = [  # answer, references, edits, reference characters, exact; all after normalisation
    ("", [""], 0, 0, True),
    ("abc", [""], 3, 0, False),
    ("", ["abc"], 3, 3, False),
    (" \n", [""], 0, 0, True),
    ("abc", ["abc"], 0, 3, True),
    ("TOTAL", ["total"], 0, 5, True),
    ("Straße", ["STRASSE"], 0, 7, True),
    (" a  b\n", ["a b"], 0, 3, True),
    ("a\u3000b", ["a b"], 0, 3, True),
    ("caf\u00e9", ["cafe\u0301"], 0, 4, True),
    ("cafe", ["caf\u00e9"], 1, 4, False),
    ("\uff11\uff12", ["12"], 2, 2, False),
    ("合计12.30", ["合计 12.30"], 1, 8, False),
    ("🧾🧾", ["🧾"], 1, 1, False),
    ("abcdefghij", ["a"], 9, 1, False),
    ("kitten", ["sitting"], 3, 7, False),
    ("12,30", ["12.30", "12,30"], 0, 5, True),
    ("ab", ["xyzw", "ax"], 1, 2, False),
    ("abcdefghi", ["ab", "abcdefghiXYZ"], 3, 12, False),
    ("", ["abc", "a"], 1, 1, False),
    ("x", ["", "xy"], 1, 2, False),
]


@pytest.mark.parametrize(("answer", "references", "edits", "reference_characters", "is_exact"), GOLDEN)
def test_golden_pairs(answer: str, references: list[str], edits: int, reference_characters: int, is_exact: bool) -> None:
    score = score_answer(normalise(answer), [normalise(reference) for reference in references])
    assert (score.edits, score.reference_characters, bool(score.num_exact)) == (edits, reference_characters, is_exact)
    assert score.num_rows == 1


def test_text_as_written_is_compared_as_written() -> None:
    assert score_answer("caf\u00e9", ["cafe\u0301"]).cer == pytest.approx(2 / 5)
    assert score_answer("Total ", ["total"]).edits == 2


def test_failed_row_is_an_empty_answer_that_is_never_right() -> None:
    assert score_answer(None, ["abc"]) == score_answer("", ["abc"])
    assert (score_answer("", [""]).num_exact, score_answer(None, [""]).num_exact) == (1, 0)


def test_corpus_cer_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    scores = [score_answer("b", ["a"]), score_answer("abcdefghij", ["abcdefghij"])]
    assert total(scores).cer == pytest.approx(1 / 11)
    assert total(scores).exact_match == 0.5


def test_nothing_has_no_rate() -> None:
    assert (Score().cer, Score().exact_match) == (None, None)
    assert score_answer("abc", [""]).cer is None


@settings(deadline=None)
@given(answer=texts, reference=texts)
def test_edits_are_the_textbook_distance_and_balance_the_lengths(answer: str, reference: str) -> None:
    score = score_answer(answer, [reference])
    assert score.edits == slow_distance(reference, answer)
    assert score.insertions - score.deletions == len(answer) - len(reference)
    assert score.deletions + score.substitutions <= score.reference_characters == len(reference)
    assert bool(score.num_exact) == (answer == reference) == (score.edits == 0)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
def test_figures_equal_those_of_jiwer(rows: list[tuple[str, str]]) -> None:
    answers, references = ([normalise(text) for text in column] for column in zip(*rows, strict=True))
    assume(all(references))  # jiwer refuses an empty reference
    theirs = jiwer.process_characters(references, answers)  # it strips its inputs, which normalised text has behind it
    ours = total(score_answer(answer, [reference]) for answer, reference in zip(answers, references, strict=True))
    assert ours.cer == pytest.approx(theirs.cer)
    assert (ours.insertions, ours.deletions, ours.substitutions) == (theirs.insertions, theirs.deletions, theirs.substitutions)


@settings(deadline=None)
@given(rows=st.lists(pairs, max_size=6), data=st.data())
def test_sums_do_not_depend_on_order_or_grouping(rows: list[tuple[str | None, list[str]]], data: st.DataObject) -> None:
    scores = [score_answer(*row) for row in rows]
    cut = data.draw(st.integers(0, len(scores)))
    assert total(data.draw(st.permutations(scores))) == total(scores)
    assert total(scores[:cut]) + total(scores[cut:]) == total(scores)
    assert total(scores).edits == sum(score.edits for score in scores)


def test_of_references_that_are_as_close_the_same_counts_in_any_order() -> None:
    """Five edits each: two substitutions and three deletions, or one insertion and four deletions."""
    answer, references = "000\xe9\u0301\u0301", ["000000\xe900", "000\u03010000\u0301"]
    scores = [score_answer(answer, ordered) for ordered in (references, references[::-1])]
    alone = [score_answer(answer, [reference]) for reference in references]
    assert alone[0] != alone[1], "they differ in how the edits are shared out"
    assert scores[0] == scores[1]


@settings(deadline=None)
@given(answer=texts, references=st.lists(texts, min_size=1, max_size=4), data=st.data())
def test_closest_reference_counts_whatever_their_order(answer: str, references: list[str], data: st.DataObject) -> None:
    score = score_answer(answer, references)
    assert score_answer(answer, data.draw(st.permutations(references))) == score
    rates = [slow_distance(reference, answer) / len(reference) for reference in references if reference]
    if score.cer is not None:
        assert score.cer == min(rates)
    assert bool(score.num_exact) == (answer in references)


METRICS = [make(MAIN) for make in EDIT_METRICS]
rows = st.lists(st.tuples(st.none() | texts, st.lists(texts, min_size=1, max_size=3).map(tuple)), min_size=1, max_size=6)
Rows = list[tuple[str | None, tuple[str, ...]]]


def batch_of(rows: Rows) -> RowBatch:
    return RowBatch([answer for answer, _ in rows], [references for _, references in rows], ["stop"] * len(rows))


def figure_of(metric: Metric, rows: Rows) -> float:
    return float(metric.figure(metric.measure(batch_of(rows)).sum(axis=0)))


@settings(deadline=None)
@given(rows=rows, data=st.data())
def test_figures_depend_neither_on_the_order_of_rows_nor_on_that_of_references(rows: Rows, data: st.DataObject) -> None:
    shuffled = [
        (answer, tuple(data.draw(st.permutations(references)))) for answer, references in data.draw(st.permutations(rows))
    ]
    for metric in METRICS:
        np.testing.assert_equal(figure_of(metric, shuffled), figure_of(metric, rows))


@settings(deadline=None)
@given(rows=rows, data=st.data())
def test_sums_of_a_union_are_the_sums_of_its_parts(rows: Rows, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    for metric in METRICS:
        parts = [metric.measure(batch_of(part)).sum(axis=0) for part in (rows[:cut], rows[cut:])]
        np.testing.assert_array_equal(sum(parts), metric.measure(batch_of(rows)).sum(axis=0))


@settings(deadline=None)
@given(rows=rows)
def test_figures_keep_their_bounds_and_order(rows: Rows) -> None:
    figures = {metric.name: figure_of(metric, rows) for metric in METRICS}
    assert 0 <= figures["anls"] <= figures["one_minus_ned"] <= 1
    assert figures["exact_match"] <= figures["anls"]
    assert figures["exact_match_as_written"] <= figures["exact_match"]
    assert not figures["cer_capped"] > min(1, figures["cer"]), "or nan, where the references have no characters"


@settings(deadline=None)
@given(right=st.lists(st.lists(texts, min_size=1, max_size=3).map(tuple), min_size=1, max_size=6), data=st.data())
def test_right_answers_give_perfect_figures(right: list[tuple[str, ...]], data: st.DataObject) -> None:
    rows = [(data.draw(st.sampled_from(references)), references) for references in right]
    for metric in METRICS:
        figure = figure_of(metric, rows)
        assert figure == (1 if metric.best == "high" else 0) or (metric.kind == "rate" and np.isnan(figure))
