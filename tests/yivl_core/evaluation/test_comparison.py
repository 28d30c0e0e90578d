"""A model beside its baseline: what makes them incomparable and what lifts it, and what is said of each figure."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.evaluation.comparability import RowDifferences, compare_manifests
from yivl_core.evaluation.comparison import Group, comparison_json, differences_json, groups_of, match_rows
from yivl_core.evaluation.metrics.names import NAMES
from yivl_core.evaluation.scoring import ScoredRows
from yivl_core.outputs.manifest import write_manifest
from yivl_core.outputs.predictions import PredictionImage

Measure = Callable[..., ScoredRows]
Write = Callable[..., str]
Evaluate = Callable[..., Any]
Row = tuple[str | None, tuple[str, ...], str | None]

texts = st.sampled_from(["", "a dog runs in the park", "A dog.", "12.50", "12.5", '{"total": "1"}', "狗", " x"])
right = st.lists(texts, min_size=1, max_size=3).map(tuple)
clusters = st.sampled_from([None, "r1", "r2", "r3"])
pairs = st.lists(st.tuples(st.none() | texts, st.none() | texts, right, clusters), min_size=1, max_size=12)


def compare(rows: ScoredRows, baseline: ScoredRows, primary: str = "cer", num_resamples: int = 200) -> dict[str, Any]:
    matched = match_rows(rows, baseline)
    return comparison_json(rows, baseline, matched, [], primary=primary, num_resamples=num_resamples, seed=0)


def of_answers(answers: str, reference: str = "a") -> list[Row]:
    return [(answer, (reference,), None) for answer in answers]


def test_rows_are_matched_by_sample_id_in_any_order(measure: Measure) -> None:
    here = measure(of_answers("abc"), sample_ids=["x", "y", "z"])
    there = measure(of_answers("bca"), sample_ids=["z", "w", "x"])
    matched = match_rows(here, there)
    assert (matched.here.tolist(), matched.there.tolist(), len(matched)) == ([0, 2], [2, 0], 2)
    compared = compare(here, there)
    assert (compared["num_matched"], compared["num_only_here"], compared["num_only_there"]) == (2, 1, 1)


def test_groups_say_what_became_of_each_answer(measure: Measure) -> None:
    here, there = measure(of_answers("aabb")), measure(of_answers("abab"))
    assert groups_of(here, there, match_rows(here, there)) == [
        Group.STAYED_RIGHT,
        Group.MENDED,
        Group.LOST,
        Group.STAYED_WRONG,
    ]
    assert compare(here, there)["groups"] == {"mended": 1, "lost": 1, "stayed wrong": 1, "stayed right": 1}


def test_figures_of_both_by_hand(measure: Measure) -> None:
    """Of 40 rows 30 are right here and 20 there: 10 were mended and none lost, so McNemar's p is 2 / 2**10."""
    found = compare(measure(of_answers("a" * 30 + "b" * 10)), measure(of_answers("a" * 20 + "b" * 20)))
    exact, cer = found["figures"]["exact_match"], found["figures"]["cer"]
    assert (exact["value"], exact["baseline"], exact["difference"], exact["n"]) == (0.75, 0.5, 0.25, 40)
    assert (exact["num_improved"], exact["num_worsened"], exact["num_equal"]) == (10, 0, 30)
    assert exact["mcnemar_p"] == pytest.approx(2 / 2**10)
    assert exact["interval"]["low"] <= 0.25 <= exact["interval"]["high"]
    assert (cer["difference"], cer["num_improved"], cer["mcnemar_p"], cer["verdict"]) == (-0.25, 10, None, "better")
    assert (found["verdict"], found["is_comparable"]) == ("better", True)
    assert exact["smallest_detectable"] > 0


def test_the_primary_metric_decides_and_the_others_are_adjusted(measure: Measure) -> None:
    here, there = (measure(of_answers(text), "cer", "wer", "anls") for text in ("a" * 30 + "b" * 10, "a" * 20 + "b" * 20))
    by_cer, by_empty = compare(here, there), compare(here, there, "empty")
    assert (by_cer["verdict"], by_empty["verdict"]) == ("better", "not distinguishable")
    for found, primary in ((by_cer, "cer"), (by_empty, "empty")):
        assert [name for name, figure in found["figures"].items() if figure["p_adjusted"] is None] == [primary]
        others = [figure for name, figure in found["figures"].items() if name != primary]
        assert all(figure["p_adjusted"] >= figure["p_value"] for figure in others)
    assert by_cer["figures"]["exact_match"]["p_adjusted"] == pytest.approx(  # Holm: the smallest of three that differ
        min(1, 3 * by_cer["figures"]["exact_match"]["p_value"])
    )


def test_a_finding_that_does_not_outlast_the_adjustment_is_none(measure: Measure) -> None:
    here, there = (measure(of_answers(text), "cer", "wer", "anls") for text in ("a" * 27 + "b" * 13, "a" * 20 + "b" * 20))
    by_cer, by_empty = compare(here, there, num_resamples=2000), compare(here, there, "empty", num_resamples=2000)
    for found in (by_cer["figures"]["exact_match"], by_empty["figures"]["cer"]):
        assert (found["p_adjusted"] < 0.05, found["verdict"]) == (True, "better")
    few = compare(here, there, num_resamples=100)["figures"]
    assert few["exact_match"]["p_adjusted"] == pytest.approx(3 * 2 / 101)  # no p is smaller than 2 of 101
    assert (few["cer"]["verdict"], few["exact_match"]["verdict"]) == ("better", "not distinguishable")


@pytest.mark.parametrize("answer", ["", "x"])
def test_a_main_metric_that_is_not_defined_does_not_compare(write_rows: Write, evaluate: Evaluate, answer: str) -> None:
    here, there = write_rows([(answer, "")] * 3), write_rows([(answer, "")] * 3, name="there")
    summary, report, page = evaluate(here, baseline=there)
    compared = report["comparison"]
    assert (summary.verdict, compared["verdict"], compared["is_comparable"]) == ("not comparable", "not comparable", True)
    assert summary.reason == compared["reason"] == "CER is not defined for the rows that both have"
    assert "**Beside the baseline: not comparable**, since CER is not defined for the rows that both have." in page
    assert compared["figures"]["exact_match"]["verdict"] == "not distinguishable"


def test_rows_that_a_metric_is_not_defined_for_are_left_out_of_both(measure: Measure) -> None:
    rows: list[Row] = [("1", ("1",), None), ("2", ("x",), None), ("3", ("4",), None)]
    figure = compare(measure(rows, "decimal_exact"), measure([*rows[:2], ("4", ("4",), None)], "decimal_exact"))["figures"]
    assert (figure["decimal_exact"]["n"], figure["decimal_exact"]["difference"]) == (2, -0.5)
    assert (figure["cer"]["n"], figure["decimal_exact"]["num_equal"]) == (3, 1)


def test_models_without_a_common_row_do_not_compare(measure: Measure) -> None:
    found = compare(measure(of_answers("a"), sample_ids=["x"]), measure(of_answers("a"), sample_ids=["y"]))
    assert (found["is_comparable"], found["verdict"], found["figures"], found["groups"]) == (False, "not comparable", {}, {})


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(st.none() | texts, right, clusters), min_size=1, max_size=12))
def test_a_model_is_not_distinguishable_from_itself(measure: Measure, rows: list[Row]) -> None:
    scored = measure(rows, *NAMES)
    for name, figure in compare(scored, scored, num_resamples=100)["figures"].items():
        assert figure["verdict"] == ("not comparable" if figure["value"] is None else "not distinguishable"), name
        assert (figure["num_improved"], figure["num_worsened"], figure["num_equal"]) == (0, 0, figure["n"]), name
        if figure["value"] is not None:
            assert (figure["difference"], figure["p_value"], figure["p_adjusted"]) == (0, 1, None if name == "cer" else 1), name
            assert figure["interval"]["low"] == figure["interval"]["high"] == 0, name


@settings(max_examples=30)
@given(rows=pairs)
def test_the_other_way_round_everything_is_the_reverse(measure: Measure, rows: list[Any]) -> None:
    one = measure([(here, right, cluster) for here, _, right, cluster in rows], *NAMES)
    other = measure([(there, right, cluster) for _, there, right, cluster in rows], *NAMES)
    forth, back = (compare(*sides, num_resamples=100)["figures"] for sides in ((one, other), (other, one)))
    same = {one: one for one in ("not distinguishable", "not comparable")}
    reverse = {"better": "worse", "worse": "better"} | same
    for name in NAMES:
        ours, theirs = forth[name], back[name]
        assert (ours["value"], ours["num_improved"]) == (theirs["baseline"], theirs["num_worsened"]), name
        assert ours["p_value"] == pytest.approx(theirs["p_value"]), name
        assert ours["verdict"] == reverse[theirs["verdict"]], name
        if ours["difference"] is not None:
            assert ours["difference"] == -theirs["difference"], name
            low, high = ours["interval"]["low"], ours["interval"]["high"]
            assert low is None or low <= ours["difference"] <= high, name


# What runs do not share

HERE: list[tuple[Any, ...]] = [("a", "a"), ("b", "b"), ("c", "c")]
IMAGES = (PredictionImage(uri="a.png", sha256="1" * 64),)
MANIFEST = {"decoding": {"max_new_tokens": 64}, "prompt": {"version": "1"}, "model": {"digest": "m"}, "code": {"version": "1"}}

DIFFERENCES: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("data", {"query": "What else?"}, "query of 1 (id-1)", "", "another"),
    ("data", {"history": (("q", "a"),)}, "history of 1 (id-1)", "", "another"),
    ("data", {"system": "Be kind."}, "system of 1 (id-1)", "", "another"),
    ("data", {"references": ("d",)}, "references of 1 (id-1)", "", "another"),
    ("data", {"images": IMAGES}, "images of 1 (id-1)", "", "another"),
    ("rows", {"sample_id": "other"}, "rows that only one side has", "1 (id-1)", "missing"),
    ("decoding", {"decoding": {"max_new_tokens": 65}}, "decoding.max_new_tokens", "64", "65"),
    ("prompt", {"prompt": {"version": "2"}}, "prompt.version", '"1"', '"2"'),
]


@pytest.mark.parametrize(("kind", "change", "name", "ours", "theirs"), DIFFERENCES)
def test_a_difference_blocks_until_it_is_allowed(
    write_rows: Write, evaluate: Evaluate, kind: str, change: dict[str, Any], name: str, ours: str, theirs: str
) -> None:
    is_of_manifest = kind in MANIFEST
    here = write_rows(HERE)
    there = write_rows([HERE[0], ("b", "b", {} if is_of_manifest else change), HERE[2]], name="there")
    write_manifest(f"{here}/manifest.json", MANIFEST, {})
    write_manifest(f"{there}/manifest.json", MANIFEST | (change if is_of_manifest else {}), {})
    summary, report, page = evaluate(here, baseline=there)
    compared = report["comparison"]
    assert (summary.verdict, summary.difference) == ("not comparable", None)
    assert (compared["is_comparable"], compared["figures"], compared["groups"]) == (False, {}, {})
    assert all(sample["group"] is None for sample in report["samples"])
    found = compared["differences"][0]
    assert [found[key] for key in ("kind", "name", "ours", "theirs")] == [kind, name, ours, theirs]
    assert (found["is_blocking"], found["is_allowed"], found["is_warning"]) == (True, False, False)
    assert "**Beside the baseline: not comparable**" in page

    others = tuple({"data", "prompt", "decoding", "rows"} - {kind})
    assert evaluate(here, baseline=there, allow_difference=others).summary.verdict == "not comparable"

    summary, report, page = evaluate(here, baseline=there, allow_difference=(kind,))
    compared, found = report["comparison"], report["comparison"]["differences"][0]
    assert (summary.verdict, summary.difference) == ("not distinguishable", 0)
    assert (found["is_blocking"], found["is_allowed"]) == (False, True)
    assert report["scoring"]["allow_difference"] == [kind]
    assert f"although the runs differ in {kind}, which was allowed" in page
    assert any(sample["group"] == "stayed right" for sample in report["samples"])


def test_rows_of_either_side_that_are_missing_are_named(write_rows: Write, evaluate: Evaluate) -> None:
    here = write_rows([("a", "a", {"sample_id": f"new-{number}"}) for number in range(7)] + [("a", "a")])
    there = write_rows([("a", "a", {"sample_id": "old"}), ("a", "a", {"sample_id": "id-7"})], name="there")
    compared = evaluate(here, baseline=there, allow_difference=("rows",)).report["comparison"]
    assert [(one["ours"], one["theirs"]) for one in compared["differences"] if one["kind"] == "rows"] == [
        ("7 (new-0, new-1, new-2, new-3, new-4, ...)", "missing"),
        ("missing", "1 (old)"),
    ]
    assert (compared["num_matched"], compared["num_only_here"], compared["num_only_there"]) == (1, 7, 1)
    assert compared["figures"]["cer"]["n"] == 1


def test_rows_without_a_reference_are_nothing_to_compare(write_rows: Write, evaluate: Evaluate) -> None:
    here = write_rows([("a", "a"), ("a", None, {"query": "Else?"}), ("a", None, {"sample_id": "new"})])
    there = write_rows([("b", "a"), ("a", None), ("a", None, {"sample_id": "old"}), ("a", None)], name="there")
    compared = evaluate(here, baseline=there).report["comparison"]
    assert [one for one in compared["differences"] if one["kind"] != "manifest"] == []
    assert (compared["is_comparable"], compared["num_matched"]) == (True, 1)


def test_a_reference_that_one_side_lacks_is_another_question(write_rows: Write, evaluate: Evaluate) -> None:
    here, there = write_rows([("a", "a"), ("a", "a")]), write_rows([("a", "a"), ("a", None)], name="there")
    for sides in ((here, there), (there, here)):
        compared = evaluate(sides[0], baseline=sides[1]).report["comparison"]
        found = [one["name"] for one in compared["differences"] if one["is_blocking"]]
        assert (found, compared["verdict"]) == (["references of 1 (id-1)"], "not comparable")


def test_images_that_one_side_could_not_read_warn(write_rows: Write, evaluate: Evaluate) -> None:
    here = write_rows([("a", "a", {"images": IMAGES})])
    there = write_rows([(None, "a", {"images": (PredictionImage(uri="a.png"),)})], name="there")
    summary, report, _ = evaluate(here, baseline=there)
    warned = [one for one in report["comparison"]["differences"] if one["kind"] == "data"]
    assert [(one["name"], one["is_blocking"], one["is_warning"]) for one in warned] == [("images of 1 (id-0)", False, True)]
    assert summary.verdict is not None
    assert summary.verdict != "not comparable"


def test_what_does_not_block_is_never_allowed() -> None:
    manifests = compare_manifests(MANIFEST, MANIFEST | {"code": {"version": "2"}, "model": {"digest": "n"}})
    found = differences_json(manifests, RowDifferences(), ("data", "prompt", "decoding", "rows"))
    assert [(one["kind"], one["is_blocking"], one["is_allowed"], one["is_warning"]) for one in found] == [
        ("code", False, False, True),
        ("model", False, False, False),
    ]
