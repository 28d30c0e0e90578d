import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yivl_core.data.dataset import ValidatedDataset, is_validated_dataset, write_records
from yivl_core.data.findings import Source
from yivl_core.data.images import ImageError, ImageStore
from yivl_core.data.inputs import InputSource, input_digest, open_input
from yivl_core.data.reading import read_rows
from yivl_core.data.records import Record
from yivl_core.errors import DatasetError


@pytest.fixture
def folder(make_image: Callable[..., Path], write_rows: Callable[..., Path], validate: Callable[..., Any]) -> Path:
    """A validated dataset of three records; the second line of its file is broken."""
    make_image("input/scans/a.png", "red")
    make_image("input/scans/b.png", "blue", size=(20, 10))
    path = write_rows(
        {"query": "Read it.", "response": "1", "images": ["scans/a.png"], "id": "first", "page": 3},
        "{",
        {"query": "And now?", "response": "2", "history": [["Hi", "Hello"]], "images": [None, "scans/b.png"], "system": ""},
        {"query": "<image> or <image>?", "response": "3", "images": ["scans/b.png", "scans/a.png"], "references": ["three"]},
        name="input/train.jsonl",
    )
    result: Path = validate(path).folder
    return result


def test_records_come_back_as_they_were_written_with_their_sources_and_images(folder: Path) -> None:
    dataset = ValidatedDataset.open(str(folder))
    first, second, third = dataset
    assert first.record == Record(query="Read it.", response="1", images=("scans/a.png",), id="first", meta={"page": 3})
    assert second.record.system == ""
    assert second.record.images == (None, "scans/b.png")
    train = folder.parent / "input/train.jsonl"
    assert [validated.source for validated in (first, second, third)] == [Source(file=str(train), line=n) for n in (1, 3, 4)]
    assert [image.uri for image in third.images] == ["scans/b.png", "scans/a.png"]
    assert [(image.width, image.height) for image in third.images] == [(20, 10), (12, 9)]
    assert third.images[1] == first.images[0]
    assert first.images[0].path == str(folder.parent / "input/scans/a.png")
    assert (dataset.num_records, dataset.purpose) == (3, "training")


def test_a_validated_dataset_is_an_input_whose_images_are_found(folder: Path) -> None:
    rows = list(open_input(InputSource(dataset=str(folder))).rows())
    assert [row.record for row in rows] == [validated.record for validated in ValidatedDataset.open(str(folder))]
    assert [row.source.line for row in rows] == [1, 3, 4]
    colours = [ImageStore().load(image).image.getpixel((0, 0)) for row in rows for image in row.images]
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]
    assert input_digest(InputSource(dataset=str(folder))) != input_digest(InputSource(dataset=str(folder), limit=1))


def test_held_out_rows_are_read_back_after_their_folder_was_moved(folder: Path, tmp_path: Path) -> None:
    dataset = list(ValidatedDataset.open(str(folder)))
    (tmp_path / "run").mkdir()
    write_records(tmp_path / "run/val.jsonl", dataset[1:])
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    path = tmp_path / "elsewhere/val.jsonl"
    rows = list(open_input(InputSource(dataset=str(path))).rows())
    assert [row.record for row in rows] == [validated.record for validated in dataset[1:]]
    assert [row.findings for row in rows] == [(), ()]
    assert [row.source for row in rows] == [Source(file=str(path), line=1), Source(file=str(path), line=2)]
    infos = [ImageStore().load(image).info for row in rows for image in row.images]
    assert infos == [image for validated in dataset[1:] for image in validated.images]


def test_held_out_rows_find_their_images_under_a_new_root(folder: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "val.jsonl", ValidatedDataset.open(str(folder)))
    (tmp_path / "input").rename(tmp_path / "moved")
    source = InputSource(dataset=str(tmp_path / "val.jsonl"))
    image = next(open_input(source).rows()).images[0]
    with pytest.raises(ImageError, match=r'image "scans/a\.png" is not there'):
        ImageStore().load(image)
    for dataset in (str(tmp_path / "val.jsonl"), str(folder)):
        rows = list(open_input(InputSource(dataset=dataset, image_root=str(tmp_path / "moved"))).rows())
        assert len([ImageStore().load(image) for row in rows for image in row.images]) == 4


def test_held_out_rows_validated_again_are_the_same_dataset(folder: Path, tmp_path: Path, validate: Callable[..., Any]) -> None:
    write_records(tmp_path / "val.jsonl", ValidatedDataset.open(str(folder)))
    again = validate(tmp_path / "val.jsonl", output="again")
    assert again.findings == []
    assert again.summary.digest == ValidatedDataset.open(str(folder)).digest


def forged(path: Path, sha256: str) -> dict[str, Any]:
    image = {"path": str(path), "sha256": sha256, "width": 1, "height": 1, "mode": "L", "num_bytes": 1}
    return {"query": "q", "response": "r", "images": ["a.png"], "validated": {"file": "x", "line": 1, "images": [image]}}


@pytest.mark.parametrize("outside", ["/etc/passwd", "IMAGE"])
def test_a_note_opens_no_file_whose_content_its_writer_does_not_know(
    outside: str, make_image: Callable[..., Path], write_rows: Callable[..., Path], validate: Callable[..., Any]
) -> None:
    target = make_image("private/secret.png") if outside == "IMAGE" else Path(outside)
    path = write_rows(forged(target, "0" * 64), name="data/forged.jsonl")
    (row,) = read_rows(str(path))
    with pytest.raises(ImageError) as caught:
        ImageStore().load(row.images[0])
    assert caught.value.kind == "image_changed"
    assert [(entry["kind"], entry["detail"]) for entry in validate(path).quarantine] == [("image_unreadable", "image_changed")]


def test_a_note_of_another_shape_is_a_users_field_and_a_wrong_one_an_error(write_rows: Callable[..., Path]) -> None:
    wrong = forged(Path("/a.png"), "0" * 64)
    wrong["images"] = []
    path = write_rows({"query": "q", "validated": True}, wrong)
    users, broken = read_rows(str(path))
    assert users.record is not None
    assert users.record.meta == {"validated": True}
    assert broken.error == ("`validated` tells of 1 image(s), the record names 0; leave `validated` out, and give the image root")


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"format": "other"}'])
def test_what_is_no_validated_dataset_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
        (tmp_path / "records.jsonl").touch()
    assert not is_validated_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match=f"{tmp_path}: this is not a validated dataset; make one with `yivl validate"):
        ValidatedDataset.open(str(tmp_path))


def test_another_versions_dataset_is_refused(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**report, "version": 99}))
    assert is_validated_dataset(str(folder))
    with pytest.raises(DatasetError, match=r"validated by another version of yivl \(format 99, this one reads 1\); run"):
        ValidatedDataset.open(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace('"response": "1"', '"response": "7"'),
            r"records\.jsonl: records were changed after validation",
        ),
        (lambda text: text + text.splitlines()[0] + "\n", r"records\.jsonl: records were changed after validation"),
        (lambda text: text.replace("{", "", 1), r"records\.jsonl:1: this line was changed after validation; run `yivl validate`"),
        (lambda text: text + "{}\n", r"records\.jsonl:4: this line was changed after validation"),
        (lambda text: text + "7\n", r"records\.jsonl:4: this line was changed after validation"),
    ],
)
def test_records_edited_by_hand_are_noticed(folder: Path, change: Callable[[str], str], message: str) -> None:
    path = folder / "records.jsonl"
    path.write_text(change(path.read_text()))
    with pytest.raises(DatasetError, match=message):
        list(ValidatedDataset.open(str(folder)))


def test_records_that_are_no_text_any_more_are_noticed(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Read it.", b"Read\xffit."))
    with pytest.raises(DatasetError, match="records were changed after validation; run `yivl validate` again"):
        list(ValidatedDataset.open(str(folder)))


def test_the_folder_may_be_moved(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "new place")
    rows = list(open_input(InputSource(dataset=str(tmp_path / "new place"))).rows())
    assert len([ImageStore().load(image) for row in rows for image in row.images]) == 4


def test_writing_held_out_rows_is_one_step(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    path.write_text("old")

    def failing() -> Any:
        yield from ValidatedDataset.open(str(folder))
        raise DatasetError("stop")

    with pytest.raises(DatasetError, match="stop"):
        write_records(path, failing())
    assert path.read_text() == "old"
    assert not [name for name in tmp_path.iterdir() if ".tmp-" in name.name]
