"""What shows only between rows, as a validation tells it and acts on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from yivl_core.data.checks import across_rows
from yivl_core.data.dataset import ValidatedDataset
from yivl_core.errors import DatasetError

Validate = Callable[..., Any]
WriteRows = Callable[..., Path]
MakeImage = Callable[..., Path]


def row(query: str, *images: str, response: str = "1", **more: Any) -> dict[str, Any]:
    return {"query": query, "response": response, "images": list(images), **more}


@pytest.fixture
def repeated(make_image: MakeImage, write_rows: WriteRows) -> Path:
    """Lines 3 and 6 are repeats of line 1, line 4 shows the image of line 1 under another name, line 5 is no record."""
    shutil.copy(make_image("a.png"), make_image("b.png", "blue").parent / "copy.png")
    a = row("first", "a.png", id="one", more=1)
    return write_rows(a, row("second", "b.png"), a, row("fourth", "copy.png", "b.png"), "{", a, row("last", "b.png"))


def test_repeats_are_told_where_nothing_else_is_said(repeated: Path, validate: Validate) -> None:
    result = validate(repeated)
    assert [(one["line"], one["id"], [finding["kind"] for finding in one["findings"]]) for one in result.warnings] == [
        (1, "one", ["unknown_field"]),
        (3, "one", ["unknown_field", "duplicate_record"]),
        (4, None, ["duplicate_image"]),
        (6, "one", ["unknown_field", "duplicate_record"]),
    ]
    assert (result.summary.num_records, result.summary.num_warnings, result.summary.num_quarantined) == (6, 6, 1)
    assert result.report["most_used_images"] == [{"uri": "a.png", "count": 4}, {"uri": "b.png", "count": 3}]
    assert "| b.png | 3 |" in (result.folder / "report.md").read_text()


def test_rejected_repeats_leave_what_a_dataset_without_them_has(
    repeated: Path, validate: Validate, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(across_rows, "_NUM_IMAGES_REMEMBERED", 1)
    result = validate(repeated, policy=("duplicate_record=quarantine", "duplicate_image=quarantine"))
    lines = repeated.read_text().splitlines()
    alone = validate(write_rows(lines[0], lines[1], lines[6], name="alone.jsonl"), output="alone")
    assert result.summary.digest == alone.summary.digest
    assert [record["query"] for record in result.records] == ["first", "second", "last"]
    assert [record.record.query for record in ValidatedDataset.open(str(result.folder))] == ["first", "second", "last"]
    assert [(one["line"], one["kind"], json.loads(one["text"])["query"]) for one in result.quarantine if one["line"] != 5] == [
        (3, "duplicate_record", "first"),
        (4, "duplicate_image", "fourth"),
        (6, "duplicate_record", "first"),
    ]
    assert result.summary.num_quarantined == 4
    assert (result.summary.num_images, result.summary.num_errors) == (2, 4)
    for name in ("answers", "most_used_images", "num_images", "num_records"):
        longest = str(alone.folder.parent / "alone.jsonl")
        assert json.loads(json.dumps(result.report[name]).replace(str(repeated), longest)) == alone.report[name]
    columns = ["uri", "sha256", "width"]
    assert pq.read_table(result.folder / "images.parquet", columns=columns) == pq.read_table(
        alone.folder / "images.parquet", columns=columns
    )
    assert sorted(path.name for path in result.folder.iterdir()) == sorted(path.name for path in alone.folder.iterdir())


@pytest.mark.parametrize("choice", ["duplicate_record=stop", "duplicate_image=stop", "invalid_json=stop", "unknown_field=stop"])
def test_a_validation_stops_where_it_is_to_and_leaves_nothing(
    choice: str, repeated: Path, validate: Validate, tmp_path: Path
) -> None:
    line = {"duplicate_record": "3", "duplicate_image": "4", "invalid_json": "5", "unknown_field": "1"}[choice.partition("=")[0]]
    with pytest.raises(DatasetError, match=rf'^{repeated}:{line}( \(record "one"\))?: .* \(policy {choice}\)$'):
        validate(repeated, policy=(choice,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "copy.png", "data.jsonl"]


def test_what_a_dataset_to_be_kept_apart_shares_is_told(make_image: MakeImage, write_rows: WriteRows, validate: Validate) -> None:
    for name in ("a.png", "b.png", "c.png"):
        make_image(name, {"a": "red", "b": "blue", "c": "green"}[name[0]])
    shutil.copy(make_image("a.png"), make_image("a.png").parent / "other name.png")
    held_out = validate(
        write_rows(row("q", "a.png"), row("text"), row("r", "b.png", history=[["x", "y"]]), name="val.jsonl"), output="val"
    )
    rows = [
        row("q", "other name.png", response="another answer", id="same question"),
        row("another question", "a.png"),
        row("r", "b.png", history=[["x", "z"]]),
        row("text"),
        row("q", "c.png"),
        row("free"),
    ]
    path = write_rows(*rows)
    kinds = {line: [] for line in range(1, 7)}
    result = validate(path, apart_from=(str(held_out.folder),))
    for one in result.warnings:
        kinds[one["line"]] = [finding["kind"] for finding in one["findings"]]
    assert kinds == {
        1: ["leaked_image", "leaked_record"],
        2: ["duplicate_image", "leaked_image"],
        3: ["leaked_image"],
        4: ["leaked_record"],
        5: [],
        6: [],
    }
    messages = [finding["message"] for finding in result.warnings[0]["findings"]]
    assert messages == [
        f'image "other name.png" is in {held_out.folder}, too',
        f"record 1 of {held_out.folder} asks the same of the same images",
    ]
    clean = validate(
        path, apart_from=(str(held_out.folder),), policy=("leaked_image=quarantine", "leaked_record=quarantine"), output="clean"
    )
    assert [record["query"] for record in clean.records] == ["q", "free"]
    assert clean.records[0]["images"] == ["c.png"]


def test_a_folder_that_is_no_dataset_cannot_be_kept_apart(write_rows: WriteRows, validate: Validate, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="this is not a validated dataset"):
        validate(write_rows(row("a")), apart_from=(str(tmp_path),))


def test_the_most_frequent_answers_are_told(write_rows: WriteRows, validate: Validate) -> None:
    answers = ["yes", "no | maybe", "yes", "once", "no | maybe", "yes"]
    result = validate(write_rows(*(row(f"{number}", response=answer) for number, answer in enumerate(answers))))
    assert result.report["answers"]["num_different"] == 3
    assert result.report["answers"]["most_frequent"] == [{"text": "yes", "count": 3}, {"text": "no | maybe", "count": 2}]
    assert result.report["answers"]["characters"]["longest_at"].endswith("data.jsonl:2")
    assert '| "no \\| maybe" | 2 |' in (result.folder / "report.md").read_text()


def test_a_dataset_without_answers_has_nothing_to_tell_of_them(write_rows: WriteRows, validate: Validate) -> None:
    result = validate(write_rows({"query": "a"}, {"query": "b"}), purpose="inference")
    assert result.report["answers"] is None
    assert "Answers" not in (result.folder / "report.md").read_text()


def test_records_that_are_too_long_for_the_model_are_told_with_a_histogram(
    write_rows: WriteRows, make_image: MakeImage, validate: Validate, tiny_checkpoint: Path
) -> None:
    make_image("a.png")
    path = write_rows(row("a"), row("b", "a.png"), row("long " * 300))
    lengths = validate(path, model=str(tiny_checkpoint)).report["tokens"]
    assert lengths["num"] == 3
    assert sum(entry["count"] for entry in lengths["histogram"]) == 3
    limit = lengths["longest"] - 1
    result = validate(path, model=str(tiny_checkpoint), max_length=limit)
    assert result.findings == [(3, "too_long", "warning")]
    assert f"has {limit + 1:,} tokens, images included, {limit:,} may be read" in result.warnings[0]["message"]
    assert f"the longest {limit + 1:,} ({path}:3). {limit:,} may be read." in (result.folder / "report.md").read_text()
    rejected = validate(path, model=str(tiny_checkpoint), max_length=limit, policy=("too_long=quarantine",))
    assert rejected.summary.num_records == 2
    assert rejected.report["tokens"]["num"] == 2


@pytest.mark.parametrize("choice", ["warn", "quarantine"])
@pytest.mark.parametrize(("given", "told"), [(31, "31"), ("x\u00e9\n", "x\u00e9\n"), (None, None)])
def test_what_is_found_late_is_told_of_the_record_by_its_name(
    given: int | str | None, told: str | None, choice: str, write_rows: WriteRows, validate: Validate
) -> None:
    again = {"query": "a", "response": "b", "id": given}
    result = validate(write_rows(again, again), policy=(f"duplicate_record={choice}",))
    (found,) = result.warnings if choice == "warn" else result.quarantine
    assert (found["line"], found["kind"], found["id"]) == (2, "duplicate_record", told)
    assert result.report["findings"][0]["examples"][0]["id"] == told


def test_items_of_a_list_on_one_line_are_told_apart(tmp_path: Path, validate: Validate) -> None:
    record = {"query": "What is it?", "response": "a cat"}
    path = tmp_path / "one_line.json"
    path.write_text(json.dumps([record, {"query": ""}, record, {**record, "more": 1}, record]) + "\n")
    result = validate(path)
    assert [(one["line"], one["item"], one["kind"]) for one in result.quarantine] == [(1, 2, "empty_field")]
    assert [(one["line"], one["item"], one["kind"]) for one in result.warnings] == [
        (1, 3, "duplicate_record"),
        (1, 4, "unknown_field"),
        (1, 5, "duplicate_record"),
    ]
    assert f"stands at {path}:1 already" in result.warnings[0]["message"]
    places = [str(record.source) for record in ValidatedDataset.open(str(result.folder))]
    assert places == [f"{path}:1", *(f"{path}:1 (item {item} of this line)" for item in (3, 4, 5))]
    with pytest.raises(DatasetError, match=r":1 \(item 3 of this line\): this record stands at"):
        validate(path, policy=("duplicate_record=stop",))


def test_captions_on_one_line_are_told_apart(tmp_path: Path, make_image: MakeImage, validate: Validate) -> None:
    make_image("a.png")
    caption = {"image_id": 1, "caption": "a cat"}
    images = [{"id": 1, "file_name": "a.png"}]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": [{"id": 1, **caption}, {"id": 2, **caption}]}))
    assert validate(path).warnings == [], "the ids differ"
    path.write_text(json.dumps({"images": images, "annotations": [caption, caption]}))
    assert [(one["line"], one["item"], one["kind"]) for one in validate(path).warnings] == [(1, 2, "duplicate_record")]


def test_what_is_asked_for_more_than_once_is_no_repeat(tmp_path: Path, validate: Validate) -> None:
    record = {"query": "What is it?", "response": "a cat"}
    path = tmp_path / "one_line.json"
    path.write_text(json.dumps([record, {**record, "query": "And now?"}]))
    result = validate(f"{path}#6")
    assert (result.summary.num_records, result.warnings) == (6, [])
