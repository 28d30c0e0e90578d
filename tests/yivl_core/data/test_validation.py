import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import FILE_NAMES, ValidatedDataset
from yivl_core.data.validation import validate_dataset
from yivl_core.data.writing import IMAGES_SCHEMA
from yivl_core.errors import BusyError, ConfigurationError, OutputError, StorageError
from yivl_core.locks import sole_publisher
from yivl_core.progress import Progress

Validate = Callable[..., Any]
WriteRows = Callable[..., Path]
MakeImage = Callable[..., Path]

GOOD = {"query": "Read it.", "response": "1"}


def bad_files(shared_data: Path) -> list[dict[str, Any]]:
    folder = shared_data / "data/bad_jsonl"
    manifest = json.loads((folder / "manifest.json").read_text())
    return [*manifest["files"], json.loads((folder / "mixed.manifest.json").read_text())]


def test_every_kind_of_defect_is_found_at_its_line_with_the_right_number_of_usable_records(
    shared_data: Path, validate: Validate
) -> None:
    folder = shared_data / "data/bad_jsonl"
    num_expected = 0
    for entry in bad_files(shared_data):
        result = validate(folder / entry["file"], image_root=str(folder))
        expected = [(one["line"], one["kind"], one["severity"]) for one in entry["expect"] if one["severity"] != "accept"]
        assert result.findings == sorted(expected, key=lambda finding: finding[0] or 0), entry["file"]
        num_expected += len(expected)
        if entry["usable_records"] is not None:
            assert result.summary.num_records == entry["usable_records"], entry["file"]
        assert result.summary.num_records == len(result.records) == len(list(ValidatedDataset.open(str(result.folder))))
        assert result.summary.num_quarantined == sum(row["line"] is not None for row in result.quarantine)
        assert result.summary.num_errors == sum(severity == "error" for _, _, severity in expected)
        assert result.summary.num_lines == result.summary.num_records + result.summary.num_quarantined
        for finding in (one for row in result.quarantine + result.warnings for one in row["findings"]):
            assert finding["message"]
            assert finding["remedy"]
    assert num_expected == 102


def test_a_huge_line_is_rejected_and_nowhere_kept(shared_data: Path, tmp_path: Path, validate: Validate) -> None:
    good = json.dumps({**GOOD, "images": ["images/a.png"]})
    huge = json.dumps({**GOOD, "response": "x" * 10_000_000})
    (tmp_path / "huge.jsonl").write_text(f"{good}\n{huge}\n{good.replace('a.png', 'b.png')}\n")
    tracemalloc.start()
    result = validate(tmp_path / "huge.jsonl", image_root=str(shared_data / "data/bad_jsonl"), max_line_bytes=1_000_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.findings == [(2, "line_too_long", "error")]
    assert result.summary.num_records == 2
    assert peak_bytes < 5_000_000
    assert sum(path.stat().st_size for path in result.folder.iterdir()) < 20_000


def test_the_folder_holds_just_the_documented_files_and_columns(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate
) -> None:
    make_image("a.png", size=(20, 10))
    make_image("b.png", mode="L", colour="white")
    path = write_rows(
        {**GOOD, "images": ["a.png"]}, {**GOOD, "query": "Which? <image><image>", "images": ["b.png", "a.png"], "till": 3}, "{"
    )
    shutil.copy(path.parent / "a.png", path.parent / "copy.png")
    result = validate(path)
    assert {entry.name for entry in result.folder.iterdir()} == FILE_NAMES
    table = pq.read_table(result.folder / "images.parquet")
    assert table.schema.equals(IMAGES_SCHEMA, check_metadata=True)
    rows = table.to_pylist()
    assert [(row["uri"], row["width"], row["height"], row["mode"]) for row in rows] == [
        ("a.png", 20, 10, "RGB"),
        ("b.png", 12, 9, "L"),
    ]
    assert rows[0]["path"] == str(path.parent / "a.png")
    assert rows[0]["num_bytes"] == (path.parent / "a.png").stat().st_size
    assert result.summary.num_images == 2
    (rejected,) = result.quarantine
    assert {name: rejected[name] for name in ("file", "line", "id", "kind", "severity", "text")} == {
        "file": str(path), "line": 3, "id": None, "kind": "invalid_json", "severity": "error", "text": "{",
    }  # fmt: skip
    (warned,) = result.warnings
    assert (warned["line"], warned["kind"], warned["severity"]) == (2, "unknown_field", "warning")


def test_images_with_equal_content_are_one_image(make_image: MakeImage, write_rows: WriteRows, validate: Validate) -> None:
    shutil.copy(make_image("a.png"), make_image("copy.png", "blue"))
    result = validate(write_rows({**GOOD, "images": ["a.png"]}, {**GOOD, "query": "And?", "images": ["copy.png"]}))
    assert result.summary.num_images == 1
    paths = [image.path for validated in ValidatedDataset.open(str(result.folder)) for image in validated.images]
    assert [Path(path).name for path in paths] == ["a.png", "copy.png"]


def test_files_with_equal_names_in_different_folders_are_not_mixed_up(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate
) -> None:
    make_image("one/images/a.png", "red")
    make_image("two/images/a.png", "blue")
    row = {**GOOD, "images": ["images/a.png"]}
    result = validate(write_rows(row, name="one/data.jsonl"), write_rows(row, name="two/data.jsonl"))
    first, second = ValidatedDataset.open(str(result.folder))
    assert first.images[0].path.endswith("one/images/a.png")
    assert second.images[0].path.endswith("two/images/a.png")
    assert first.images[0].sha256 != second.images[0].sha256
    assert result.findings == []
    assert result.summary.num_images == 2


def test_an_equal_record_is_a_duplicate_if_its_images_are_equal_too(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate
) -> None:
    shutil.copy(make_image("a.png"), make_image("copy.png", "blue"))
    make_image("other.png", "green")
    rows = [{**GOOD, "images": [name]} for name in ("a.png", "other.png", "copy.png", "a.png")]
    path = write_rows(*rows, {**rows[0], "id": "1"}, {**rows[0], "response": "2"})
    result = validate(path)
    assert result.findings == [
        (3, "duplicate_image", "warning"),
        (3, "duplicate_record", "warning"),
        (4, "duplicate_record", "warning"),
    ]
    messages = [[finding["message"] for finding in row["findings"]] for row in result.warnings]
    repeated = f"this record stands at {path}:1 already"
    assert messages == [[f'image "copy.png" is the same as "a.png", which {path}:1 shows', repeated], [repeated]]
    assert result.summary.num_records == 6


def test_the_records_of_a_file_that_is_given_twice_are_duplicates_of_themselves(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate
) -> None:
    make_image("a.png")
    path = write_rows({**GOOD, "images": ["a.png"]}, {**GOOD, "query": "b", "images": ["a.png"]})
    result = validate(path, path)
    assert result.findings == [(1, "duplicate_record", "warning"), (2, "duplicate_record", "warning")]
    assert [row["message"] for row in result.warnings] == [f"this record stands at {path}:{line} already" for line in (1, 2)]


def test_all_that_is_wrong_with_a_row_is_found_at_once(make_image: MakeImage, write_rows: WriteRows, validate: Validate) -> None:
    (make_image("a.png").parent / "text.png").write_text("text")
    result = validate(
        write_rows({"query": 7, "images": ["nope.png", "text.png", "a.png", "../x.png"], "other": 1, "id": "inv-31"})
    )
    (rejected,) = result.quarantine
    assert [(finding["kind"], finding["detail"]) for finding in rejected["findings"]] == [
        ("wrong_type", None),
        ("unknown_field", None),
        ("missing_field", None),
        ("image_missing", None),
        ("image_unreadable", "not_an_image"),
        ("path_escape", None),
    ]
    assert result.report["unreadable_images"] == {"not_an_image": 1}
    assert (result.summary.num_errors, result.summary.num_warnings) == (5, 1)


def test_awkward_images_are_rejected_with_their_kind_as_detail_and_warned_about(
    shared_data: Path, write_rows: WriteRows, validate: Validate
) -> None:
    folder = shared_data / "data/awkward"
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    result = validate(
        write_rows(*({**GOOD, "images": [entry["file"]], "id": entry["file"]} for entry in entries)), image_root=str(folder)
    )
    details = {row["id"]: (row["kind"], row["detail"]) for row in result.quarantine}
    expected = {entry["file"]: ("image_unreadable", entry["kind"]) for entry in entries if entry["expect"] == "reject"}
    assert details == {**expected, "files/Thumbs.db": ("image_unreadable", "not_an_image")}
    assert {(row["id"], finding["kind"]) for row in result.warnings for finding in row["findings"]} == {
        ("files/animated.gif", "animated"),
        ("files/really_png.jpg", "extension_mismatch"),
        ("files/one_pixel.png", "tiny"),
        ("files/very_wide.png", "tiny"),
    }
    sizes = {r.record.id: [r.images[0].width, r.images[0].height] for r in ValidatedDataset.open(str(result.folder))}
    assert {entry["file"]: sizes[entry["file"]] for entry in entries if "size" in entry} == {
        entry["file"]: entry["size"] for entry in entries if "size" in entry
    }


@pytest.mark.parametrize("purpose", ["training", "inference"])
def test_only_training_needs_a_response(purpose: str, write_rows: WriteRows, validate: Validate) -> None:
    result = validate(
        write_rows({"query": "a"}, {"query": "b", "response": None}, {"query": "c", "response": ""}, GOOD), purpose=purpose
    )
    kinds = [kind for _, kind, _ in result.findings]
    assert kinds == (["missing_field", "wrong_type", "empty_field"] if purpose == "training" else [])
    assert ValidatedDataset.open(str(result.folder)).purpose == purpose


def test_the_limits_are_the_configured_ones(make_image: MakeImage, write_rows: WriteRows, validate: Validate) -> None:
    make_image("a.png", size=(30, 20))
    path = write_rows({**GOOD, "query": "x" * 2000, "images": ["a.png"]})
    assert validate(path).findings == []
    assert validate(path, max_line_bytes=1000).findings == [(1, "line_too_long", "error")]
    assert validate(path, max_pixels=599).quarantine[0]["detail"] == "too_many_pixels"
    assert validate(path, max_pixels=600).findings == []
    for wrong in ({"max_pixels": 200_000_000}, {"max_line_bytes": 10}, {"num_workers": -1}, {"dataset": ()}, {"other": 1}):
        with pytest.raises(ValidationError):
            ValidationConfig.model_validate({"dataset": ("a.jsonl",), "output": "out", **wrong})


@st.composite
def datasets(draw: st.DrawFn) -> list[dict[str, Any]]:
    row = st.fixed_dictionaries(
        {
            "query": st.sampled_from(["Read it.", "中"]),
            "response": st.text(min_size=1, max_size=5).filter(str.isprintable).filter(str.strip),
        },
        optional={"images": st.lists(st.sampled_from(["a.png", "b.png"]), max_size=2), "id": st.sampled_from(["1", "2"])},
    )
    return draw(st.lists(row, min_size=1, max_size=4))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=datasets(), data=st.data())
def test_the_digest_knows_content_and_order_and_nothing_of_places(
    tmp_path: Path, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    if not (home / "a.png").exists():
        Image.new("RGB", (9, 9), "red").save(home / "a.png")
        Image.new("RGB", (9, 9), "blue").save(home / "b.png")
    away = tmp_path / "away" / "deep"
    shutil.copytree(home, away / "pictures", dirs_exist_ok=True)

    def digest(path: Path, image_root: Path | None = None) -> str:
        config = ValidationConfig(
            dataset=(str(path),), output=str(tmp_path / "out"), image_root=str(image_root) if image_root else None
        )
        return validate_dataset(config).digest

    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    here = digest(home / "data.jsonl")
    blank_lines = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    moved = "".join(
        "\n" * blank + json.dumps(row, ensure_ascii=False) + "\r\n" for blank, row in zip(blank_lines, rows, strict=True)
    )
    (away / "other.jsonl").write_text(moved, encoding="utf-8", newline="")
    assert digest(away / "other.jsonl", away / "pictures") == here
    (home / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    assert digest(home / "data.json") == here

    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]), encoding="utf-8")
    content = [{**row, "images": row.get("images", [])} for row in rows]
    assert (digest(home / "data.jsonl") == here) == (content == content[::-1])
    changed = [*rows[:-1], {**rows[-1], "response": rows[-1]["response"] + "!"}]
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    assert digest(home / "data.jsonl") != here


def test_the_digest_changes_with_an_image_and_not_with_rejected_lines(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate
) -> None:
    make_image("a.png", "red")
    row = {**GOOD, "images": ["a.png"]}
    digest = validate(write_rows(row)).summary.digest
    assert validate(write_rows("{", row, {"query": 7})).summary.digest == digest
    make_image("a.png", "blue")
    assert validate(write_rows(row)).summary.digest != digest


def test_no_record_at_all_is_a_report_and_no_exception(write_rows: WriteRows, validate: Validate) -> None:
    result = validate(write_rows("{", "[]"))
    assert (result.summary.num_records, result.summary.num_quarantined) == (0, 2)
    assert list(ValidatedDataset.open(str(result.folder))) == []
    assert pq.read_table(result.folder / "images.parquet").num_rows == 0


def test_validating_again_replaces_the_folder_and_gives_the_same_bytes(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate
) -> None:
    make_image("a.png")
    path = write_rows({**GOOD, "images": ["a.png"]}, "{", {**GOOD, "other": 1})
    first = validate(path)
    contents = {entry.name: entry.read_bytes() for entry in first.folder.iterdir()}
    assert {entry.name: entry.read_bytes() for entry in validate(path).folder.iterdir()} == contents
    write_rows(GOOD)
    assert len(validate(path).records) == 1


def test_an_output_folder_with_anything_else_in_it_is_refused_and_left_alone(
    tmp_path: Path, write_rows: WriteRows, validate: Validate
) -> None:
    path = write_rows(GOOD)
    output = tmp_path / "validated"
    output.mkdir()
    assert validate(path).summary.num_records == 1
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"validated: the folder holds notes\.txt, which is no result of `yivl validate`"):
        validate(path)
    (output / "notes.txt").unlink()
    (output / "report.json").write_text("{}")
    with pytest.raises(OutputError, match=r"the folder holds images\.parquet, which is no result"):
        validate(path)
    shutil.rmtree(output)
    output.write_text("mine")
    with pytest.raises(OutputError, match="this is a file; name a folder for the validated dataset"):
        validate(path)
    assert output.read_text() == "mine"


def test_a_dataset_is_not_read_from_the_folder_that_it_would_replace(
    tmp_path: Path, write_rows: WriteRows, validate: Validate
) -> None:
    folder = validate(write_rows(GOOD)).folder
    with pytest.raises(OutputError, match=r"the folder holds .*records\.jsonl, which is to be read; name another folder"):
        validate(folder / "records.jsonl")
    assert validate(folder / "records.jsonl", output="again").summary.num_records == 1


def test_wrong_settings_are_refused_before_anything_is_written(tmp_path: Path, write_rows: WriteRows, validate: Validate) -> None:
    path = write_rows(GOOD)
    with pytest.raises(ConfigurationError, match=r"nope\.jsonl: there is no such file"):
        validate(path, tmp_path / "nope.jsonl")
    with pytest.raises(ConfigurationError, match="nowhere: there is no such folder; check the image root"):
        validate(path, image_root=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"a\.txt: a dataset file has to end in"):
        validate(path, shutil.copy(path, tmp_path / "a.txt"))
    with pytest.raises(ConfigurationError, match="memory://out: the output of a validation has to be a folder on this machine"):
        validate_dataset(ValidationConfig(dataset=(str(path),), output="memory://out"))
    assert not (tmp_path / "validated").exists()


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("bug")])
def test_a_validation_that_is_stopped_leaves_the_old_result_and_no_rubbish(
    cause: BaseException, tmp_path: Path, write_rows: WriteRows, validate: Validate
) -> None:
    path = write_rows(GOOD)
    old = validate(path).records
    write_rows(*({"query": str(number), "response": "1"} for number in range(200)))

    def stop(_: Progress) -> None:
        raise cause

    config = ValidationConfig(dataset=(str(path),), output=str(tmp_path / "validated"))
    expected = StorageError if isinstance(cause, OSError) else type(cause)
    with pytest.raises(expected, match="the disk is full" if isinstance(cause, OSError) else None):
        validate_dataset(config, stop)
    assert [json.loads(line) for line in (tmp_path / "validated/records.jsonl").read_text().splitlines()] == old
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.jsonl", "validated"]


def test_progress_counts_records_up_to_all_of_them(tmp_path: Path, write_rows: WriteRows) -> None:
    path = write_rows(*({"query": str(number), "response": "1"} for number in range(119)), "{")
    seen: list[Progress] = []
    validate_dataset(ValidationConfig(dataset=(str(path),), output=str(tmp_path / "out")), seen.append)
    assert [progress.done for progress in seen] == [50, 100, 120]
    assert (seen[-1].stage, seen[-1].unit, seen[-1].total, seen[-1].figures) == ("validate", "record", None, {"rejected": 1.0})


def test_memory_does_not_grow_with_the_text_of_the_records(tmp_path: Path, write_rows: WriteRows) -> None:
    def peak_bytes(num_records: int) -> int:
        path = write_rows(*({"query": f"{number}" + "x" * 5000, "response": "1"} for number in range(num_records)))
        tracemalloc.start()
        validate_dataset(ValidationConfig(dataset=(str(path),), output=str(tmp_path / "out")))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak_bytes(10)
    assert peak_bytes(1000) - peak_bytes(200) < 800 * 1000  # a fifth of the text


def test_a_file_whose_name_is_not_utf8_can_be_reported(tmp_path: Path, write_rows: WriteRows, validate: Validate) -> None:
    path = write_rows("{", GOOD).rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")))
    result = validate(path)
    assert result.quarantine[0]["file"] == f"{tmp_path}/\\xff.jsonl"
    assert result.records[0]["validated"]["file"] == f"{tmp_path}/\\xff.jsonl"


def test_the_sample_of_receipt_lines_is_clean(shared_data: Path, validate: Validate) -> None:
    folder = shared_data / "data/sroie_lines/sample"
    result = validate(folder / "train.jsonl", folder / "val.jsonl")
    assert result.summary.num_records == result.summary.num_lines > 300
    assert result.summary.num_errors == 0


def test_two_validations_into_one_folder_do_not_meet(
    write_rows: WriteRows, validate: Validate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(GOOD)
    output = Path(validate(rows).summary.output)
    (output.parent / f".{output.name}.tmp-0123456789ab").mkdir()
    monkeypatch.setattr("yivl_core.locks._LOCK_TIMEOUT_S", 0.1)
    with sole_publisher(output), pytest.raises(BusyError, match="another process works in this folder"):
        validate(rows)
    assert validate(rows).summary.num_records == 1
    assert not list(output.parent.glob(f".{output.name}.*"))


def test_a_pattern_does_not_take_in_the_result_of_the_validation_before(
    tmp_path: Path, write_rows: WriteRows, validate: Validate
) -> None:
    write_rows(GOOD, name="sets/a/data.jsonl")
    pattern = tmp_path / "sets/*/*.jsonl"
    validate(pattern, output="sets/validated")
    before = (tmp_path / "sets/validated/records.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"the folder holds .*sets/validated/quarantine\.jsonl, which is to be read"):
        validate(pattern, output="sets/validated")
    assert (tmp_path / "sets/validated/records.jsonl").read_bytes() == before


def test_a_limit_of_tokens_without_a_model_that_counts_them_is_refused() -> None:
    with pytest.raises(ValidationError, match="`max_length` is a number of tokens; give the `model` with whose tokenizer"):
        ValidationConfig(dataset=("a.jsonl",), output="out", max_length=100)


def test_an_output_whose_name_no_file_of_it_could_hold_is_refused(write_rows: WriteRows, validate: Validate) -> None:
    with pytest.raises(OutputError, match=r"out\\xff: the path is not UTF-8; rename the folder"):
        validate(write_rows(GOOD), output=os.fsdecode(b"out\xff"))
