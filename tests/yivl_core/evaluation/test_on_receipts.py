"""Figures of the lines of real receipts, with seeded damage for answers, beside those of jiwer, sacreBLEU and pandas."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pandas as pd
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from yivl_core.evaluation.configuration import EvaluationConfig
from yivl_core.evaluation.report import evaluate_predictions
from yivl_core.outputs.predictions import Prediction, write_part

_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .:/"
_EVERY_FAILED = 97


@pytest.fixture(scope="session")
def lines(shared_data: Path) -> pd.DataFrame:
    """Text and receipt of each line, and two answers to it: one like a good model's, one like a worse one's."""
    path = shared_data / "data" / "sroie_lines" / "val-00000-of-00001.parquet"
    if not path.is_file():
        pytest.skip(f"no lines of receipts at {path}; YIVL_TEST_DATA is to name the folder that holds data/sroie_lines")
    found = pd.read_parquet(path, columns=["text", "receipt_id", "sha256"])
    for name, seed, damage in (("good", 1, 0.03), ("worse", 2, 0.06)):
        chance = random.Random(seed)
        found[name] = [damaged(text, chance, damage) for text in found["text"]]
    found.loc[found.index % _EVERY_FAILED == 5, "good"] = None
    return found


def damaged(text: str, chance: random.Random, damage: float) -> str:
    """The text with some characters changed, left out, doubled, or in small letters, and now and then white space round it."""
    shown = []
    for character in text:
        kind = chance.random() / damage
        if kind < 1:
            shown.append(chance.choice(_SIGNS))
        elif kind < 2:
            shown.append(character * 2)
        elif kind >= 3:
            shown.append(character)
    answer = "".join(shown)
    answer = answer.lower() if chance.random() < 0.2 else answer
    return f"  {answer}\n" if chance.random() < 0.1 else answer


@pytest.fixture(scope="session")
def write_lines(tmp_path_factory: pytest.TempPathFactory, make_prediction: Callable[..., Prediction]) -> Callable[..., str]:
    def write(lines: pd.DataFrame, answers: str) -> str:
        output = tmp_path_factory.mktemp("lines")
        rows = [
            make_prediction(
                number,
                None if pd.isna(line[answers]) else line[answers],
                line["text"],
                cluster_id=line["receipt_id"],
                sample_id=f"line {number}",
            )
            for number, line in enumerate(lines.to_dict("records"))
        ]
        for start in range(0, len(rows), 500):
            write_part(str(output), f"part-{start // 500:05d}.parquet", rows[start : start + 500])
        return str(output)

    return write


@pytest.fixture(scope="session")
def report(lines: pd.DataFrame, write_lines: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("report")
    config = EvaluationConfig(
        predictions=write_lines(lines, "good"),
        baseline=write_lines(lines, "worse"),
        metrics=("ocr", "bleu4", "chrf"),
        output=str(output),
    )
    evaluate_predictions(config)
    found: dict[str, Any] = json.loads((output / "report.json").read_text("utf-8"))
    return found


def plain(texts: pd.Series) -> Any:
    """By pandas alone, what the main normaliser does."""
    return texts.fillna("").str.normalize("NFC").str.casefold().str.split().str.join(" ")


def character_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    as_written = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])  # jiwer's own transform strips both
    return float(jiwer.cer(list(references), list(answers), reference_transform=as_written, hypothesis_transform=as_written))


def test_figures_are_those_of_other_tools(lines: pd.DataFrame, report: dict[str, Any]) -> None:
    figures, compared = report["figures"], report["comparison"]["figures"]
    texts, right = lines["text"], plain(lines["text"])
    for answers, values in (
        ("good", {name: figure["value"] for name, figure in figures.items()}),
        ("worse", {name: figure["baseline"] for name, figure in compared.items()}),
    ):
        written, answered = lines[answers].fillna(""), plain(lines[answers])
        expected = {
            "cer": character_error_rate(right, answered),
            "cer_as_written": character_error_rate(texts, written),
            "cer_without_spaces": character_error_rate(right.str.replace(" ", ""), answered.str.replace(" ", "")),
            "wer": float(jiwer.wer(list(right), list(answered))),
            "bleu4": BLEU().corpus_score(list(written), [list(texts)]).score,
            "chrf": CHRF().corpus_score(list(written), [list(texts)]).score,
            "exact_match": float((right == answered).mean()),
            "exact_match_as_written": float((texts == lines[answers]).mean()),
            "failed": float(lines[answers].isna().mean()),
        }
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-12)
        assert 0.02 < expected["cer"] < 0.3, "the damage is of a size that a model's may have"


def test_answered_rows_alone_are_those_of_other_tools(lines: pd.DataFrame, report: dict[str, Any]) -> None:
    answered = lines.dropna(subset="good")
    right, good = plain(answered["text"]), plain(answered["good"])
    figures = report["figures"]
    assert len(answered) < len(lines)
    assert figures["cer"]["answered_rows"]["n"] == len(answered)
    assert figures["cer"]["answered_rows"]["value"] == pytest.approx(character_error_rate(right, good), rel=1e-12)
    assert figures["exact_match"]["answered_rows"]["value"] == pytest.approx(float((right == good).mean()), rel=1e-12)


def test_receipts_are_what_is_resampled(lines: pd.DataFrame, report: dict[str, Any]) -> None:
    """Beside E. Miller's clustered standard error (arXiv 2411.00640), by pandas; the bootstrap's differs a little."""
    num_receipts, figures = lines["receipt_id"].nunique(), report["figures"]
    assert report["rows"]["clusters"] == figures["cer"]["num_clusters"] == num_receipts
    assert figures["cer"]["interval"]["method"] == figures["exact_match"]["interval"]["method"] == "cluster bootstrap"
    is_right = (plain(lines["text"]) == plain(lines["good"])).astype(float)
    by_receipt = (is_right - is_right.mean()).groupby(lines["receipt_id"]).sum()
    error = float(np.sqrt((by_receipt**2).sum() * num_receipts / (num_receipts - 1)) / len(lines))
    assert figures["exact_match"]["standard_error"] == pytest.approx(error, rel=0.1)


def test_the_comparison_counts_rows_as_pandas_does(lines: pd.DataFrame, report: dict[str, Any]) -> None:
    now, before = (plain(lines[name]) == plain(lines["text"]) for name in ("good", "worse"))
    compared = report["comparison"]
    assert compared["groups"] == {
        "mended": int((now & ~before).sum()),
        "lost": int((~now & before).sum()),
        "stayed wrong": int((~now & ~before).sum()),
        "stayed right": int((now & before).sum()),
    }
    assert compared["verdict"] == "better"
    assert compared["figures"]["exact_match"]["n"] == len(lines)


def test_slices_are_those_of_pandas(lines: pd.DataFrame, report: dict[str, Any]) -> None:
    right = plain(lines["text"])
    labels = ["0", "1 to 4", "5 to 9", "10 to 19", "20 to 49", "50 to 199", "200 and more"]
    names = pd.cut(right.str.len(), [-1, 0, 4, 9, 19, 49, 199, 10**6], labels=labels)
    is_right = right == plain(lines["good"])
    expected = is_right.groupby(names.astype(str)).agg(["size", "mean"])
    (length,) = [part for part in report["slices"] if part["name"] == "length"]
    assert {value["value"]: value["num_rows"] for value in length["values"]} == expected["size"].to_dict()
    found = {value["value"]: value["figures"]["exact_match"]["value"] for value in length["values"]}
    assert found == pytest.approx(expected["mean"].to_dict(), rel=1e-12)
