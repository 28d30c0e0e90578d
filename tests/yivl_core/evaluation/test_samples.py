"""Which rows a report shows, and what it says of them."""

from collections.abc import Callable
from typing import Any

import pytest

from yivl_core.evaluation.comparison import Group, match_rows
from yivl_core.evaluation.samples import FAILED, RANDOM, WORST, Baseline, Choice, choose_rows, samples_json
from yivl_core.evaluation.scoring import ScoredRows

Score = Callable[..., ScoredRows]

RIGHT = ("a", "a")
MIXED = [RIGHT, ("xxxx", "a"), (None, "a"), ("b", "a"), RIGHT, ("xx", "a")]


def choose(rows: ScoredRows, max_samples: int, groups: dict[int, Group] | None = None, primary: str = "cer") -> Choice:
    metric = next(metric for metric in rows.metrics if metric.name == primary)
    return choose_rows(rows, metric, groups or {}, max_samples)


def worst(rows: ScoredRows, primary: str) -> list[int]:
    choice = choose(rows, 1000, primary=primary)
    assert all((WORST in choice.reasons[place]) == (place in choice.ranks) for place in choice.places)
    return sorted(choice.ranks, key=choice.ranks.__getitem__)


def test_all_rows_are_shown_while_they_are_few(score: Score) -> None:
    choice = choose(score(MIXED), 6)
    assert (choice.places, choice.is_all) == ([0, 1, 2, 3, 4, 5], True)
    assert [place for place in choice.places if FAILED in choice.reasons[place]] == [2]


def test_the_worst_are_answered_rows_by_what_they_cost_the_figure(score: Score) -> None:
    """By hand: four, two and one edits; the failed row stands among the failed ones."""
    assert worst(score(MIXED), "cer") == [1, 5, 3]
    assert worst(score(MIXED), "exact_match") == [1, 3, 5], "equally bad ones in record order"


@pytest.mark.parametrize("primary", ["field_accuracy", "field_f1"])
def test_the_worst_of_a_rate_of_right_things_have_the_fewest_of_them(score: Score, primary: str) -> None:
    reference = '{"total": "1", "date": "2"}'
    rows = [('{"total": "1", "date": "2"}', reference), ("{}", reference), ('{"total": "1", "date": "3"}', reference)]
    assert worst(score(rows, "fields"), primary) == [1, 2]


def test_rows_that_a_metric_is_not_defined_for_are_not_the_worst(score: Score) -> None:
    rows = [("1.00", "text"), ("2", "1"), ("1", "1")]
    assert worst(score(rows, "decimal_exact"), "decimal_exact") == [1]


def test_the_worst_by_a_score_are_those_below_the_best_row(score: Score) -> None:
    rows = [("a dog runs in the park", "a dog runs in the park"), ("a dog runs far away now", "a dog runs in the park")]
    assert worst(score(rows, "bleu4"), "bleu4") == [1]
    assert worst(score([("a dog", "a dog"), *rows], "bleu4"), "bleu4") == [2], "two words have no BLEU-4, and are right"


@pytest.mark.parametrize("max_samples", range(8))
def test_no_more_rows_are_shown_than_were_asked_for_and_no_fewer(score: Score, max_samples: int) -> None:
    rows = score(MIXED)
    choice = choose(rows, max_samples)
    assert len(choice.places) == min(max_samples, len(rows))
    assert choice.places == sorted(choice.reasons)
    if 0 < max_samples < len(rows):
        assert all(choice.reasons.values()), "each is shown for a reason"
        assert 1 in choice.places, "the worst of all comes first"


def test_the_reasons_take_turns(score: Score) -> None:
    rows = score([RIGHT] * 300 + [("b", "a")] * 300 + [(None, "a")] * 300)
    groups = dict.fromkeys(range(300, 400), Group.LOST) | dict.fromkeys(range(100), Group.MENDED)
    reasons = [reason for found in choose(rows, 100, groups).reasons.values() for reason in found]
    assert {reason for reason in reasons if reasons.count(reason) >= 20} == {WORST, RANDOM, FAILED, "lost", "mended"}


def test_chance_looks_at_sample_ids_alone(score: Score) -> None:
    places = [choose(score([(answer, "a")] * 50), 10).places for answer in ("a", "a")]
    assert places[0] == places[1]
    random = [
        {place for place, reasons in choose(score([(answer, "a")] * 50), 20).reasons.items() if RANDOM in reasons}
        for answer in ("b", "c")
    ]
    assert random[0] == random[1]


def test_a_row_is_described_with_its_baseline(score: Score, write_rows: Callable[..., str]) -> None:
    here = [("The text is A", "a"), ("b", "b", {"finish_reason": "length"}), (None, "c")]
    there = [("a", "a"), (None, "b"), ("c", "c")]
    predictions, baseline = write_rows(here, name="here"), write_rows(there, name="there")
    rows, others = score(here), score(there)
    matched = match_rows(rows, others)
    beside = Baseline(predictions=baseline, rows=others, matched=matched, is_comparable=True)
    choice = choose(rows, 10, beside.groups_of(rows))
    samples = samples_json(predictions, rows, choice, extractor="unwrapped", baseline=beside)
    assert [sample["response"] for sample in samples] == ["The text is A", "b", None]
    assert [sample["answer"] for sample in samples] == ["A", "b", None]
    assert [sample["states"] for sample in samples] == [["wrong"], ["cut", "right"], ["failed", "wrong"]]
    assert [sample["group"] for sample in samples] == ["lost", "mended", "lost"]
    assert [sample["worst_rank"] for sample in samples] == [1, None, None]
    assert samples[0]["values"] == {"cer": 12.0, "exact_match": 0.0}
    assert [sample["baseline"]["response"] for sample in samples] == ["a", None, "c"]
    assert (samples[1]["baseline"]["error_kind"], samples[2]["error_kind"], samples[2]["error"]) == (
        "truncated",
        "truncated",
        "a.png is cut off",
    )


def test_rows_that_do_not_compare_are_neither_lost_nor_mended(score: Score) -> None:
    rows, others = score([("b", "a")]), score([RIGHT])
    matched = match_rows(rows, others)
    beside = [
        Baseline(predictions="", rows=others, matched=matched, is_comparable=is_comparable).groups_of(rows)
        for is_comparable in (True, False)
    ]
    assert beside == [{0: Group.LOST}, {}]


def test_slices_of_a_row_stand_beside_it(score: Score, write_rows: Callable[..., str]) -> None:
    made: list[Any] = [("a", "a", {"meta": '{"scan": "good"}'}), ("12", "a1", {"meta": "{}"})]
    rows = score(made, fields=("scan",))
    samples = samples_json(write_rows(made), rows, choose(rows, 5), extractor="verbatim", baseline=None)
    assert [sample["slices"] for sample in samples] == [
        {"length": "1 to 4", "characters": "letters", "meta.scan": "good"},
        {"length": "1 to 4", "characters": "letters and digits", "meta.scan": "(none)"},
    ]
