import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.metrics.cider import cider_d
from yivl_core.evaluation.metrics.document_frequencies import DocumentFrequencies
from yivl_core.evaluation.metrics.metric import BILLION, RowBatch

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("caption_figures.json").read_text(encoding="utf-8"))

Row = tuple[str | None, list[str]]

words = st.sampled_from(["a", "the", "dog", "狗", "🐶", ".", "runs"])
texts = st.lists(words, max_size=7).map(" ".join)
rows = st.lists(st.tuples(st.none() | texts, st.lists(texts, min_size=1, max_size=4)), min_size=1, max_size=5)


def gathered(documents: list[list[str]]) -> DocumentFrequencies:
    frequencies = DocumentFrequencies()
    frequencies.add(documents)
    return frequencies


def counts_of(rows: list[Row], frequencies: DocumentFrequencies) -> list[list[int]]:
    batch = RowBatch([answer for answer, _ in rows], [tuple(references) for _, references in rows], ["stop"] * len(rows))
    counts: list[list[int]] = cider_d(frequencies).measure(batch).tolist()
    return counts


@pytest.mark.parametrize("corpus", ["hand_made", "one", "two", "drawn"])
def test_rows_are_those_of_pycocoevalcap(corpus: str) -> None:
    recorded = RECORDED[corpus]
    frequencies = gathered([row["references"] for row in recorded])
    counts = counts_of([(row["answer"], row["references"]) for row in recorded], frequencies)
    assert [value / BILLION for _, value in counts] == pytest.approx([row["cider_d"] for row in recorded], abs=1e-9)
    assert all(num_rows == 1 for num_rows, _ in counts)
    assert {"hand_made": 22, "one": 1, "two": 2, "drawn": 300}[corpus] == len(recorded)


FOUR = [["a b c d e"], ["a b"], ["f"], ["g g h i"]]  # a, b and `a b` are in two of four documents, everything else is in one
TWO, ONE = math.log(2), math.log(4)
GOLDEN = [  # answer, references, figure; by hand
    ("a b c d e", ["a b c d e"], 10.0),
    ("A, b; C d -- e!", ["a b c d e"], 10.0),
    ("f", ["f"], 2.5),
    ("f", ["g"], 0.0),
    ("", ["f"], 0.0),
    ("f", [""], 0.0),
    ("", [""], 0.0),
    (None, ["f"], 0.0),
    (None, [""], 0.0),
    ("f", ["f", "g"], 1.25),
    ("f", ["f", ""], 1.25),
    ("x", ["x"], 2.5),  # an n-gram of no document weighs as one of one document
    ("a f", ["a"], 2.5 * TWO / math.hypot(TWO, ONE) * math.exp(-1 / 72)),
    ("a", ["a f"], 2.5 * TWO / math.hypot(TWO, ONE) * math.exp(-1 / 72)),
    ("f f f", ["f"], 2.5 * (1 / 3) * math.exp(-4 / 72)),  # three count as the reference's one, and lengthen the answer
    ("f", ["f f f"], 2.5 * math.exp(-4 / 72)),
    ("h i x y", ["h i z w"], 2.5 * (2 / 4 + 1 / 3)),
    ("狗在跑", ["狗 在 跑。"], 7.5),
    ("狗", ["猫"], 0.0),
    ("🐶 🐶", ["🐶🐶"], 5.0),
    ("f 🛋", ["f 🛏"], 1.25),
]


@pytest.mark.parametrize(("answer", "references", "figure"), GOLDEN)
def test_golden_pairs(answer: str | None, references: list[str], figure: float) -> None:
    assert counts_of([(answer, references)], gathered(FOUR)) == [[1, pytest.approx(figure * BILLION, abs=1)]]


def test_one_document_gives_exactly_nothing_and_the_definition_says_so() -> None:
    frequencies = gathered([["a dog runs", "dogs run"]])
    assert counts_of([("a dog runs", ["a dog runs", "dogs run"])], frequencies) == [[1, 0]]
    assert "with one document all weights are log 1, so the figure is 0" in cider_d(frequencies).definition


def test_definition_names_words_and_document_frequencies() -> None:
    frequencies = gathered(FOUR)
    metric = cider_d(frequencies)
    assert f"document frequencies of 4 documents (rows) with sha256 {frequencies.digest}" in metric.definition
    assert "yivl-words-1" in metric.definition
    assert (metric.kind, metric.normaliser) == ("score", None)


def test_no_document_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="are of no document; count the references of at least two rows into them"):
        cider_d(DocumentFrequencies())


def test_figure_is_the_mean_of_rows() -> None:
    metric = cider_d(gathered(FOUR))
    sums = np.array([[2, 15 * BILLION], [4, 10 * BILLION], [0, 0]])
    assert metric.figure(sums[:2].astype(np.float64)).tolist() == [7.5, 2.5]
    assert np.isnan(metric.figure(sums[2]))
    assert metric.measure(RowBatch([], [], [])).shape == (0, 2)


def test_frequencies_that_grow_change_no_metric_that_was_made() -> None:
    frequencies = gathered(FOUR)
    metric, batch = cider_d(frequencies), RowBatch(["a f"], [("a",)], ["stop"])
    before = metric.measure(batch).tolist()
    frequencies.add([["a f"], ["a f"]])
    assert metric.measure(batch).tolist() == before != cider_d(frequencies).measure(batch).tolist()


@settings(deadline=None)
@given(rows=rows, data=st.data())
def test_order_of_rows_and_of_references_decides_nothing(rows: list[Row], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = [(rows[i][0], data.draw(st.permutations(rows[i][1]))) for i in order]
    frequencies = gathered([references for _, references in rows])
    counts = counts_of(rows, frequencies)
    assert counts_of(shuffled, gathered([references for _, references in shuffled])) == [counts[i] for i in order]
    cut = data.draw(st.integers(0, len(rows)))
    assert counts_of(rows[:cut], frequencies) + counts_of(rows[cut:], frequencies) == counts


@settings(deadline=None)
@given(rows=rows, answer=texts, reference=texts)
def test_equal_texts_are_best(rows: list[Row], answer: str, reference: str) -> None:
    frequencies = gathered([*(references for _, references in rows), ["nothing else"]])
    (_, equal), (_, other) = counts_of([(reference, [reference]), (answer, [reference])], frequencies)
    assert 0 <= other <= equal <= 10 * BILLION
    assert equal % (BILLION * 5 // 2) == 0  # a quarter of ten for each n of which the text has n-grams that weigh something


def test_it_travels_to_other_processes() -> None:
    metric = cider_d(gathered(FOUR))
    batch = RowBatch(["a b c"], [("a b c d e", "g h i")], ["stop"])
    assert pickle.loads(pickle.dumps(metric)).measure(batch).tolist() == metric.measure(batch).tolist()
