import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.images import ImageStore
from yivl_core.data.inputs import InputSource, open_input
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import DatasetError, IncompleteError, OutputError
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.evaluation.report import evaluate_predictions
from yivl_core.outputs.manifest import write_manifest
from yivl_core.outputs.predictions import Prediction, content_digest, write_part
from yivl_core.outputs.shards import plan_shards, publish_shard
from yivl_core.progress import Progress
from yivl_core.storage import list_files, publish_bytes, read_bytes

MakePrediction = Callable[..., Prediction]
Rows = Sequence[tuple[str | None, str | None]]


@pytest.fixture
def write_rows(tmp_path: Path, make_prediction: MakePrediction) -> Callable[..., str]:
    def write(rows: Rows, name: str = "predictions of a run", **changes: Any) -> str:
        output = str(tmp_path / name)
        predictions = [make_prediction(index, *row, **changes) for index, row in enumerate(rows)]
        write_part(output, "part-00000.parquet", predictions)
        return output

    return write


def evaluate(predictions: str, **keywords: Any) -> tuple[EvaluationSummary, dict[str, Any], str]:
    output = Path(predictions).with_name("report")
    summary = evaluate_predictions(EvaluationConfig(predictions=predictions, output=str(output)), **keywords)
    return summary, json.loads((output / "report.json").read_text("utf-8")), (output / "report.md").read_text("utf-8")


ROWS: Rows = [
    ("TOTAL 12.30", "total 12.30"),
    ("tota1", "Total"),
    ("", "abc"),
    (None, "fourteen chars"),
    ("what nobody asked for", None),
    (" x ", "x"),
]


def test_figures_counts_and_summary_of_a_mixed_run(write_rows: Callable[..., str]) -> None:
    summary, report, page = evaluate(write_rows(ROWS))
    characters, edits = 11 + 5 + 3 + 14 + 1, 0 + 1 + 3 + 14 + 0
    assert summary == EvaluationSummary(
        output=summary.output, num_samples=5, num_failed=1, num_empty=1, num_cut=0, cer=edits / characters, exact_match=2 / 5
    )
    assert report["rows"] == {
        "total": 6,
        "without_reference": 1,
        "compared": 5,
        "answered": 4,
        "failed": 1,
        "empty": 1,
        "cut": 0,
        "coverage": 0.8,
    }
    figures = report["figures"]
    assert figures["all_rows"]["normalised"]["cer"] == {
        "value": edits / characters,
        "edits": edits,
        "insertions": 0,
        "deletions": 17,
        "substitutions": 1,
        "reference_characters": characters,
    }
    assert figures["answered_rows"]["normalised"]["cer"]["value"] == 4 / 20
    assert figures["answered_rows"]["normalised"]["exact_match"] == {"value": 0.5, "num_exact": 2}
    assert figures["all_rows"]["as_written"]["cer"]["edits"] == edits + 5 + 1 + 2
    assert figures["all_rows"]["as_written"]["exact_match"]["num_exact"] == 0
    assert "| **character error rate (CER)** | 52.94 % | 20.00 % | 76.47 % | 60.00 % |" in page
    assert "| answered (coverage) | 4 (80.00 %) |" in page
    assert "| truncated | 1 | a.png is cut off |" in page


def test_cut_rows_are_counted_and_marked(write_rows: Callable[..., str]) -> None:
    summary, _, page = evaluate(write_rows([("a" * 30, "a")], finish_reason="length"))
    assert (summary.num_cut, summary.cer) == (1, 29.0)
    assert f"| 29 | a | {'a' * 30} | rows.jsonl:1 | cut |" in page
    assert "None of the answers equals a reference." in page


def test_all_references_of_a_record_are_right(write_rows: Callable[..., str]) -> None:
    assert evaluate(write_rows([("12,30", "12.30")], references=("12,30",)))[0].cer == 0
    summary, _, page = evaluate(write_rows([("b", None)], name="other", references=("a", "b")))
    assert (summary.num_samples, summary.exact_match) == (1, 1.0)
    assert "| a *or* b | b | rows.jsonl:1 |" in page
    assert "Every answer equals a reference." in page


def test_failed_rows_alone_are_all_wrong(write_rows: Callable[..., str]) -> None:
    summary, report, page = evaluate(write_rows([(None, "abc"), (None, "")]))
    assert (summary.cer, summary.exact_match, summary.num_failed) == (1.0, 0.0, 2)
    assert report["figures"]["answered_rows"]["normalised"]["cer"]["value"] is None
    assert "| **exact match** | 0.00 % | - | 0.00 % | - |" in page


def test_worst_answers_are_those_with_most_edits_and_right_ones_the_first(write_rows: Callable[..., str]) -> None:
    wrong = [("x" * length, "y") for length in (3, 14, 1, 15, 9, 2, 6, 5, 4, 7, 8, 6)]
    right = [(str(number), str(number)) for number in range(8)]
    _, report, _ = evaluate(write_rows([*right, *wrong]))
    assert [(row["edits"], row["sample_id"]) for row in report["worst"]] == [
        (15, "id-11"),
        (14, "id-9"),
        (9, "id-12"),
        (8, "id-18"),
        (7, "id-17"),
        (6, "id-14"),
        (6, "id-19"),
        (5, "id-15"),
        (4, "id-16"),
        (3, "id-8"),
    ]
    assert [row["response"] for row in report["right"]] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("a", None), (None, None)],
            "none of the 2 rows has a reference to compare its answer with; give the records a `response`",
        ),
        ([("a", ""), ("b", " \n")], "the references of all 2 rows are empty, so there is no character to compare with; check"),
    ],
)
def test_nothing_to_score_is_an_error_that_says_what_to_do(write_rows: Callable[..., str], rows: Rows, message: str) -> None:
    predictions = write_rows(rows)
    with pytest.raises(DatasetError, match=message):
        evaluate(predictions)
    assert not Path(predictions).with_name("report").exists()


def test_folder_without_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds no predictions/part-\*\.parquet"):
        evaluate(str(tmp_path / "nowhere"))


def make_planned(output: Path, make_prediction: MakePrediction, num_shards_done: int) -> str:
    dataset = output.with_suffix(".jsonl")
    dataset.write_text("".join(json.dumps({"query": "q", "id": f"id-{n}"}) + "\n" for n in range(5)))
    source = open_input(InputSource(dataset=str(dataset)))
    plan = plan_shards(str(output), source=source, store=ImageStore(), shard_size=2, fingerprint={"data": {}})
    for shard in plan.shards[:num_shards_done]:
        publish_shard(plan, shard, [make_prediction(n, "a", "a") for n in shard.records])
    return str(output)


def test_an_earlier_report_is_replaced(write_rows: Callable[..., str]) -> None:
    assert evaluate(write_rows([("a", "b")]))[1]["format"] == "yivl evaluation report"
    summary, report, page = evaluate(write_rows([("a", "a")], name="better"))
    assert summary.cer == report["figures"]["all_rows"]["normalised"]["cer"]["value"] == 0
    assert "Every answer equals a reference." in page


NOT_A_REPORT = r"report/report\.json is no evaluation report, and would be overwritten; choose another folder"
UNREADABLE = (
    r"report/report\.json cannot be read as JSON, so nobody can tell whose it is; "
    r"if it is a damaged evaluation report, remove it and report\.md, or choose another folder"
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("report.json", b'{"format": "yivl validated dataset", "version": 1}', NOT_A_REPORT),
        ("report.json", b'{"version": 1}', NOT_A_REPORT),
        ("report.json", b'["yivl evaluation report"]', NOT_A_REPORT),
        ("report.json", b'{"format": "yivl evaluation report", "ver', UNREADABLE),
        ("report.json", b"", UNREADABLE),
        ("report.json", b"\xff\xfe{}", UNREADABLE),
        ("report.json", b"[" * 100_000, UNREADABLE),
        (
            "report.md",
            b"# Minutes",
            r"report/report\.md stands without the report\.json of an evaluation, and would be .*; remove it, or choose another",
        ),
    ],
)
def test_what_is_no_evaluation_report_is_never_overwritten(
    write_rows: Callable[..., str], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder, url = tmp_path / "report", f"memory://{uuid.uuid4().hex}/report"
    folder.mkdir()
    (folder / name).write_bytes(content)
    publish_bytes(f"{url}/{name}", content)
    for output in (str(folder), url):
        with pytest.raises(OutputError, match=message):
            evaluate_predictions(EvaluationConfig(predictions=str(tmp_path / "not looked at"), output=output))
        assert (list_files(output), read_bytes(f"{output}/{name}")) == ([name], content)
        other = evaluate_predictions(EvaluationConfig(predictions=write_rows(ROWS), output=f"{output}/other"))
        assert list_files(other.output) == ["report.json", "report.md"]


def test_a_validated_dataset_is_never_overwritten(write_rows: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "response": "b"}\n')
    folder = tmp_path / "validated"
    validate_dataset(ValidationConfig(dataset=(str(tmp_path / "rows.jsonl"),), output=str(folder)))
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match=r"report\.json is no evaluation report"):
        evaluate_predictions(EvaluationConfig(predictions=write_rows(ROWS), output=str(folder)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def test_a_file_in_place_of_the_folder_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(OutputError, match=r"report: this is a file; name a folder for the report"):
        evaluate(str(tmp_path / "not looked at"))


def test_a_report_that_was_published_by_half_is_completed(
    write_rows: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = write_rows(ROWS)
    with monkeypatch.context() as patch:
        patch.setattr("yivl_core.evaluation.report.publish_bytes", publish_once(publish_bytes))
        with pytest.raises(KeyboardInterrupt):
            evaluate(predictions)
    assert len(list((tmp_path / "report").iterdir())) == 1
    evaluate(predictions)
    assert len(list((tmp_path / "report").iterdir())) == 2


def publish_once(publish: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
    published: list[str] = []

    def publish_or_die(url: str, data: bytes) -> None:
        if published:
            raise KeyboardInterrupt
        published.append(url)
        publish(url, data)

    return publish_or_die


def test_unfinished_predictions_are_refused(tmp_path: Path, make_prediction: MakePrediction) -> None:
    for num_shards_done in (0, 2):
        predictions = make_planned(tmp_path / f"run {num_shards_done}", make_prediction, num_shards_done)
        with pytest.raises(IncompleteError, match=f"{3 - num_shards_done} of 3 parts are missing, .* and --resume"):
            evaluate(predictions)
    assert evaluate(make_planned(tmp_path / "run", make_prediction, 3))[0].num_samples == 5


def test_rows_lost_from_a_part_are_noticed(tmp_path: Path, make_prediction: MakePrediction) -> None:
    predictions = make_planned(tmp_path / "run", make_prediction, 3)
    write_part(predictions, "part-00001.parquet", [make_prediction(2, "a", "a")])
    with pytest.raises(OutputError, match=r"holds 4 rows, and its plan\.json says 5"):
        evaluate(predictions)


def test_origin_comes_from_the_manifest_without_its_times(write_rows: Callable[..., str]) -> None:
    predictions = write_rows(ROWS)
    content = {
        "model": {"digest": "m" * 64},
        "adapter": None,
        "data": {"digest": "d" * 64},
        "decoding": {"temperature": 0.0, "max_new_tokens": 64},
        "content_digest": content_digest(predictions),
    }
    reports = []
    for began in ("2026-01-01", "2026-02-02"):
        write_manifest(predictions + "/manifest.json", content, {"began": began})
        _, report, page = evaluate(predictions)
        reports.append(page)
        assert report["predictions"]["manifest"].keys() == {*content, "digest"}
        assert report["predictions"]["content_digest"] == content["content_digest"]
    assert reports[0] == reports[1]
    for line in (
        f"| `model.digest` | {'m' * 64} |",
        "| `adapter` | none |",
        f"| `data.digest` | {'d' * 64} |",
        "| `decoding.max_new_tokens` | 64 |",
        f"| content of the predictions | `{content['content_digest']}` |",
    ):
        assert line in reports[0]


def test_rows_that_their_manifest_does_not_describe_are_refused(write_rows: Callable[..., str]) -> None:
    predictions = write_rows(ROWS)
    write_manifest(predictions + "/manifest.json", {"content_digest": "0" * 64}, {})
    with pytest.raises(OutputError, match=r"the rows were changed after they were written: .* manifest\.json says 0000"):
        evaluate(predictions)


def test_markup_in_an_answer_stays_text(write_rows: Callable[..., str]) -> None:
    attack = "</script><script>alert(1)</script> | [x](javascript:alert(1))"
    _, report, page = evaluate(write_rows([(attack, attack + "!")]))
    assert report["worst"][0]["response"] == attack
    assert "<script" not in page
    assert "[x](" not in page


def test_report_has_the_same_bytes_whatever_the_place_time_zone_locale_and_hash_seed(
    write_rows: Callable[..., str], tmp_path: Path
) -> None:
    script = (
        "import sys, time, locale; time.tzset(); locale.setlocale(locale.LC_ALL, ''); "
        "from yivl_core.evaluation.report import evaluate_predictions; "
        "from yivl_core.evaluation.configuration import EvaluationConfig; "
        "evaluate_predictions(EvaluationConfig(predictions=sys.argv[1], output=sys.argv[2]))"
    )
    rows = [*ROWS, ("naïve ⏎ 中文", "naive 中文"), (None, "z")]
    contents = []
    for number, settings in enumerate(
        (
            {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "1"},
            {"TZ": "America/New_York", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2", "PYTHONUTF8": "0"},
        )
    ):
        predictions = write_rows(rows, name=f"run {number}")
        output = tmp_path / f"report {number}"
        subprocess.run(
            [sys.executable, "-c", script, predictions, str(output)], check=True, env=os.environ | settings, cwd=tmp_path
        )
        contents.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert contents[0].keys() == {"report.json", "report.md"}
    assert contents[0] == contents[1]


def test_progress_names_the_rows_of_the_plan(tmp_path: Path, make_prediction: MakePrediction) -> None:
    predictions = [make_prediction(n, "a", "a") for n in range(1000)]
    write_part(str(tmp_path / "run"), "part-00000.parquet", predictions)
    seen: list[Progress] = []
    evaluate(str(tmp_path / "run"), on_progress=seen.append)
    assert [(event.stage, event.done, event.total, event.unit) for event in seen] == [("evaluate", 1000, None, "row")]
