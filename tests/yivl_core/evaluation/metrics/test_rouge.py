import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.evaluation.metrics.metric import BILLION, RowBatch
from yivl_core.evaluation.metrics.rouge import rouge_l

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("caption_figures.json").read_text(encoding="utf-8"))

Row = tuple[str | None, list[str]]

words = st.sampled_from(["a", "the", "dog", "狗", "🐶", ".", "runs"])
texts = st.lists(words, max_size=7).map(" ".join)
rows = st.lists(st.tuples(st.none() | texts, st.lists(texts, min_size=1, max_size=4)), max_size=5)


def counts_of(rows: list[Row]) -> list[list[int]]:
    batch = RowBatch([answer for answer, _ in rows], [tuple(references) for _, references in rows], ["stop"] * len(rows))
    counts: list[list[int]] = rouge_l().measure(batch).tolist()
    return counts


def slow_subsequence(a: str, b: str) -> int:
    """The textbook's recurrence of the longest common subsequence."""
    before = [0] * (len(b) + 1)
    for left in a:
        row = [0]
        for j, right in enumerate(b):
            row.append(before[j] + 1 if left == right else max(before[j + 1], row[j]))
        before = row
    return before[-1]


GOLDEN = [  # answer, references, ROUGE-L; by hand: 2.44 P R / (R + 1.44 P)
    ("A man rides a horse.", ["a man rides a horse"], 1.0),
    ("", [""], 1.0),
    ("...", [""], 1.0),
    ("", ["a man"], 0.0),
    ("a man", [""], 0.0),
    ("", ["a man", "!"], 1.0),
    (None, [""], 0.0),
    (None, ["a man"], 0.0),
    ("dog", ["cat"], 0.0),
    ("a b", ["a b c d"], 2.44 * 0.5 / (0.5 + 1.44)),
    ("a b c d", ["a b"], 2.44 * 0.5 / (1 + 1.44 * 0.5)),
    ("b a", ["a b"], 0.5),
    ("a x b y c z", ["a b c"], 2.44 * 0.5 / (1 + 1.44 * 0.5)),
    ("a b c d", ["a", "a b c x x x x x"], 2.44 * 0.75 / (1 + 1.44 * 0.75)),  # P of the second reference and R of the first
    ("a a a a", ["a"], 2.44 * 0.25 / (1 + 1.44 * 0.25)),
    ("一只狗", ["一只猫"], 2 / 3),
    ("一只狗在跑", ["一 只 狗 在 跑。"], 1.0),
    ("狗 iPhone", ["狗和IPHONE"], 2.44 * 2 / 3 / (2 / 3 + 1.44)),
    ("🐶 🛋", ["🐶 🛏"], 0.5),
    ("the dog’s", ["The dog's"], 1.0),
]


@pytest.mark.parametrize(("answer", "references", "figure"), GOLDEN)
def test_golden_pairs(answer: str | None, references: list[str], figure: float) -> None:
    assert counts_of([(answer, references)]) == [[1, pytest.approx(figure * BILLION, abs=1.01)]]


@pytest.mark.parametrize("corpus", ["hand_made", "drawn"])
def test_rows_are_those_of_pycocoevalcap(corpus: str) -> None:
    recorded = RECORDED[corpus]
    counts = counts_of([(row["answer"], row["references"]) for row in recorded])
    assert [value / BILLION for _, value in counts] == pytest.approx([row["rouge_l"] for row in recorded], abs=1.01e-9)
    assert len(recorded) >= 20


def test_figure_is_the_mean_of_rows() -> None:
    sums = np.array(counts_of([("a", ["a"]), ("a", ["b"]), (None, ["b"]), ("b a", ["a b"])])).sum(axis=0)
    assert rouge_l().figure(sums) == 1.5 / 4
    assert np.isnan(rouge_l().figure(np.zeros(2, dtype=np.int64)))
    assert rouge_l().measure(RowBatch([], [], [])).shape == (0, 2)


@settings(deadline=None)
@given(answer=st.text("abcd", min_size=1, max_size=8), reference=st.text("abcd", min_size=1, max_size=8))
def test_one_reference_gives_the_formula(answer: str, reference: str) -> None:
    common = slow_subsequence(answer, reference)
    precision, recall = common / len(answer), common / len(reference)
    figure = 2.44 * precision * recall / (recall + 1.44 * precision) if common else 0
    assert counts_of([(" ".join(answer), [" ".join(reference)])])[0][1] == pytest.approx(figure * BILLION, abs=1.01)


@settings(deadline=None)
@given(rows=rows, data=st.data())
def test_order_of_rows_and_of_references_decides_nothing(rows: list[Row], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = [(rows[i][0], data.draw(st.permutations(rows[i][1]))) for i in order]
    counts = counts_of(rows)
    assert counts_of(shuffled) == [counts[i] for i in order]
    cut = data.draw(st.integers(0, len(rows)))
    assert counts_of(rows[:cut]) + counts_of(rows[cut:]) == counts


@settings(deadline=None)
@given(answer=texts, references=st.lists(texts, min_size=1, max_size=4), more=texts)
def test_equal_texts_are_best_and_more_references_never_worse(answer: str, references: list[str], more: str) -> None:
    value = counts_of([(answer, references)])[0][1]
    assert 0 <= value <= BILLION
    assert counts_of([(answer, [*references, answer])])[0][1] == BILLION
    assert counts_of([(answer, [*references, more])])[0][1] >= value


def test_it_travels_to_other_processes_and_names_its_words() -> None:
    metric = pickle.loads(pickle.dumps(rouge_l()))
    assert metric.measure(RowBatch(["a b"], [("a b",)], ["stop"])).tolist() == [[1, BILLION]]
    assert "yivl-words-1" in metric.definition
    assert metric.normaliser is None
