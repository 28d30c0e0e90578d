import pickle
import random
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.metrics.metric import Metric, RowBatch
from yivl_core.evaluation.metrics.translation import BLEU_TOKENIZERS, bleu4, chrf

METRICS = [*(bleu4(tokenizer) for tokenizer in BLEU_TOKENIZERS), chrf()]
NAMES = [*BLEU_TOKENIZERS, "chrf"]

Row = tuple[str | None, list[str]]

words = st.sampled_from(["a", "A", "dog", "dogs", "12.5", "runs.", "&amp;", "狗", "一只狗", "🐶", ".", ""])
texts = st.lists(words, max_size=7).map(" ".join) | st.text(max_size=12)
rows = st.lists(st.tuples(st.none() | texts, st.lists(texts, min_size=1, max_size=4)), min_size=1, max_size=5)


def batch_of(rows: list[Row]) -> RowBatch:
    return RowBatch(
        [answer for answer, _ in rows],
        [tuple(references) for _, references in rows],
        ["error" if answer is None else "stop" for answer, _ in rows],
    )


def figure_of(metric: Metric, rows: list[Row]) -> float:
    return float(metric.figure(metric.measure(batch_of(rows)).sum(axis=0)))


def theirs(name: str, rows: list[Row]) -> float:
    """The figure of sacreBLEU's public interface."""
    public: Any = CHRF() if name == "chrf" else BLEU(tokenize=name)
    most = max(len(references) for _, references in rows)
    streams = [[references[i] if i < len(references) else None for _, references in rows] for i in range(most)]
    return float(public.corpus_score([answer or "" for answer, _ in rows], streams).score)


GOLDEN = [  # rows; what the command `sacrebleu` 2.6.0 gives: -m bleu -tok 13a, and -m chrf
    ([("the cat sat on the mat", ["the cat sat on the mat"])], 100.0, 100.0),
    ([("the cat sat on the mat", ["the cat is on the mat", "there is a cat on the mat"])], 37.991784, 64.577942),
    ([("The cat sat on the mat", ["the cat sat on the mat"])], 75.983569, 93.005414),
    ([("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"])], 7.809850, 14.232427),
    ([("the cat", ["the cat sat on the mat"])], 0.0, 27.253315),
    ([("the cat sat", ["the cat sat"])], 0.0, 100.0),
    ([("a b c d e", ["a b c d"])], 66.874030, 91.367713),
    ([("the cat sat on the mat", ["dog"])], 0.0, 5.747126),
    ([("the cat sat on the mat.", ["the cat sat on the mat ."])], 100.0, 100.0),
    ([("caf\u00e9 au lait s'il vous", ["cafe\u0301 au lait s'il vous"])], 66.874030, 75.747433),
    ([("一只狗在草地上跑", ["一只狗在草地上奔跑"])], 0.0, 70.940354),
    ([("一 只 狗 在 跑", ["一 只 狗 在 草 地 上 跑"])], 38.806843, 34.922453),
    ([("a 🐶 on the 🛋", ["a 🐶 on the 🛏"])], 66.874030, 79.702381),
    (
        [
            ("a man rides a horse", ["a man riding a horse", "a person on a horse"]),
            ("two dogs play in snow", ["dogs playing in the snow"]),
        ],
        17.375376,
        55.548170,
    ),
    ([("a b c d e f", ["a b c d e f"]), ("", ["g h i j"])], 51.341712, 81.029968),
    ([("a b c d e f", ["a b c d e f"]), (None, ["g h i j"])], 51.341712, 81.029968),  # a failed row counts as empty
    ([("", ["the cat"])], 0.0, 0.0),  # by hand from here: there is nothing to match
    ([("", [""])], 0.0, 0.0),
    ([("the cat", [""])], 0.0, 0.0),
    ([(None, [""])], 0.0, 0.0),
]


@pytest.mark.parametrize(("rows", "bleu", "chrf_figure"), GOLDEN)
def test_golden_rows(rows: list[Row], bleu: float, chrf_figure: float) -> None:
    assert figure_of(bleu4("13a"), rows) == pytest.approx(bleu, abs=5e-5)
    assert figure_of(chrf(), rows) == pytest.approx(chrf_figure, abs=5e-5)


@pytest.mark.parametrize(("metric", "name"), list(zip(METRICS, NAMES, strict=True)), ids=NAMES)
@settings(deadline=None, max_examples=60)
@given(rows=rows)
def test_figures_are_those_of_the_public_interface(metric: Metric, name: str, rows: list[Row]) -> None:
    assert figure_of(metric, rows) == pytest.approx(theirs(name, rows), rel=1e-12, abs=1e-12)


def test_a_corpus_of_many_rows_has_the_figure_of_the_public_interface() -> None:
    draw = random.Random(7)
    vocabulary = ["a", "the", "man", "dog", "horse", "rides", "runs", "on", "in", "red", "big", "hat"]

    def text() -> str:
        return " ".join(draw.choices(vocabulary, k=draw.randint(3, 12)))

    rows: list[Row] = [(text(), [text() for _ in range(draw.randint(1, 5))]) for _ in range(200)]
    for metric, name in zip(METRICS, NAMES, strict=True):
        assert figure_of(metric, rows) == pytest.approx(theirs(name, rows), rel=1e-12)
        assert figure_of(metric, rows) > 1


@settings(deadline=None)
@given(rows=rows, data=st.data())
def test_neither_order_nor_grouping_of_rows_decides(rows: list[Row], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    shuffled = data.draw(st.permutations(rows))
    for metric in METRICS:
        sums = metric.measure(batch_of(rows)).sum(axis=0)
        assert metric.measure(batch_of(shuffled)).sum(axis=0).tolist() == sums.tolist()
        parts = [metric.measure(batch_of(part)).sum(axis=0) for part in (rows[:cut], rows[cut:])]
        assert sum(parts).tolist() == sums.tolist()
        assert sums[0] == len(rows)


@settings(deadline=None)
@given(rows=rows)
def test_the_order_of_references_decides_nothing_in_bleu(rows: list[Row]) -> None:
    backwards = [(answer, references[::-1]) for answer, references in rows]
    assert bleu4().measure(batch_of(rows)).tolist() == bleu4().measure(batch_of(backwards)).tolist()


@settings(deadline=None)
@given(rows=rows)
def test_equal_texts_are_best(rows: list[Row]) -> None:
    equal: list[Row] = [("one two three four", ["one two three four"]), *((references[0], references) for _, references in rows)]
    for metric in METRICS:
        assert 0 <= figure_of(metric, rows) <= 100
        assert figure_of(metric, equal) == 100


@settings(deadline=None)
@given(rows=rows, seed=st.integers(0, 2**32 - 1))
def test_figures_of_many_resamples_are_those_of_each(rows: list[Row], seed: int) -> None:
    weights = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=(2, 3))
    for metric in METRICS:
        sums = weights.astype(np.float64) @ metric.measure(batch_of(rows))
        figures = metric.figure(sums)
        assert figures.shape == (2, 3)
        assert figures.dtype == np.float64
        repeated = [row for row, count in zip(rows, weights[1, 2], strict=True) for _ in range(count)]
        assert figures[1, 2] == pytest.approx(figure_of(metric, repeated), rel=1e-12)


def test_nothing_has_no_figure() -> None:
    for metric in METRICS:
        counts = metric.measure(batch_of([]))
        assert counts.shape == (0, len(metric.columns))
        assert np.isnan(metric.figure(counts.sum(axis=0)))


def test_definitions_hold_the_signature() -> None:
    assert "nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0" in bleu4().definition
    assert "tok:zh" in bleu4("zh").definition
    assert "nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0" in chrf().definition


def test_counts_have_their_columns() -> None:
    assert dict(zip(bleu4().columns, bleu4().measure(batch_of([("a b a", ["a b", "a b c d e"])]))[0].tolist(), strict=True)) == {
        "rows": 1,
        "answer_words": 3,
        "reference_words": 2,  # the length that is closest
        "matches_1": 2,
        "matches_2": 1,
        "matches_3": 0,
        "matches_4": 0,
        "ngrams_1": 3,
        "ngrams_2": 2,
        "ngrams_3": 1,
        "ngrams_4": 0,
    }
    counts = dict(zip(chrf().columns, chrf().measure(batch_of([("ab a", ["abc"])]))[0].tolist(), strict=True))
    assert [counts[f"{what}_2"] for what in ("answer_ngrams", "reference_ngrams", "matches")] == [2, 2, 1]


def test_metrics_travel_to_other_processes() -> None:
    batch = batch_of([("a b c d", ["a b c d e"])])
    for metric in METRICS:
        there = pickle.loads(pickle.dumps(metric))
        assert there.figure(there.measure(batch).sum(axis=0)) == metric.figure(metric.measure(batch).sum(axis=0))


@pytest.mark.parametrize("tokenizer", ["flores200", "spm", "ja-mecab", "ptb", ""])
def test_tokenizers_that_download_are_refused(tokenizer: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no BLEU tokenizer '{tokenizer}'; give one of 13a, zh, char, intl, none"):
        bleu4(tokenizer)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for metric in [*map(bleu4, BLEU_TOKENIZERS), chrf()]:
        assert figure_of(metric, [("a b c d", ["a b c d"])]) > 0
