import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.images import ImageStore
from yivl_core.data.inputs import InputSource, open_input
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import DatasetError, IncompleteError, OutputError
from yivl_core.evaluation import report_files, scoring
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.evaluation.metrics.names import NAMES
from yivl_core.evaluation.report import evaluate_predictions
from yivl_core.outputs.manifest import write_manifest
from yivl_core.outputs.predictions import Prediction, content_digest, write_part
from yivl_core.outputs.shards import plan_shards, publish_shard
from yivl_core.progress import Progress
from yivl_core.storage import list_files, publish_bytes, read_bytes

Make = Callable[..., Prediction]
Write = Callable[..., str]
Evaluate = Callable[..., Any]

FILES = ["report.html", "report.json", "report.md"]
ROWS: list[tuple[Any, ...]] = [
    ("TOTAL 12.30", "total 12.30"),
    ("tota1", "Total"),
    ("", "abc"),
    (None, "fourteen chars"),
    ("what nobody asked for", None),
    (" x ", "x"),
]


# Figures


def test_figures_counts_and_summary_of_a_mixed_run(write_rows: Write, evaluate: Evaluate) -> None:
    summary, report, _ = evaluate(write_rows(ROWS))
    characters, edits = 11 + 5 + 3 + 14 + 1, 0 + 1 + 3 + 14 + 0
    figures = report["figures"]
    assert summary == EvaluationSummary(
        output=summary.output,
        num_samples=5,
        num_failed=1,
        num_empty=1,
        num_cut=0,
        cer=edits / characters,
        exact_match=2 / 5,
        primary="cer",
        value=edits / characters,
        low=figures["cer"]["interval"]["low"],
        high=figures["cer"]["interval"]["high"],
    )
    assert report["rows"] == {
        "total": 6,
        "without_reference": 1,
        "compared": 5,
        "answered": 4,
        "failed": 1,
        "empty": 1,
        "cut": 0,
        "looping": 0,
        "refused": 0,
        "coverage": 0.8,
        "clusters": 5,
    }
    assert figures["cer"]["value"] == edits / characters
    assert figures["cer"]["sums"] == {"rows": 5, "characters": 34, "insertions": 0, "deletions": 17, "substitutions": 1}
    assert figures["cer"]["answered_rows"]["value"] == 4 / 20
    assert figures["exact_match"]["answered_rows"]["value"] == 0.5
    written = figures["cer_as_written"]["sums"]
    assert written["insertions"] + written["deletions"] + written["substitutions"] == edits + 5 + 1 + 2
    assert figures["exact_match_as_written"]["value"] == 0
    assert report["failures"] == {"truncated": {"num_rows": 1, "first": {"source": "rows.jsonl:4", "error": "a.png is cut off"}}}
    assert (report["gate"], report["comparison"], report["num_samples_left_out"]) == (None, None, 0)
    assert [sample["sample_id"] for sample in report["samples"]] == ["id-0", "id-1", "id-2", "id-3", "id-5"]


def test_all_references_of_a_record_are_right(write_rows: Write, evaluate: Evaluate) -> None:
    assert evaluate(write_rows([("12,30", "12.30")], references=("12,30",))).summary.cer == 0
    summary, report, _ = evaluate(write_rows([("b", None)], name="other", references=("a", "b")))
    assert (summary.num_samples, summary.exact_match) == (1, 1.0)
    assert report["samples"][0]["references"] == ["a", "b"]


def test_failed_rows_alone_are_all_wrong(write_rows: Write, evaluate: Evaluate) -> None:
    summary, report, _ = evaluate(write_rows([(None, "abc"), (None, "")]))
    assert (summary.cer, summary.exact_match, summary.num_failed) == (1.0, 0.0, 2)
    assert report["figures"]["cer"]["answered_rows"] == {
        "value": None,
        "n": 0,
        "interval": {"low": None, "high": None, "method": "none, no rows"},
    }


def test_references_without_a_character_have_no_error_rate(write_rows: Write, evaluate: Evaluate) -> None:
    summary, report, _ = evaluate(write_rows([("a", ""), ("", " \n")]), baseline=write_rows([("a", ""), ("b", " \n")], name="b"))
    assert (summary.cer, summary.value, summary.exact_match) == (None, None, 0.5)
    assert (summary.difference, summary.verdict) == (None, "not comparable")
    assert report["figures"]["cer"]["interval"]["method"] == "none, not defined"
    assert report["comparison"]["figures"]["cer"]["interval"]["method"] == "none, not defined"


def test_the_main_metric_is_the_first_or_the_one_that_was_named(write_rows: Write, evaluate: Evaluate) -> None:
    predictions = write_rows(ROWS)
    for asked, primary, name in (
        (("vqa",), None, "exact_match"),
        (("vqa",), "anls", "anls"),
        (("wer", "ocr"), None, "wer"),
        (("ocr",), "failed", "failed"),
    ):
        summary, report, _ = evaluate(predictions, metrics=asked, primary=primary)
        assert (summary.primary, report["scoring"]["primary"]) == (name, name)
        assert summary.value == report["figures"][name]["value"]


def test_the_main_figure_stands_beside_itself_where_an_extractor_took_part(write_rows: Write, evaluate: Evaluate) -> None:
    predictions = write_rows([("The text is: abc", "abc"), ("abc", "abc")])
    summary, report, _ = evaluate(predictions, extractor="unwrapped")
    assert (summary.cer, summary.exact_match) == (0.0, 1.0)
    assert report["figures"]["cer_verbatim"]["value"] == 13 / 6
    assert report["scoring"]["metrics"][-1] == "cer_verbatim"
    assert [sample["answer"] for sample in report["samples"]] == ["abc", "abc"]
    assert "cer_verbatim" not in evaluate(predictions).report["figures"]


# Numbers of the caption group are those of other tools in the tests of each metric; here all of them go through a whole report.

CAPTIONS: list[tuple[Any, ...]] = [
    (
        answer,
        first,
        {
            "references": tuple(f"{first} {word}" for word in ("today", "again", "now", "here")),
            "cluster_id": f"photo-{number // 2}",
        },
    )
    for number, (answer, first) in enumerate(
        [
            ("a dog runs in the park", "a brown dog runs through a park"),
            ("two people", "two people sit on a bench"),
            ("A red bus.", "a red bus stands at the corner of a street"),
            (None, "a cat sleeps on the sofa"),
            ("12.50", "12.50"),
            ("", "an empty street"),
            ('{"total": "1"}', '{"total": "1.00", "date": "2"}'),
            ("一只狗在跑", "一只棕色的狗在公园里跑"),
        ]
        * 5
    )
]


def test_every_metric_goes_through_a_report(write_rows: Write, evaluate: Evaluate) -> None:
    predictions = write_rows(CAPTIONS, num_parts=3)
    summary, report, page = evaluate(predictions, metrics=NAMES, baseline=predictions, slice_by=("shop",))
    assert set(report["figures"]) == set(NAMES)
    for name, figure in report["figures"].items():
        assert figure["n"] == figure["sums"]["rows"], name
        if name == "vqa_accuracy":  # of ten answers, and these rows have five
            assert (figure["n"], figure["value"]) == (0, None)
            continue
        low, high = figure["interval"]["low"], figure["interval"]["high"]
        assert figure["n"] > 0, name
        assert low is not None or figure["interval"]["method"].startswith("none"), name
        assert low is None or low <= figure["value"] <= high, name
        compared = report["comparison"]["figures"][name]
        assert (compared["difference"], compared["p_value"], compared["verdict"]) == (0, 1, "not distinguishable"), name
    assert report["figures"]["bleu4"]["value"] > 1
    assert report["figures"]["cider_d"]["value"] > 0.1
    assert summary.verdict == "not distinguishable"
    assert all(f"| `{name}` | " in page for name in NAMES)
    assert list_files(summary.output) == ["document_frequencies.parquet", *FILES]


# What goes in


@pytest.mark.parametrize("metrics", [("ocr",), ("caption",)])
def test_nothing_to_score_is_an_error_that_says_what_to_do(
    write_rows: Write, evaluate: Evaluate, metrics: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(
        DatasetError, match="none of the 2 rows has a reference to compare its answer with; give the records a `resp"
    ):
        evaluate(write_rows([("a", None), (None, None)]), metrics=metrics)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("metrics", [("ocr",), ("caption",)])
def test_folder_without_predictions_is_refused(tmp_path: Path, evaluate: Evaluate, metrics: tuple[str, ...]) -> None:
    with pytest.raises(OutputError, match=r"holds no predictions/part-\*\.parquet"):
        evaluate(str(tmp_path / "nowhere"), metrics=metrics)


def make_planned(output: Path, make_prediction: Make, num_shards_done: int) -> str:
    dataset = output.with_suffix(".jsonl")
    dataset.write_text("".join(json.dumps({"query": "q", "id": f"id-{n}"}) + "\n" for n in range(5)))
    source = open_input(InputSource(dataset=str(dataset)))
    plan = plan_shards(str(output), source=source, store=ImageStore(), shard_size=2, fingerprint={"data": {}})
    for shard in plan.shards[:num_shards_done]:
        publish_shard(plan, shard, [make_prediction(n, "a", "a") for n in shard.records])
    return str(output)


def test_unfinished_predictions_are_refused(tmp_path: Path, make_prediction: Make, write_rows: Write, evaluate: Evaluate) -> None:
    whole = make_planned(tmp_path / "run", make_prediction, 3)
    for num_shards_done in (0, 2):
        predictions = make_planned(tmp_path / f"run {num_shards_done}", make_prediction, num_shards_done)
        for asked in ({"predictions": predictions}, {"predictions": whole, "baseline": predictions}):
            with pytest.raises(
                IncompleteError, match=rf"run {num_shards_done}.*{3 - num_shards_done} of 3 parts are missing, .* and --resume"
            ):
                evaluate(**asked)
    assert evaluate(whole, baseline=whole).summary.num_samples == 5


def test_rows_lost_from_a_part_are_noticed(tmp_path: Path, make_prediction: Make, write_rows: Write, evaluate: Evaluate) -> None:
    predictions = make_planned(tmp_path / "run", make_prediction, 3)
    write_part(predictions, "part-00001.parquet", [make_prediction(2, "a", "a")])
    for asked in ({"predictions": predictions}, {"predictions": write_rows(ROWS), "baseline": predictions}):
        with pytest.raises(OutputError, match=r"holds 4 rows, and its plan\.json says 5"):
            evaluate(**asked)


@pytest.mark.parametrize("alone_parts", [1, 40])
def test_rows_that_their_manifest_does_not_describe_are_refused(
    write_rows: Write, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, alone_parts: int
) -> None:
    monkeypatch.setattr(scoring, "ALONE_PARTS", alone_parts)
    predictions, others = write_rows(ROWS, num_parts=2), write_rows(ROWS, name="others")
    write_manifest(predictions + "/manifest.json", {"content_digest": "0" * 64}, {})
    for asked in ({"predictions": predictions}, {"predictions": others, "baseline": predictions}):
        with pytest.raises(OutputError, match=r"the rows were changed after they were written: .* manifest\.json says 0000"):
            evaluate(**asked)


def test_parts_of_other_runs_are_refused(write_rows: Write, evaluate: Evaluate, make_prediction: Make) -> None:
    predictions = write_rows(ROWS)
    write_part(predictions, "part-00001.parquet", [make_prediction(3, "a", "a", sample_id="another")])
    with pytest.raises(OutputError, match="record 3 comes after record 5, so parts of different runs are mixed"):
        evaluate(predictions)


def test_origin_comes_from_the_manifest_without_its_times_and_places(write_rows: Write, evaluate: Evaluate) -> None:
    predictions = write_rows(ROWS)
    content = {"model": {"digest": "m" * 64}, "adapter": None, "content_digest": content_digest(predictions), "paths": {}}
    found = []
    for began in ("2026-01-01", "2026-02-02"):
        write_manifest(predictions + "/manifest.json", content, {"began": began})
        found.append(evaluate(predictions, baseline=predictions))
        report = found[-1].report
        assert report["predictions"] == report["comparison"]["baseline"]
        assert report["predictions"]["manifest"].keys() == {"model", "adapter", "content_digest", "digest"}
        assert report["predictions"]["content_digest"] == content["content_digest"]
    assert found[0] == found[1]


# What comes out


def test_an_earlier_report_is_replaced(write_rows: Write, evaluate: Evaluate) -> None:
    assert evaluate(write_rows([("a", "b")])).report["format"] == "yivl evaluation report"
    summary, report, page = evaluate(write_rows([("a", "a")], name="better"))
    assert summary.cer == report["figures"]["cer"]["value"] == 0
    assert "By CER no answered row is wrong." in page
    assert list_files(summary.output) == FILES


def test_a_report_of_version_1_is_replaced(write_rows: Write, evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.json").write_text('{"format": "yivl evaluation report", "version": 1}')
    assert evaluate(write_rows(ROWS)).report["version"] == 2


NOT_A_REPORT = r"report/report\.json is no evaluation report, and would be overwritten; choose another folder"
UNREADABLE = (
    r"report/report\.json cannot be read as JSON, so nobody can tell whose it is; "
    r"if it is a damaged evaluation report, remove it and report\.md, or choose another folder"
)
ALONE = r"stands without the report\.json of an evaluation, and would be .*; remove it, or choose another"


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
        ("report.md", b"# Minutes", rf"report/report\.md {ALONE}"),
        ("report.html", b"<p>Minutes", rf"report/report\.html {ALONE}"),
        ("document_frequencies.parquet", b"PAR1", rf"report/document_frequencies\.parquet {ALONE}"),
    ],
)
def test_what_is_no_evaluation_report_is_never_overwritten(
    write_rows: Write, tmp_path: Path, name: str, content: bytes, message: str
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
        assert list_files(other.output) == FILES


def test_a_validated_dataset_is_never_overwritten(write_rows: Write, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "response": "b"}\n')
    folder = tmp_path / "validated"
    validate_dataset(ValidationConfig(dataset=(str(tmp_path / "rows.jsonl"),), output=str(folder)))
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match=r"report\.json is no evaluation report"):
        evaluate_predictions(EvaluationConfig(predictions=write_rows(ROWS), output=str(folder)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def test_a_file_in_place_of_the_folder_is_refused_before_reading(tmp_path: Path, evaluate: Evaluate) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(OutputError, match=r"report: this is a file; name a folder for the report"):
        evaluate(str(tmp_path / "not looked at"))


@pytest.mark.parametrize("num_published", [0, 1, 2, 3])
def test_a_report_that_was_published_in_part_is_completed(
    write_rows: Write, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_published: int
) -> None:
    predictions = write_rows(CAPTIONS)
    with monkeypatch.context() as patch:
        publish = publish_and_die(publish_bytes, num_published)
        patch.setattr(report_files, "publish_bytes", publish)
        patch.setattr("yivl_core.evaluation.metrics.document_frequencies.publish_bytes", publish)
        with pytest.raises(KeyboardInterrupt):
            evaluate(predictions, metrics=("caption",))
    there = list_files(str(tmp_path / "report"))
    assert len(there) == num_published
    assert not there or "report.json" in there, "what stands beside the others tells whose they are"
    evaluate(predictions, metrics=("caption",))
    assert list_files(str(tmp_path / "report")) == ["document_frequencies.parquet", *FILES]


def publish_and_die(publish: Callable[[str, bytes], None], num_published: int) -> Callable[[str, bytes], None]:
    published: list[str] = []

    def publish_or_die(url: str, data: bytes) -> None:
        if len(published) == num_published:
            raise KeyboardInterrupt
        published.append(url)
        publish(url, data)

    return publish_or_die


def test_markup_in_an_answer_is_kept_as_it_is(write_rows: Write, evaluate: Evaluate) -> None:
    attack = "</script><script>alert(1)</script> | [x](javascript:alert(1))"
    summary, report, page = evaluate(write_rows([(attack, attack + "!")]))
    assert report["samples"][0]["response"] == attack
    for text in (page, (Path(summary.output) / "report.html").read_text("utf-8")):
        assert "<script>alert" not in text
        assert "[x](javascript" not in page


def test_report_has_the_same_bytes_whatever_the_place_time_zone_locale_and_hash_seed(write_rows: Write, tmp_path: Path) -> None:
    script = (
        "import sys, time, locale; time.tzset(); locale.setlocale(locale.LC_ALL, ''); "
        "from yivl_core.evaluation.report import evaluate_predictions; "
        "from yivl_core.evaluation.configuration import EvaluationConfig; "
        "evaluate_predictions(EvaluationConfig(predictions=sys.argv[1], baseline=sys.argv[2], output=sys.argv[3], "
        "metrics=('ocr', 'caption'), slice_by=('shop',)))"
    )
    rows = [
        (*row[:2], {"meta": json.dumps({"shop": f"shop {number % 3}"}), "cluster_id": f"r{number % 7}"})
        for number, row in enumerate([*ROWS, ("naïve ⏎ 中文", "naive 中文"), (None, "z"), *CAPTIONS])
    ]
    contents = []
    for number, variables in enumerate(
        (
            {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"},
            {"TZ": "America/New_York", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"},
        )
    ):
        predictions = write_rows(rows, name=f"run {number}", num_parts=number + 1)
        baseline = write_rows([(row[1], *row[1:]) for row in rows], name=f"other run {number}")
        output = tmp_path / f"report {number}"
        subprocess.run(
            [sys.executable, "-c", script, predictions, baseline, str(output)],
            check=True,
            env=os.environ | variables,
            cwd=tmp_path,
        )
        contents.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert sorted(contents[0]) == ["document_frequencies.parquet", *FILES]
    assert contents[0] == contents[1]


def test_several_processes_give_the_same_report(
    write_rows: Write, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    predictions, baseline = write_rows(CAPTIONS, num_parts=5), write_rows(CAPTIONS[::-1], name="other", num_parts=3)
    asked = {"baseline": baseline, "metrics": ("caption", "ocr"), "extractor": "first-line", "allow_difference": ("data",)}
    alone = evaluate(predictions, **asked)
    monkeypatch.setattr(scoring, "ALONE_PARTS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    helped = evaluate(predictions, **asked)
    assert (helped.report, helped.markdown) == (alone.report, alone.markdown)


def test_progress_names_the_rows_and_their_side(tmp_path: Path, make_prediction: Make, evaluate: Evaluate) -> None:
    for name in ("run", "other"):
        write_part(str(tmp_path / name), "part-00000.parquet", [make_prediction(n, "a", "a") for n in range(1000)])
    seen: list[Progress] = []
    evaluate(str(tmp_path / "run"), seen.append, baseline=str(tmp_path / "other"))
    assert [(event.stage, event.done, event.total, event.unit) for event in seen] == [
        ("baseline", 1000, None, "row"),
        ("evaluate", 1000, None, "row"),
    ]


# Laws

texts = st.text(alphabet="aB é.1中", max_size=6)
answered = st.lists(st.tuples(st.none() | texts, texts, st.sampled_from([None, "r1", "r2"])), min_size=1, max_size=8)


@settings(max_examples=20)
@given(data=st.data(), rows=answered)
def test_the_order_of_rows_decides_nothing(
    data: st.DataObject,
    rows: list[tuple[str | None, str, str | None]],
    tmp_path_factory: pytest.TempPathFactory,
    make_prediction: Make,
) -> None:
    folder, figures = tmp_path_factory.mktemp("order"), []
    for name, order in (("one", range(len(rows))), ("other", data.draw(st.permutations(range(len(rows)))))):
        predictions = [
            make_prediction(index, *rows[number][:2], cluster_id=rows[number][2], sample_id=f"row {number}")
            for index, number in enumerate(order)
        ]
        write_part(str(folder / name), "part-00000.parquet", predictions)
        output = folder / f"report of {name}"
        evaluate_predictions(
            EvaluationConfig(predictions=str(folder / name), output=str(output), metrics=("ocr", "caption"), num_resamples=100)
        )
        report = json.loads((output / "report.json").read_text("utf-8"))
        figures.append([report[key] for key in ("figures", "slices", "histogram", "rows", "scoring")])
    assert figures[0] == figures[1]
