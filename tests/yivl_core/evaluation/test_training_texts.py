import json
from pathlib import Path

import pytest

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import DatasetError, YivlError
from yivl_core.evaluation.training_texts import read_training_texts

RECORDS = [
    {"query": "q", "response": "TOTAL"},
    {"query": "q", "response": " total "},
    {"query": "q", "response": "Cash", "history": [["q", "Date"], ["q", "Time"]]},
    {"query": "q"},
]


def write(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_answers_of_all_rounds_are_texts_that_were_learned(tmp_path: Path) -> None:
    found = read_training_texts([write(tmp_path / "a.jsonl", RECORDS)], "nfc+casefold+ws1")
    assert found.texts == {"total", "cash", "date", "time"}


def test_the_normaliser_says_which_texts_are_the_same(tmp_path: Path) -> None:
    texts = read_training_texts([write(tmp_path / "a.jsonl", RECORDS)], "raw").texts
    assert {"TOTAL", "Cash", "Date", "Time"} < texts
    assert "total" not in texts


def test_the_digest_is_of_the_texts_wherever_they_stand(tmp_path: Path) -> None:
    whole = read_training_texts([write(tmp_path / "a.jsonl", RECORDS)], "nfc+casefold+ws1")
    parts = [write(tmp_path / "b.jsonl", RECORDS[2:]), write(tmp_path / "c.jsonl", RECORDS[:2][::-1])]
    assert read_training_texts(parts, "nfc+casefold+ws1") == whole
    assert read_training_texts(parts[1:], "nfc+casefold+ws1").digest != whole.digest


def test_a_validated_dataset_is_read(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a.jsonl", RECORDS[:3])
    validate_dataset(ValidationConfig(dataset=(dataset,), output=str(tmp_path / "validated")))
    found = read_training_texts([str(tmp_path / "validated")], "nfc+casefold+ws1")
    assert found.texts == {"total", "cash", "date", "time"}


def test_files_without_an_answer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"a\.jsonl: no record has an answer, so there are no training texts; give other files"
    ):
        read_training_texts([write(tmp_path / "a.jsonl", RECORDS[3:])], "raw")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(YivlError, match="missing"):
        read_training_texts([str(tmp_path / "missing.jsonl")], "raw")
