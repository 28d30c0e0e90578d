"""Datasets as other programs write them, through a whole validation."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from yivl_core.errors import ConfigurationError

Validate = Callable[..., Any]
WriteRows = Callable[..., Path]
MakeImage = Callable[..., Path]

ROWS = [{"query": f"What is {name}?", "response": f"{name}!", "images": [f"{name}.png"]} for name in ("a", "b", "c")]


def llava(row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{row['query']}"}, {"from": "gpt", "value": row["response"]}]
    return {"image": row["images"][0], "conversations": turns}


def openai(row: dict[str, Any]) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": row["images"][0]}}, {"type": "text", "text": row["query"]}]
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": row["response"]}]}


@pytest.fixture
def written(make_image: MakeImage, tmp_path: Path) -> dict[str, Path]:
    """The same rows in several formats, by the name of the format."""
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        make_image(f"{name}.png", colour)
    paths = {
        "swift": tmp_path / "rows.jsonl",
        "conversations": tmp_path / "llava.json",
        "messages": tmp_path / "openai.jsonl.gz",
        "alpaca": tmp_path / "alpaca.csv",
        "coco": tmp_path / "captions.json",
        "messages in frames": tmp_path / "openai.jsonl.zst",
    }
    paths["swift"].write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    paths["conversations"].write_text(json.dumps(list(map(llava, ROWS)), indent=1))
    messages = "".join(json.dumps(openai(row)) + "\n" for row in ROWS).encode()
    paths["messages"].write_bytes(gzip.compress(messages))
    with pa.CompressedOutputStream(str(paths["messages in frames"]), "zstd") as file:
        file.write(messages)
    with paths["alpaca"].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["instruction", "input", "output", "images"])
        writer.writerows([row["query"], "", row["response"], json.dumps(row["images"])] for row in ROWS)
    images = [{"id": number, "file_name": row["images"][0]} for number, row in enumerate(ROWS)]
    captions = [{"id": number + 10, "image_id": number, "caption": row["response"]} for number, row in enumerate(ROWS)]
    paths["coco"].write_text(json.dumps({"images": images, "annotations": captions}))
    return paths


@pytest.mark.parametrize("name", ["swift", "messages", "messages in frames", "alpaca", "conversations"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_same_rows_in_any_format_are_the_same_records(
    name: str, num_workers: int, written: dict[str, Path], validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yivl_core.data.checks.row_workers._NUM_ROWS_FOR_WORKERS", 0)
    result = validate(written[name], num_workers=num_workers)
    assert result.findings == []
    assert result.report["files"][0]["format"] == name.partition(" ")[0]
    queries = [record["query"].removeprefix("<image>").removeprefix("\n") for record in result.records]
    assert queries == [row["query"] for row in ROWS]
    assert [record["response"] for record in result.records] == [row["response"] for row in ROWS]
    assert [record["images"] for record in result.records] == [row["images"] for row in ROWS]
    assert result.summary.num_images == 3


def test_annotations_become_captions_of_their_images(written: dict[str, Path], validate: Validate) -> None:
    result = validate(written["coco"], question="Say what it shows.")
    assert result.report["files"][0]["format"] == "coco"
    assert [(record["query"], record["response"], record["images"], record["cluster_id"]) for record in result.records] == [
        ("Say what it shows.", row["response"], row["images"], str(number)) for number, row in enumerate(ROWS)
    ]


def test_patterns_and_several_files_are_one_dataset(written: dict[str, Path], validate: Validate, tmp_path: Path) -> None:
    result = validate(tmp_path / "[lr]*.json*", written["messages"])
    assert [Path(entry["file"]).name for entry in result.report["files"]] == ["llava.json", "rows.jsonl", "openai.jsonl.gz"]
    assert result.summary.num_records == 9
    again = validate(result.folder, output="again")
    assert again.summary.digest == result.summary.digest
    assert again.records[0]["images"] == ["a.png"]


def test_columns_have_the_names_that_the_user_says(make_image: MakeImage, validate: Validate, tmp_path: Path) -> None:
    make_image("a.png")
    path = tmp_path / "odd.csv"
    path.write_text("frage,antwort,bild\nWas?,Das.,a.png\n,Das.,a.png\n")
    with_names = ("query=frage", "response=antwort", "images=bild")
    result = validate(path, columns=with_names)
    assert [(one["query"], one["response"], one["images"]) for one in result.records] == [("Was?", "Das.", ["a.png"])]
    assert "there is no `query` (column `frage`)" in result.quarantine[0]["message"]
    without = validate(path, output="without")
    assert without.findings == [(None, "missing_field", "error")]
    assert "say which one is the query" in without.quarantine[0]["remedy"]


def test_so_many_rows_are_taken_by_seed_and_only_they_are_looked_at(validate: Validate, write_rows: WriteRows) -> None:
    rows = [{"query": f"{number}", "response": "1", "images": [f"{number}.png"]} for number in range(200)]
    path = write_rows(*rows)
    few = validate(Path(f"{path}#5"), purpose="training")
    assert few.summary.num_lines == few.summary.num_quarantined == 5
    lines = [line for line, _, _ in few.findings]
    assert sorted(set(lines)) == lines
    assert [line for line, _, _ in validate(Path(f"{path}#5")).findings] == lines
    assert [line for line, _, _ in validate(Path(f"{path}#5"), seed=1).findings] != lines


def test_rows_that_are_wanted_more_than_once_are_no_duplicates(validate: Validate, write_rows: WriteRows) -> None:
    path = write_rows(*({"query": f"{number}", "response": "1"} for number in range(3)))
    other = write_rows(*({"query": f"x{number}", "response": "1"} for number in range(10)), name="other.jsonl")
    result = validate(Path(f"{path}#7"), other)
    assert (result.summary.num_records, result.findings) == (17, [])
    assert [record["query"] for record in result.records[:7]] in (sorted([*"012", *"012", extra]) for extra in "012")


def test_weights_mix_files_in_their_proportions(validate: Validate, write_rows: WriteRows) -> None:
    path = write_rows(*({"query": f"{number}", "response": "1"} for number in range(100)))
    other = write_rows(*({"query": f"x{number}", "response": "1"} for number in range(10)), name="other.jsonl")
    result = validate(path, other, weights=(2, 1))
    assert [entry["num_lines"] for entry in result.report["files"]] == [20, 10]
    twice = validate(path, other, weights=(1, 1), num_rows=60, output="twice")
    assert [entry["num_lines"] for entry in twice.report["files"]] == [30, 30]
    with pytest.raises(ConfigurationError, match="1 weights for 2 files; give one for each"):
        validate(path, other, weights=(1,))


def test_a_damaged_file_is_a_finding_and_the_others_are_read(
    validate: Validate, written: dict[str, Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(written["messages"].read_bytes()[:-12])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing more PAR1")
    result = validate(tmp_path / "x.parquet", cut, written["swift"])
    assert [(Path(one["file"]).name, one["line"], one["kind"]) for one in result.quarantine] == [
        ("x.parquet", None, "damaged_file"),
        ("cut.jsonl.gz", 3, "invalid_json"),
        ("cut.jsonl.gz", None, "damaged_file"),
    ]
    assert result.quarantine[0]["remedy"] == "write it again"
    assert "is damaged or cut off" in result.quarantine[2]["message"]
    assert result.summary.num_records == 2 + 3
