import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.evaluation.gate import apply_gate
from yivl_core.evaluation.gate_file import Gate, GateSettings
from yivl_core.evaluation.report import evaluate_predictions
from yivl_core.outputs.manifest import write_manifest
from yivl_core.outputs.predictions import Prediction, content_digest, write_part

Changes = dict[str, Any]


def interval(low: float | None, high: float | None) -> Changes:
    return {"low": low, "high": high, "method": "cluster bootstrap"}


def figure(value: float | None, best: str = "low", n: int = 200) -> Changes:
    return {"value": value, "best": best, "n": n, "interval": interval(0.0, 1.0)}


def pair(difference: float | None, low: float | None, high: float | None, verdict: str, n: int = 190) -> Changes:
    return {"difference": difference, "interval": interval(low, high), "verdict": verdict, "n": n}


def difference(kind: str, name: str, *, blocks: bool = False, allowed: bool = False, warns: bool = False) -> Changes:
    flags = {"is_blocking": blocks, "is_allowed": allowed, "is_warning": warns}
    return {"kind": kind, "name": name, "ours": "1", "theirs": "2", **flags}


def report(comparison: Changes | None = None, **changes: Any) -> Changes:
    """What a gate reads of a report; with a comparison CER is worse by 0.01 to 0.03, and exact match better by as much."""
    slices = [
        {
            "name": "length",
            "values": [
                {"value": "1 to 4", "figures": {"cer": figure(0.3, n=20)}},
                {"value": "0", "figures": {"cer": figure(None, n=0)}},
            ],
        }
    ]
    made = {
        "scoring": {
            "primary": "cer",
            "normaliser": {"name": "nfc+casefold+ws1", "version": 1},
            "extractor": {"name": "verbatim", "version": 1},
            "bleu_tokenizer": None,
        },
        "rows": {"coverage": 0.97, "compared": 200},
        "figures": {
            "cer": figure(0.12),
            "exact_match": figure(0.6, "high"),
            "failed": figure(0.03),
            "wer": figure(None, n=0),
        },
        "slices": slices,
        "comparison": None,
        "predictions": {"manifest": None},
    }
    if comparison is not None:
        figures = {
            "cer": pair(0.02, 0.01, 0.03, "worse"),
            "exact_match": pair(0.02, 0.01, 0.03, "better"),
            "failed": pair(0.02, 0.01, 0.03, "worse"),
            "wer": pair(None, None, None, "not comparable", n=0),
        }
        made["comparison"] = {
            "is_comparable": True,
            "num_matched": 190,
            "differences": [],
            "verdict": "worse",
            "reason": None,
            "figures": figures | comparison.pop("figures", {}),
            **comparison,
        }
    return made | changes


NOT_COMPARABLE: Changes = {
    "is_comparable": False,
    "verdict": "not comparable",
    "reason": "these differ: decoding.temperature",
    "differences": [difference("decoding", "decoding.temperature", blocks=True)],
}


def judge(settings: Changes, reported: Changes) -> Changes:
    return apply_gate(Gate(settings=GateSettings.model_validate(settings), digest="d"), reported)


def of_rule(**rule: Any) -> Changes:
    return {"rules": [rule]}


MANIFEST: Changes = {
    "model": {"digest": "m"},
    "adapter": None,
    "data": {"digest": "d"},
    "prompt": {"version": 2, "example_sha256": "e"},
    "decoding": {"max_new_tokens": 64, "temperature": 0.0, "ban": True, "stop": None},
}


@pytest.mark.parametrize(
    ("rule", "reported", "result", "reason"),
    [
        # limits
        ({"metric": "cer", "max": 0.12}, report(), "passed", None),
        ({"metric": "cer", "max": 0.11}, report(), "regression", "cer 0.12 (95 % interval 0 to 1, 200 rows) is above the most"),
        ({"metric": "cer", "max": 0.1 + 0.02 - 1e-13}, report(), "passed", None),
        ({"metric": "exact_match", "min": 0.6}, report(), "passed", None),
        ({"metric": "exact_match", "min": 0.61}, report(), "regression", "is below the least that is allowed, 0.61"),
        ({"metric": "coverage", "min": 0.97}, report(), "passed", None),
        ({"metric": "coverage", "min": 0.98}, report(), "incomplete", "coverage 0.97 (200 rows) is below the least"),
        ({"metric": "failed", "max": 0.02}, report(), "incomplete", "failed 0.03 (95 % interval 0 to 1, 200 rows) is above"),
        ({"metric": "wer", "max": 0.02}, report(), "incomplete", "wer is not defined for any row, so it cannot be held against"),
        # rows
        ({"metric": "cer", "min_n": 200}, report(), "passed", None),
        ({"metric": "cer", "min_n": 201}, report(), "incomplete", "cer is made of 200 rows, fewer than the 201 that the gate"),
        ({"metric": "coverage", "min_n": 201}, report(), "incomplete", "coverage is made of 200 rows"),
        ({"metric": "cer", "min_n": 200, "margin": 1}, report({}), "incomplete", "cer is made of 190 rows that both have, fewer"),
        # slices
        ({"metric": "cer", "max": 0.3, "slice": {"name": "length", "value": "1 to 4"}}, report(), "passed", None),
        (
            {"metric": "cer", "max": 0.2, "slice": {"name": "length", "value": "1 to 4"}},
            report(),
            "regression",
            "cer of length 1 to 4 0.3 (95 % interval 0 to 1, 20 rows) is above the most",
        ),
        (
            {"metric": "cer", "max": 1, "slice": {"name": "length", "value": "0"}},
            report(),
            "incomplete",
            "is not defined for any",
        ),
        (
            {"metric": "cer", "max": 1, "slice": {"name": "length", "value": "5 to 9"}},
            report(),
            "incomplete",
            "cer of length 5 to 9: no row has this value; the slice has 1 to 4, 0",
        ),
        (
            {"metric": "cer", "min_n": 21, "slice": {"name": "length", "value": "1 to 4"}},
            report(),
            "incomplete",
            "made of 20 rows",
        ),
        # margins: CER is worse by 0.02, 0.01 to 0.03
        (
            {"metric": "cer", "margin": 0.0},
            report({}),
            "regression",
            "cer: a worsening of 0.02 (95 % interval 0.01 to 0.03, 190 pa",
        ),
        ({"metric": "cer", "margin": 0.009}, report({}), "regression", "lies wholly beyond the margin of 0.009"),
        ({"metric": "cer", "margin": 0.01}, report({}), "passed", None),
        ({"metric": "cer", "margin": 0.015}, report({}), "passed", None),
        ({"metric": "cer", "margin": 0.04}, report({}), "passed", None),
        ({"metric": "cer", "margin": 0.009, "test": "non_inferiority"}, report({}), "regression", "lies wholly beyond"),
        ({"metric": "cer", "margin": 0.025, "test": "non_inferiority"}, report({}), "regression", "reaches the margin of 0.025"),
        ({"metric": "cer", "margin": 0.03, "test": "non_inferiority"}, report({}), "regression", "reaches the margin of 0.03"),
        ({"metric": "cer", "margin": 0.031, "test": "non_inferiority"}, report({}), "passed", None),
        ({"metric": "exact_match", "margin": 0.0}, report({}), "passed", None),
        (
            {"metric": "exact_match", "margin": 0.02},
            report({"figures": {"exact_match": pair(-0.04, -0.05, -0.03, "worse")}}),
            "regression",
            "exact_match: a worsening of 0.04 (95 % interval 0.03 to 0.05, 190 pairs) lies wholly beyond the margin of 0.02",
        ),
        ({"metric": "failed", "margin": 0.0}, report({}), "incomplete", "failed: a worsening of 0.02"),
        ({"metric": "wer", "margin": 0.0}, report({}), "incomplete", "is not defined for any row that both have"),
        # no interval
        (
            {"metric": "cer", "margin": 0.0},
            report({"figures": {"cer": pair(0.02, None, None, "worse")}}),
            "regression",
            "cer: a worsening of 0.02 (190 pairs) is beyond the margin of 0",
        ),
        (
            {"metric": "cer", "margin": 0.0},
            report({"figures": {"cer": pair(0.02, None, None, "not distinguishable")}}),
            "incomplete",
            "has no interval, from too few clusters, that could be held against the margin of 0",
        ),
        ({"metric": "cer", "margin": 0.02}, report({"figures": {"cer": pair(0.02, None, None, "worse")}}), "passed", None),
        (
            {"metric": "cer", "margin": 0.03, "test": "non_inferiority"},
            report({"figures": {"cer": pair(0.02, None, None, "worse")}}),
            "incomplete",
            "has no interval",
        ),
        # A against A
        ({"metric": "cer", "margin": 0.0}, report({"figures": {"cer": pair(0, 0, 0, "not distinguishable")}}), "passed", None),
        (
            {"metric": "cer", "margin": 0.001, "test": "non_inferiority"},
            report({"figures": {"cer": pair(0, 0, 0, "not distinguishable")}}),
            "passed",
            None,
        ),
        # a baseline that does not compare
        (
            {"metric": "cer", "max": 1},
            report(dict(NOT_COMPARABLE) | {"figures": {}}),
            "not comparable",
            "the baseline does not compare: decoding.temperature (1 here, 2 in the baseline)",
        ),
        (
            {"metric": "cer", "max": 1},
            report({"is_comparable": False, "num_matched": 0, "reason": "they have no row with a reference in common"}),
            "not comparable",
            "they have no row with a reference in common",
        ),
    ],
)
def test_a_rule_and_what_becomes_of_it(rule: Changes, reported: Changes, result: str, reason: str | None) -> None:
    found = judge(of_rule(**rule), reported)
    assert found["result"] == result
    if reason is None:
        assert found["reasons"] == []
        assert all(check["passed"] for check in found["checks"])
    else:
        (text,) = found["reasons"]
        assert reason in text
        assert [check["text"] for check in found["checks"] if check["passed"] is False] == [text]


@pytest.mark.parametrize(
    ("require", "comparison", "result", "reason"),
    [
        ({"same": ["data", "prompt", "decoding", "model", "normaliser", "extractor"]}, {}, "passed", None),
        ({"same": ["data"]}, {"differences": [difference("prompt", "prompt.version", allowed=True)]}, "passed", None),
        *(
            (
                {"same": [kind]},
                {"differences": [difference(kind, f"{kind}.x", warns=True)]},
                "not comparable",
                f"{kind}.x (1 here",
            )
            for kind in ("data", "prompt", "decoding", "numerics", "environment", "code", "model", "adapter")
        ),
        (
            {"same": ["data"]},
            {"differences": [difference("rows", "rows of one side", allowed=True)]},
            "not comparable",
            "rows of",
        ),
        ({"same": ["data"]}, {"differences": [difference("data", "images of 1 (a)", warns=True)]}, "passed", None),
        (
            {"same": ["data"]},
            {"differences": [difference("data", "images of 1 (a)", warns=True), difference("manifest", "manifest", warns=True)]},
            "not comparable",
            "images of 1 (a)",
        ),
        ({"same": ["data"]}, {"differences": [difference("manifest", "manifest", warns=True)]}, "passed", None),
        (
            {"same": ["prompt"]},
            {"differences": [difference("manifest", "manifest", warns=True)]},
            "not comparable",
            "prompt is not shown to be the baseline's: manifest (1 here, 2 in the baseline)",
        ),
        (
            {"same": ["environment"]},
            {"differences": [difference("environment", f"environment.{n}", warns=True) for n in range(7)]},
            "not comparable",
            "environment.4 (1 here, 2 in the baseline); and 2 more",
        ),
        ({"primary": "better"}, {"figures": {"cer": pair(-0.02, -0.03, -0.01, "better")}}, "passed", None),
        ({"primary": "not_worse"}, {"figures": {"cer": pair(0.02, -0.01, 0.03, "not distinguishable")}}, "passed", None),
        (
            {"primary": "better"},
            {"figures": {"cer": pair(0.02, -0.01, 0.03, "not distinguishable")}},
            "regression",
            "cer is not distinguishable beside the baseline's (a worsening of 0.02 (95 % interval -0.01 to 0.03, 190 pairs)), "
            "and the gate asks for better",
        ),
        ({"primary": "not_worse"}, {}, "regression", "the gate asks for not worse"),
        (
            {"primary": "better"},
            {
                "figures": {"cer": pair(None, None, None, "not comparable")},
                "verdict": "not comparable",
                "reason": "CER is not defined for the rows that both have",
            },
            "not comparable",
            "the baseline does not compare: CER is not defined for the rows that both have",
        ),
    ],
)
def test_what_is_required_of_a_comparison(require: Changes, comparison: Changes, result: str, reason: str | None) -> None:
    found = judge({"require": require}, report(dict(comparison)))
    assert found["result"] == result
    assert len(found["reasons"]) == (reason is not None)
    assert reason is None or reason in found["reasons"][0]


@pytest.mark.parametrize(
    ("name", "value", "is_equal", "found"),
    [
        ("normaliser", "nfc+casefold+ws1", True, None),
        ("normaliser", "raw", False, "nfc+casefold+ws1"),
        ("extractor", "verbatim", True, None),
        ("primary", "cer", True, None),
        ("bleu_tokenizer", "13a", False, "null"),
        ("data", "d", True, None),
        ("data", "e", False, "d"),
        ("model", "m", True, None),
        ("adapter", "null", True, None),
        ("adapter", "a", False, "null"),
        ("prompt", "e", True, None),
        ("prompt.version", "2", True, None),
        ("decoding.max_new_tokens", "65", False, "64"),
        ("decoding.temperature", "0", True, None),
        ("decoding.temperature", "cold", False, "0.0"),
        ("decoding.ban", "true", True, None),
        ("decoding.ban", "1", False, "true"),
        ("decoding.stop", "null", True, None),
        ("decoding.top_p", "1", False, "not known"),
        ("decoding", '{"ban":true,"max_new_tokens":64,"stop":null,"temperature":0.0}', True, None),
        ("model.digest.x", "m", False, "not known"),
    ],
)
def test_pinned_values(name: str, value: str, is_equal: bool, found: str | None) -> None:
    judged = judge({"require": {"equal": {name: value}}}, report(predictions={"manifest": MANIFEST}))
    assert judged["result"] == ("passed" if is_equal else "not comparable")
    assert judged["reasons"] == ([] if is_equal else [f"{name} is {found}, and the gate pins {value}"])


def test_without_a_manifest_what_is_pinned_there_is_not_known() -> None:
    assert judge({"require": {"equal": {"data": "d"}}}, report())["reasons"] == ["data is not known, and the gate pins d"]


def test_without_a_baseline_absolute_limits_decide_and_the_rest_is_said_to_be_skipped() -> None:
    settings = {
        "rules": [{"metric": "cer", "margin": 0.0, "max": 0.2, "min_n": 200}],
        "require": {"same": ["data", "normaliser"], "primary": "better"},
    }
    judged = judge(settings, report())
    assert judged["result"] == "passed"
    assert {check["rule"]: check["passed"] for check in judged["checks"]} == {
        "same data": None,
        "same normaliser": None,
        "cer better": None,
        "cer min_n": True,
        "cer max": True,
        "cer margin": None,
    }
    assert [check["text"] for check in judged["checks"] if check["passed"] is None][-1] == (
        "cer margin was not looked at, since there is no baseline"
    )
    settings["rules"][0]["max"] = 0.1
    assert judge(settings, report())["result"] == "regression"


def test_the_most_telling_of_several_results_stands_and_all_reasons_are_given() -> None:
    rules = [{"metric": "cer", "max": 0.1}, {"metric": "coverage", "min": 0.99}, {"metric": "cer", "margin": 0.0}]
    judged = judge({"rules": rules}, report(dict(NOT_COMPARABLE) | {"figures": {"cer": None}}))
    assert judged["result"] == "not comparable"
    assert [text.split()[0] for text in judged["reasons"]] == ["the", "coverage", "cer"]
    judged = judge({"rules": rules}, report({}))
    assert judged["result"] == "incomplete"
    assert [text.split()[0] for text in judged["reasons"]] == ["coverage", "cer", "cer:"]


def test_checks_hold_figures_limits_and_what_was_asked_for() -> None:
    rule = {"metric": "cer", "margin": 0.04, "max": 0.5}
    judged = judge({"rules": [rule]}, report({}))
    assert judged["checks"][1:] == [
        {
            "rule": "cer max",
            "passed": True,
            "value": 0.12,
            "limit": 0.5,
            "text": "cer 0.12 (95 % interval 0 to 1, 200 rows) is at most 0.5",
        },
        {
            "rule": "cer margin",
            "passed": True,
            "value": 0.02,
            "limit": 0.04,
            "text": "cer: a worsening of 0.02 (95 % interval 0.01 to 0.03, 190 pairs) lies wholly below the margin of 0.04",
        },
    ]
    assert judged["digest"] == "d"
    assert judged["settings"]["rules"] == [rule | {"test": "regression"}]
    assert json.dumps(judged, allow_nan=False)


# On predictions


@pytest.fixture
def evaluate(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> Callable[..., EvaluationSummary]:
    """Evaluate answers beside the baseline's, all to the reference `abcdefghij`, by a gate; two rows make a cluster."""

    def write(name: str, answers: list[str | None], manifest: Changes) -> str:
        rows = [make_prediction(n, answer, "abcdefghij", cluster_id=f"c{n // 2}") for n, answer in enumerate(answers)]
        folder = str(tmp_path / name)
        write_part(folder, "part-00000.parquet", rows)
        write_manifest(f"{folder}/manifest.json", manifest | {"content_digest": content_digest(folder)}, {})
        return folder

    def run(gate: str, ours: list[str | None], theirs: list[str | None] | None = None, **changes: Any) -> EvaluationSummary:
        (tmp_path / "gate.yaml").write_text(gate)
        manifest = {"data": {"digest": "d"}, "prompt": {"version": 2}, "decoding": {"temperature": 0.0}}
        predictions = write("ours", ours, manifest)
        baseline = None if theirs is None else write("theirs", theirs, manifest | changes)
        return evaluate_predictions(
            EvaluationConfig(
                predictions=predictions, baseline=baseline, gate=str(tmp_path / "gate.yaml"), output=str(tmp_path / "report")
            )
        )

    return run


Evaluate = Callable[..., EvaluationSummary]
RIGHT, OFF, WRONG = "abcdefghij", "abcdefghiX", "nothing of it"
MARGIN = "rules: [{metric: cer, margin: 0.01}]\nrequire: {same: [data, prompt, decoding]}"


def test_a_model_against_itself_passes(evaluate: Evaluate) -> None:
    answers = [RIGHT, OFF, WRONG, None] * 25
    for gate in (MARGIN, MARGIN.replace("margin: 0.01", "margin: 0"), MARGIN.replace("0.01", "0.01, test: non_inferiority")):
        summary = evaluate(gate, answers, answers)
        assert (summary.gate, summary.gate_reasons) == ("passed", ())


def test_a_small_loss_that_is_shown_passes_within_the_margin_and_a_large_one_does_not(evaluate: Evaluate) -> None:
    before = [RIGHT] * 200
    summary = evaluate(MARGIN, [OFF if n % 20 == 0 else RIGHT for n in range(200)], before)  # one character of 200
    assert (summary.verdict, summary.gate) == ("worse", "passed")
    summary = evaluate(MARGIN, [OFF if n % 4 == 0 else RIGHT for n in range(200)], before)  # one character of 40
    assert (summary.verdict, summary.gate) == ("worse", "regression")
    assert summary.gate_reasons[0].startswith("cer: a worsening of 0.025 (95 % interval 0.0")


def test_other_decoding_or_data_is_not_comparable(evaluate: Evaluate) -> None:
    summary = evaluate(MARGIN, [RIGHT] * 4, [RIGHT] * 4, decoding={"temperature": 0.2})
    assert (summary.verdict, summary.gate) == ("not comparable", "not comparable")
    summary = evaluate(MARGIN, [RIGHT] * 4, [RIGHT] * 4, data={"digest": "e"})
    assert (summary.verdict, summary.gate) == ("not distinguishable", "not comparable")
    assert summary.gate_reasons == ('data is not shown to be the baseline\'s: data.digest ("d" here, "e" in the baseline)',)


def test_three_of_a_hundred_failed_rows_are_incomplete(evaluate: Evaluate) -> None:
    summary = evaluate("rules: [{metric: coverage, min: 0.98}]", [RIGHT] * 97 + [None] * 3)
    assert (summary.gate, summary.gate_reasons) == (
        "incomplete",
        ("coverage 0.97 (100 rows) is below the least that is allowed, 0.98",),
    )


def test_a_gate_is_refused_before_predictions_are_read(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("rules: [{metric: rouge_l, min: 0.5}]")
    config = EvaluationConfig(
        predictions=str(tmp_path / "nowhere"), gate=str(tmp_path / "gate.yaml"), output=str(tmp_path / "report")
    )
    with pytest.raises(ConfigurationError, match=r"gate\.yaml: rule 1: the metric 'rouge_l' is not measured"):
        evaluate_predictions(config)
