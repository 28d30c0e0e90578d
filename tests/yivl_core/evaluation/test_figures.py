"""Figures of all rows, of answered ones and of parts: by hand, and by laws that hold for every metric."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.evaluation.figures import Measured, Resampling, figures_json, histogram_json, row_values, slices_json
from yivl_core.evaluation.metrics.names import NAMES
from yivl_core.evaluation.scoring import ScoredRows
from yivl_core.evaluation.slices import to_slice
from yivl_core.evaluation.statistics.bootstrap import Bootstrap
from yivl_core.evaluation.statistics.clusters import group_clusters

Measure = Callable[..., ScoredRows]
Row = tuple[str | None, tuple[str, ...], str | None]

texts = st.sampled_from(
    ["", "a dog runs in the park", "A dog.", "12.50", "12.5", '{"total": "1"}', "狗", " x", "sorry, I cannot"]
)
rows = st.lists(
    st.tuples(st.none() | texts, st.lists(texts, min_size=1, max_size=3).map(tuple), st.sampled_from([None, "r1", "r2", "r3"])),
    min_size=1,
    max_size=12,
)


def resampling_of(scored: ScoredRows, num_resamples: int = 200) -> Resampling:
    clusters = group_clusters(scored.cluster_ids, scored.sample_ids)
    return Resampling(clusters=clusters, bootstrap=Bootstrap(clusters.num_groups, num_resamples, 0))


def figures_of(scored: ScoredRows) -> dict[str, Any]:
    return figures_json(scored, resampling_of(scored))


MIXED: list[Row] = [("abcd", ("abcd",), "r1"), ("abxx", ("abcd",), "r1"), (None, ("ab",), "r2"), ("ab", ("ab",), None)]


def test_figures_by_hand(measure: Measure) -> None:
    """4 edits in 12 characters, 2 in 10 of answered rows; two of four right, two of three answered."""
    figures = figures_of(measure(MIXED))
    assert list(figures) == ["cer", "exact_match", "failed", "empty", "cut", "looping", "refused"]
    cer = figures["cer"]
    assert (cer["value"], cer["n"], cer["num_clusters"]) == (4 / 12, 4, 3)
    assert cer["sums"] == {"rows": 4, "characters": 12, "insertions": 0, "deletions": 2, "substitutions": 2}
    assert (cer["answered_rows"]["value"], cer["answered_rows"]["n"]) == (2 / 10, 3)
    assert cer["interval"]["method"] == "t, few clusters"
    assert figures["exact_match"]["value"] == 2 / 4
    assert figures["exact_match"]["answered_rows"]["value"] == 2 / 3
    assert (figures["failed"]["value"], figures["failed"]["answered_rows"]["value"]) == (1 / 4, 0)
    assert (cer["title"], cer["best"], cer["kind"], cer["version"], cer["normaliser"]["name"]) == (
        "CER",
        "low",
        "rate",
        1,
        "nfc+casefold+ws1",
    )
    assert figures["failed"]["normaliser"] is None


def test_the_smallest_difference_is_that_of_two_independent_measurements(measure: Measure) -> None:
    """(1.959964 + 0.841621) times the standard error times the root of 2 (J. Cohen's formula, by a calculator)."""
    figure = figures_of(measure([("a" if number % 3 else "b", ("a",), None) for number in range(90)]))["cer"]
    assert figure["smallest_difference"] == pytest.approx(3.96204 * figure["standard_error"], rel=1e-5)
    assert figure["standard_error"] == pytest.approx((2 / 9 / 90) ** 0.5, rel=0.1)  # root of p (1 - p) / n


def test_one_row_has_a_figure_and_no_interval(measure: Measure) -> None:
    figure = figures_of(measure([("ab", ("abc",), None)]))["cer"]
    assert (figure["value"], figure["standard_error"], figure["smallest_difference"]) == (1 / 3, None, None)
    assert figure["interval"] == {"low": None, "high": None, "method": "none, one row"}


@settings(max_examples=40)
@given(rows=rows)
def test_every_interval_holds_its_figure(measure: Measure, rows: list[Row]) -> None:
    for name, figure in figures_of(measure(rows, *NAMES)).items():
        for one in (figure, figure["answered_rows"]):
            low, high = one["interval"]["low"], one["interval"]["high"]
            assert (low is None) == (high is None), name
            assert low is None or low <= one["value"] <= high, name
            assert (one["value"] is None) <= (low is None), name


@settings(max_examples=40)
@given(rows=rows, cut=st.integers(0, 12))
def test_sums_of_two_parts_are_those_of_the_whole(measure: Measure, rows: list[Row], cut: int) -> None:
    scored = measure(rows, *NAMES)
    is_first = np.arange(len(rows)) < cut
    resampling = resampling_of(scored, 100)
    pairs = list(zip(scored.metrics, scored.counts, strict=True))
    whole, first, second = (
        resampling.figures([Measured(metric=metric, counts=counts, rows=mask) for metric, counts in pairs])
        for mask in (None, is_first, ~is_first)
    )
    for all_rows, one, other in zip(whole, first, second, strict=True):
        assert all_rows["sums"] == {name: one["sums"][name] + other["sums"][name] for name in all_rows["sums"]}
        assert all_rows["n"] == one["n"] + other["n"]


@settings(max_examples=30)
@given(rows=rows, data=st.data())
def test_the_order_of_rows_decides_nothing(measure: Measure, rows: list[Row], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    names = [name for name in NAMES if name != "cider_d"]  # its definition names the document frequencies, which are the same too
    one = measure(rows, *names)
    other = measure([rows[place] for place in order], *names, sample_ids=[f"id-{place}" for place in order])
    assert figures_of(one) == figures_of(other)


def test_slices_have_the_figures_of_their_rows(measure: Measure) -> None:
    scored = measure(MIXED)
    part = to_slice("meta.shop", ["a", "b", "a", "b"])
    (found,) = slices_json(replace(scored, slices=(part,)), resampling_of(scored), ("exact_match",))
    assert found["name"] == "meta.shop"
    assert [(value["value"], value["num_rows"], list(value["figures"])) for value in found["values"]] == [
        ("a", 2, ["exact_match"]),
        ("b", 2, ["exact_match"]),
    ]
    assert [value["figures"]["exact_match"]["value"] for value in found["values"]] == [0.5, 0.5]
    assert [value["figures"]["exact_match"]["n"] for value in found["values"]] == [2, 2]


def values_of(scored: ScoredRows, name: str) -> Sequence[float]:
    metric = next(metric for metric in scored.metrics if metric.name == name)
    return list(row_values(metric, scored.counts_of(name)))


def test_each_row_has_a_figure_of_its_own(measure: Measure) -> None:
    """An empty reference has nothing to divide by: 1 with an error and 0 without."""
    scored = measure([("abxx", ("abcd",), None), ("x", ("",), None), ("", ("",), None), (None, ("ab",), None)], "decimal_exact")
    assert values_of(scored, "cer") == [0.5, 1, 0, 1]
    assert values_of(scored, "exact_match") == [0, 0, 1, 0]
    assert np.isnan(values_of(scored, "decimal_exact")).tolist() == [True, True, True, True], "no reference is a number"


def test_the_histogram_counts_rows_by_tenths(measure: Measure) -> None:
    """By hand: 0, 1/10, 3/10, 1/2, 19/20, 1 and 2; a tenth belongs to the bin that begins with it."""
    pairs = [("a" * 10, 0), ("a" * 10, 1), ("a" * 10, 3), ("ab", 1), ("a" * 20, 19), ("a", 1), ("a", 2)]
    answers = ["x" * wrong + text[wrong:] for text, wrong in pairs]
    scored = measure([(answer, (text,), None) for answer, (text, _) in zip(answers, pairs, strict=True)])
    found = histogram_json(scored.metrics[0], scored.counts_of("cer"))
    assert [one["num_rows"] for one in found] == [1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 2]
    assert (found[0]["low"], found[0]["high"], found[-1]["low"], found[-1]["high"]) == (0.0, 0.0, 1.0, None)
    assert [(one["low"], one["high"]) for one in found[1:3]] == [(0.0, 0.1), (0.1, 0.2)]


def test_a_score_has_no_histogram_and_undefined_rows_are_in_none(measure: Measure) -> None:
    scored = measure([("a", ("a",), None), ("1", ("1",), None)], "bleu4", "decimal_exact")
    by_name = {metric.name: metric for metric in scored.metrics}
    assert histogram_json(by_name["bleu4"], scored.counts_of("bleu4")) == []
    assert sum(one["num_rows"] for one in histogram_json(by_name["decimal_exact"], scored.counts_of("decimal_exact"))) == 1


@settings(max_examples=40)
@given(rows=rows)
def test_the_histogram_holds_each_row_once(measure: Measure, rows: list[Row]) -> None:
    scored = measure(rows, *NAMES)
    for metric, counts in zip(scored.metrics, scored.counts, strict=True):
        found = histogram_json(metric, counts)
        assert sum(one["num_rows"] for one in found) == (0 if metric.kind == "score" else int(counts[:, 0].sum())), metric.name
