import base64
import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import ConfigurationError, DatasetError, IncompleteError
from yivl_core.evaluation.benchmarks.configuration import VLMEvalKitConfig, VLMEvalKitSummary
from yivl_core.evaluation.benchmarks.vlmevalkit import write_vlmevalkit
from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.outputs.predictions import Prediction, read_predictions, write_part

NAMES = ("index", "image", "question", "answer", "category", "score")
Predict = Callable[..., Path]


def picture(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def write_table(path: Path, *rows: Sequence[str], names: Sequence[str] = NAMES) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([names, *rows])
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three rows as OCRBench has them, the second with the image of the third."""
    return write_table(
        tmp_path / "OCRBench.tsv",
        ("10", picture("red"), "what is written?", "['CENTRE', 'Centre']", "Regular Text Recognition", "1"),
        ("2", "7", "how many?", "['12']", "Digit String Recognition", ""),
        ("7", picture("blue"), 'who said "no"?', "['N/A']", "Doc-oriented VQA", "0.5"),
    )


@pytest.fixture
def predict(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> Predict:
    """Writes predictions: an answer, or None for a failed row, by index."""

    def write(**answers: str | None) -> Path:
        rows = [
            make_prediction(number, answer, None, sample_id=name.removeprefix("i"), source=f"OCRBench.tsv:{number + 2}")
            for number, (name, answer) in enumerate(answers.items())
        ]
        write_part(str(tmp_path / "predictions"), "part-00000.parquet", rows)
        return tmp_path / "predictions"

    return write


def export(predictions: Path, dataset: Path, **settings: Any) -> VLMEvalKitSummary:
    values = {"model_name": "Yi-VL", "output": str(predictions.parent / "out"), **settings}
    return write_vlmevalkit(VLMEvalKitConfig(predictions=str(predictions), dataset=str(dataset), **values))


def load(path: str) -> pd.DataFrame:
    """As `load` of vlmeval/smp/file.py does."""
    return pd.read_excel(path) if path.endswith(".xlsx") else pd.read_csv(path, sep="\t")


@pytest.mark.parametrize("file_format", ["tsv", "xlsx"])
def test_the_result_is_the_table_without_images_and_with_predictions(
    table: Path, predict: Predict, file_format: str, tmp_path: Path
) -> None:
    summary = export(predict(i10="centre", i7=None, i2="=1+1", i99="other"), table, file_format=file_format)
    assert summary.file == str(tmp_path / f"out/Yi-VL_OCRBench.{file_format}")
    assert (summary.num_rows, summary.num_failed, summary.num_unused) == (3, 1, 1)
    expected = pd.read_csv(table, sep="\t").drop(columns="image")
    expected["prediction"] = ["centre", "=1+1", float("nan")]
    pd.testing.assert_frame_equal(load(summary.file), expected)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"Yi-VL_OCRBench.{file_format}"]


@pytest.mark.parametrize("file_format", ["tsv", "xlsx"])
def test_what_vlmevalkit_does_with_ocrbench_gives_the_score(table: Path, predict: Predict, file_format: Any) -> None:
    data = load(export(predict(i10="The centre!", i2="12", i7="n/a, I think"), table, file_format=file_format).file)
    hits = 0
    for number in range(len(data)):  # OCRBench.evaluate, vlmeval/dataset/image_vqa.py
        line = data.iloc[number]
        predicted = str(line["prediction"]).lower().strip().replace("\n", " ")
        hits += any(
            answer.lower().strip().replace("\n", " ") in predicted for answer in json.loads(line["answer"].replace("'", '"'))
        )
    assert hits == 3


def test_from_the_table_to_the_result_with_a_model(table: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    validated = ValidationConfig(dataset=(str(table),), output=str(tmp_path / "validated"), purpose="inference", num_workers=0)
    summary = validate_dataset(validated)
    assert (summary.num_records, summary.num_images, summary.findings_by_kind) == (3, 2, {})
    for name, dataset in (("of_table", table), ("of_validated", tmp_path / "validated")):
        predictions = tmp_path / name
        infer_shards(InferenceConfig(model=str(tiny_checkpoint), dataset=str(dataset), output=str(predictions), max_new_tokens=3))
        rows = list(read_predictions(str(predictions)))
        assert [(row.sample_id, row.cluster_id, row.reference, row.references) for row in rows] == [
            ("10", "10", "CENTRE", ("Centre",)),
            ("2", "7", "12", ()),
            ("7", "7", "N/A", ()),
        ]
        assert json.loads(rows[0].meta) == {"category": "Regular Text Recognition", "score": "1"}
        assert rows[1].images[0].uri == rows[2].images[0].uri == f"data:image/jpeg;sha256={rows[2].images[0].sha256}"
        result = export(predictions, table, file_format="tsv", dataset_name="OCRBench_MINI", output=str(tmp_path / f"{name}_out"))
        assert result.file.endswith("/Yi-VL_OCRBench_MINI.tsv")
        assert (result.num_rows, result.num_failed, result.num_asked_otherwise) == (3, 0, 0)
        written = pd.read_csv(result.file, sep="\t", keep_default_na=False)
        assert written["prediction"].tolist() == [row.response for row in rows]


def test_rows_without_a_prediction_are_refused_by_name(table: Path, predict: Predict, tmp_path: Path) -> None:
    with pytest.raises(
        IncompleteError, match=r"predictions holds nothing about 2 of 3 rows of .*OCRBench.tsv, those of index 10, 7;"
    ):
        export(predict(i2="x"), table)
    assert not (tmp_path / "out").exists()


def test_a_row_that_was_no_record_is_found_by_its_line(
    table: Path, tmp_path: Path, make_prediction: Callable[..., Prediction]
) -> None:
    rows = [
        make_prediction(
            0, None, None, sample_id="digest", query=None, source="/elsewhere/OCRBench.tsv:3", error_kind="empty_field"
        ),
        make_prediction(1, "a", None, sample_id="10", query="what is written? Be brief."),
        make_prediction(2, "b", None, sample_id="7"),
    ]
    write_part(str(tmp_path / "predictions"), "part-00000.parquet", rows)
    summary = export(tmp_path / "predictions", table, file_format="tsv")
    assert (summary.num_failed, summary.num_unused, summary.num_asked_otherwise) == (1, 0, 1)
    assert load(summary.file)["prediction"].tolist()[::2] == ["a", "b"]


def test_rows_without_an_image_are_left_out(tmp_path: Path, predict: Predict) -> None:
    table = write_table(tmp_path / "a.tsv", ("1", "", "a", "b", "c", ""), ("2", picture("red"), "a", "b", "c", ""))
    summary = export(predict(i2="x", i1="y"), table)
    assert (summary.num_rows, summary.num_without_image) == (1, 1)
    assert load(summary.file)["index"].tolist() == [2]
    table = write_table(tmp_path / "b.tsv", ("1", "a.jpg", "q"), names=("index", "image_path", "question"))
    assert load(export(predict(i1="x"), table).file).columns.tolist() == ["index", "image_path", "question", "prediction"]


def test_what_xlsx_cannot_hold_is_left_out_and_told(table: Path, predict: Predict) -> None:
    predictions = predict(i10="a\x0bb\x00c\uffff", i2="x" * 40_000, i7="\r\n _x0041_ \U0001f600")
    summary = export(predictions, table)
    assert (summary.num_cut, summary.num_cleaned) == (1, 2)
    assert load(summary.file)["prediction"].tolist() == ["abc", "x" * 32_767, "\n _x0041_ \U0001f600"]
    summary = export(predictions, table, file_format="tsv")
    assert (summary.num_cut, summary.num_cleaned) == (0, 0)
    assert load(summary.file)["prediction"].tolist()[1:] == ["x" * 40_000, "\r\n _x0041_ \U0001f600"]


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ([("1", "a"), ("1", "b")], ("index", "question"), "a.tsv:3: the index 1 stands on line 2 already"),
        ([("1", "a"), ("", "b")], ("index", "question"), "a.tsv:3: the `index` is empty"),
        ([("1", "a"), ("2",)], ("index", "question"), "a.tsv:3: 1 cells for 2 columns"),
        ([("1", "a"), ("2", "b" * 2000)], ("index", "question"), "a.tsv:3: the row is longer than 1,000 bytes"),
        ([("1", "a")], ("number", "question"), "a.tsv: the first row names no column `index`, but number, question"),
        ([("1", "a")], ("index", "index"), "a.tsv: the first row names the column 'index' twice"),
    ],
)
def test_a_broken_table_is_refused(
    tmp_path: Path, predict: Predict, rows: list[Any], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        export(predict(i1="x", i2="y"), write_table(tmp_path / "a.tsv", *rows, names=names), max_line_bytes=1000)
    assert message in str(caught.value)


def test_more_rows_than_a_sheet_holds_are_refused(table: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yivl_core.evaluation.benchmarks.result_tables.MAX_SHEET_ROWS", 3)
    with pytest.raises(DatasetError, match=r"a sheet of xlsx holds 3 rows, and there are more; write tsv"):
        export(predict(i10="a", i2="b", i7="c"), table)
    assert export(predict(i10="a", i2="b", i7="c"), table, file_format="tsv").num_rows == 3


def test_settings_that_cannot_work_are_refused(table: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = predict(i10="a", i2="b", i7="c")
    with pytest.raises(ConfigurationError, match=r"rows.jsonl: this is no table; name the .tsv of the benchmark"):
        export(predictions, table.with_name("rows.jsonl"))
    with pytest.raises(ValidationError, match="model_name"):
        export(predictions, table, model_name="01-ai/Yi-VL")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ConfigurationError, match=r"run pip install 'yivl\[benchmarks\]', or write tsv"):
        export(predictions, table)
