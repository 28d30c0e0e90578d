import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yivl_core.data.images import ImageError, ImageReference, ImageStore
from yivl_core.data.inputs import InputSource, input_digest, open_input
from yivl_core.data.reading import InputRow, Source, read_rows
from yivl_core.data.records import Record
from yivl_core.errors import ConfigurationError, DatasetError


def write_json_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = sorted({name for row in rows for name in row} | {"query"})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


WORDS = st.text(alphabet='ab,"\n;中\u2028😀', min_size=1, max_size=6).filter(str.strip)
ROWS = st.fixed_dictionaries(
    {"query": WORDS},
    optional={
        "response": WORDS,
        "history": st.lists(st.lists(WORDS, min_size=2, max_size=2), max_size=2),
        "images": st.lists(st.just("a.png"), max_size=1),
        "system": WORDS,
        "id": WORDS,
        "references": st.lists(WORDS, max_size=2),
        "meta": st.dictionaries(WORDS, st.integers() | WORDS, max_size=2),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=4))
def test_the_three_forms_hold_the_same_records(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    files = [
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_json_list(tmp_path / "a.json", rows),
        write_csv(tmp_path / "a.csv", rows),
    ]
    records = [[row.record for row in read_rows(str(file))] for file in files]
    assert records[0] == records[1] == records[2]
    assert [record and record.query for record in records[0]] == [row["query"] for row in rows]


def test_a_defective_row_is_a_row_and_none_is_lost(shared_data: Path) -> None:
    folder = shared_data / "data/bad_jsonl"
    manifest = json.loads((folder / "mixed.manifest.json").read_text())
    source = InputSource(dataset=str(folder / "mixed.jsonl"), image_root=str(folder))
    rows = list(open_input(source).rows())
    blank = [entry["line"] for entry in manifest["expect"] if entry["kind"] == "blank_line"]
    assert [row.source.line for row in rows] == [line for line in range(1, 77) if line not in blank]
    for row in rows:
        assert (row.record is None) == (row.error_kind is not None) == (row.error is not None)
    # All defects but those of images show in reading; a missing response is none for inference.
    expected = {entry["line"]: entry["kind"] for entry in manifest["expect"] if entry["severity"] == "error"}
    late = {"image_missing", "image_unreadable", "path_escape", "url_not_allowed"}
    allowed_for_inference = {13, 19, 23}
    found = {row.source.line: row.error_kind for row in rows if row.record is None}
    assert found == {line: kind for line, kind in expected.items() if kind not in late and line not in allowed_for_inference}
    store, late_kinds = ImageStore(), {}
    for row in rows:
        for image in row.images if row.record else ():
            try:
                store.load(image)
            except ImageError as error:
                late_kinds[row.source.line] = error.kind
    assert late_kinds == {
        47: "image_missing",
        48: "not_a_file",
        50: "not_an_image",
        51: "image_missing",
        **dict.fromkeys((52, 54, 56, 57), "path_escape"),
        **dict.fromkeys((59, 61), "url_not_allowed"),
    }


def test_images_are_looked_up_beside_the_file_or_under_the_root_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = write_jsonl(tmp_path / "sub/a.jsonl", [{"query": "<image> or <image>", "images": ["b.png", "c.png"]}])
    (row,) = read_rows(str(path))
    assert row.images == tuple(ImageReference(uri=a, address=a, root=tmp_path / "sub") for a in ("b.png", "c.png"))
    (row,) = read_rows(str(path), image_root=str(tmp_path))
    assert {image.root for image in row.images} == {tmp_path}


def test_training_needs_a_response_and_inference_does_not(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"query": "a"}]))
    assert [row.error_kind for row in read_rows(path)] == [None]
    (row,) = read_rows(path, purpose="training")
    assert row.error_kind == "missing_field"
    assert row.error == "there is no `response`; add it, or validate for inference, which needs none"
    assert row.text == '{"query": "a"}'


def test_the_line_limit_is_the_callers(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"query": "a" * 2000}]))
    assert [row.error_kind for row in read_rows(path, max_line_bytes=1000)] == ["line_too_long"]
    assert [row.error_kind for row in read_rows(path)] == [None]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_file_without_a_record_stops_inference_and_names_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\n")
    with pytest.raises(DatasetError, match=rf"a{suffix}: the file holds no record; write one record a line"):
        list(open_input(InputSource(dataset=str(path))).rows())


def test_wrong_places_are_refused_at_once_by_name(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"query": "a"}]))
    with pytest.raises(ConfigurationError, match=r"nope\.jsonl: there is no such file; check the path"):
        open_input(InputSource(dataset=str(tmp_path / "nope.jsonl"))).rows()
    with pytest.raises(ConfigurationError, match="nowhere: there is no such folder; check the image root"):
        open_input(InputSource(dataset=path, image_root=str(tmp_path / "nowhere"))).rows()
    (tmp_path / "a.txt").touch()
    with pytest.raises(
        ConfigurationError, match=r"a\.txt: a dataset file has to end in \.jsonl, \.json, \.csv, \.tsv, \.parquet, or in"
    ):
        open_input(InputSource(dataset=str(tmp_path / "a.txt"))).rows()
    with pytest.raises(ConfigurationError, match="this is a folder; name the jsonl, json, csv, tsv or parquet file in it"):
        read_rows(str(tmp_path))
    with pytest.raises(DatasetError, match="this is not a validated dataset; make one with `yivl validate FILE --output"):
        open_input(InputSource(dataset=str(tmp_path))).rows()
    with pytest.raises(ConfigurationError, match="no input is named; give `dataset`, or `images` and `prompt`"):
        open_input(InputSource()).rows()
    with pytest.raises(ConfigurationError, match="a dataset file has to end in"):
        open_input(InputSource(dataset=str(shutil.copy(path, tmp_path / "a.txt")))).rows()


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ConfigurationError, match="there is no such file"):
        read_rows(str(tmp_path / "a.jsonl"))


def test_each_image_of_a_folder_is_a_row_with_the_prompt(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("photos/b/2.png")
    make_image("photos/1.png")
    (tmp_path / "photos" / "zero.png").touch()
    (tmp_path / "photos" / "really.jpg").write_text("<svg/>")
    rows = list(open_input(InputSource(images=str(tmp_path / "photos"), prompt="What is it?")).rows())
    names = ["1.png", "b/2.png", "really.jpg", "zero.png"]
    assert [row.record for row in rows] == [Record(query="What is it?", images=(name,)) for name in names]
    assert [str(row.source) for row in rows] == [f"{tmp_path}/photos/{name}" for name in names]
    kinds: list[str | None] = []
    for row in rows:
        try:
            ImageStore().load(row.images[0])
            kinds.append(None)
        except ImageError as error:
            kinds.append(error.kind)
    assert kinds == [None, None, "unsupported_format", "empty"]


def test_of_the_awkward_files_each_is_a_row_and_has_its_outcome(shared_data: Path) -> None:
    manifest = json.loads((shared_data / "data/awkward/manifest.json").read_text(encoding="utf-8"))
    expected = {
        Path(entry["file"]).name: entry["kind"] if entry["expect"] == "reject" else None
        for entry in manifest["files"]
        if entry["expect"] != "ignore"
    }
    outcomes: dict[str, str | None] = {}
    store = ImageStore()
    for row in open_input(InputSource(images=str(shared_data / "data/awkward/files"), prompt="Read it.")).rows():
        (image,) = row.images
        outcomes[image.uri] = None
        try:
            store.load(image)
        except ImageError as error:
            outcomes[image.uri] = error.kind
    assert outcomes == expected
    assert len(outcomes) == 27


def test_names_that_only_tests_can_make_are_rows_too(make_image: Callable[..., Path], tmp_path: Path) -> None:
    image = make_image("photos/new\nline.png")
    shutil.copy(image, os.fsdecode(os.fsencode(tmp_path / "photos") + b"/\xff\xfe.png"))
    os.mkfifo(tmp_path / "photos/pipe.png")
    (tmp_path / "photos/out.png").symlink_to(make_image("outside.png"))
    (tmp_path / "photos/loop").symlink_to(".", target_is_directory=True)
    rows = list(open_input(InputSource(images=str(tmp_path / "photos"), prompt="Read it.")).rows())
    assert [row.record and row.record.images for row in rows] == [("new\nline.png",), ("out.png",), ("pipe.png",), None]
    assert ImageStore().load(rows[0].images[0]).info.path == str(image)
    for row, kind in zip(rows[1:3], ("path_escape", "not_a_file"), strict=True):
        with pytest.raises(ImageError) as caught:
            ImageStore().load(row.images[0])
        assert caught.value.kind == kind
    assert rows[3].error == "the file name '\\udcff\\udcfe.png' is not UTF-8; rename the file"
    assert rows[3].error_kind == "bad_unicode"
    assert rows[3].source == Source(file=f"{tmp_path}/photos/\\xff\\xfe.png")


def test_a_prompt_that_cannot_be_asked_of_one_image_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ConfigurationError, match="`images` are named without a `prompt` or `task`"):
        open_input(InputSource(images=str(tmp_path))).rows()
    with pytest.raises(ConfigurationError, match=r'prompt "<image> or <image>\?": 2 <image> tag\(s\)'):
        open_input(InputSource(images=str(tmp_path), prompt="<image> or <image>?")).rows()
    with pytest.raises(ConfigurationError, match=r"`image_root` .* goes with a `dataset` or a list of images, not with a folder"):
        open_input(InputSource(images=str(tmp_path), prompt="a", image_root=str(tmp_path))).rows()
    (row,) = open_input(InputSource(images=str(tmp_path), prompt="Read <image>.")).rows()
    assert row.record is not None


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_limit_takes_the_first_rows(tmp_path: Path, limit: int) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": str(number)} for number in range(3)])
    rows = list(open_input(InputSource(dataset=str(path), limit=limit)).rows())
    assert [row.record and row.record.query for row in rows] == ["0", "1", "2"][:limit]


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": str(number)} for number in range(50_000)])
    rows = open_input(InputSource(dataset=str(path))).rows()
    assert next(rows).record == Record(query="0")
    path.write_bytes(b"")
    read = sum(1 for _ in rows)
    assert 0 < read < 20_000


def digest_of(**settings: Any) -> str:
    return input_digest(InputSource(**settings))


def test_the_digest_of_a_file_is_that_of_its_rows_wherever_it_lies(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "a"}, {"query": "b"}])
    copy = shutil.copy(path, tmp_path / "b.jsonl")
    digest = digest_of(dataset=str(path))
    assert digest_of(dataset=str(copy)) == digest == digest_of(dataset=str(path), limit=2)
    assert digest_of(dataset=str(write_json_list(tmp_path / "a.json", [{"query": "a"}, {"query": "b"}]))) == digest
    others = {digest, digest_of(dataset=str(path), limit=1)}
    for rows in (
        [{"query": "b"}, {"query": "a"}],
        [{"query": "a"}, {"query": "b", "system": ""}],
        [{"query": "a"}, {"quarry": "b"}],
    ):
        others.add(digest_of(dataset=str(write_jsonl(path, rows))))
    assert len(others) == 5


@pytest.mark.parametrize("write", [write_jsonl, write_json_list, write_csv])
def test_the_digest_of_a_file_changes_with_the_images_that_it_names(
    make_image: Callable[..., Path], tmp_path: Path, write: Callable[..., Path]
) -> None:
    suffix = {write_jsonl: "jsonl", write_json_list: "json", write_csv: "csv"}[write]
    rows = [{"query": "a", "images": ["a.png"]}, {"query": "both", "images": ["a.png", "sub/b.png"]}]
    dataset = str(write(tmp_path / f"rows.{suffix}", rows))
    make_image("a.png")
    digests = [digest_of(dataset=dataset)]  # one image is missing
    image = make_image("sub/b.png")
    digests.append(digest_of(dataset=dataset))
    assert digest_of(dataset=dataset) == digests[-1]
    os.utime(image, ns=(0, 1))
    digests.append(digest_of(dataset=dataset))
    os.utime(image, ns=(0, 2))
    digests.append(digest_of(dataset=dataset))
    image.write_bytes(image.read_bytes() + b"more")
    os.utime(image, ns=(0, 2))
    digests.append(digest_of(dataset=dataset))
    assert len(set(digests)) == 5
    image.unlink()
    assert digest_of(dataset=dataset) == digests[0]


def test_images_are_swapped_between_rows_not_without_notice(make_image: Callable[..., Path], tmp_path: Path) -> None:
    dataset = str(write_jsonl(tmp_path / "rows.jsonl", [{"query": "a", "images": [name]} for name in ("a.png", "b.png")]))
    os.utime(make_image("a.png"), ns=(0, 1))
    os.utime(make_image("b.png"), ns=(0, 2))
    digest = digest_of(dataset=dataset)
    os.utime(tmp_path / "a.png", ns=(0, 2))
    os.utime(tmp_path / "b.png", ns=(0, 1))
    assert digest_of(dataset=dataset) != digest


def test_behind_the_limit_images_do_not_count(make_image: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"query": "a", "images": [name]} for name in ("a.png", "b.png", "c.png")]
    dataset = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    make_image("a.png")
    digests = {limit: digest_of(dataset=dataset, limit=limit) for limit in (1, 2, 3)}
    make_image("b.png")
    assert [digest_of(dataset=dataset, limit=limit) == digests[limit] for limit in (1, 2, 3)] == [True, False, False]


def test_the_digest_looks_for_images_below_the_root_that_is_named(make_image: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    dataset = str(write_jsonl(tmp_path / "rows.jsonl", [{"query": "a", "images": ["a.png"]}]))
    root = str(tmp_path / "photos")
    missing = digest_of(dataset=dataset)
    assert digest_of(dataset=dataset, image_root=root) == missing
    make_image("photos/a.png")
    assert digest_of(dataset=dataset) == missing
    found = digest_of(dataset=dataset, image_root=root)
    assert found != missing
    make_image("a.png")
    assert digest_of(dataset=dataset, image_root=root) == found


def test_images_that_cannot_be_used_count_as_such_and_none_is_opened(
    make_image: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused is not looked at either: a file outside the root may change as it likes."""
    addresses = ["gone.png", "../out.png", "s3://b/c.png", "nul\0.png", "\ud800.png", "", "folder", "pipe.png", "x" * 300, "loop"]
    rows: list[dict[str, Any]] = [{"query": "a", "images": [address]} for address in addresses]
    path = tmp_path / "rows/rows.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"query": 1, "images": ["a.png"]}]) + "{broken\n")
    outside = make_image("out.png")
    (path.parent / "folder").mkdir()
    os.mkfifo(path.parent / "pipe.png")
    (path.parent / "loop").symlink_to("loop")
    monkeypatch.setattr(ImageStore, "load", lambda *_: pytest.fail("an image was opened"))
    digest = digest_of(dataset=str(path))
    os.utime(outside, ns=(0, 0))
    assert digest_of(dataset=str(path)) == digest
    (path.parent / "pipe.png").unlink()
    shutil.copy(outside, path.parent / "pipe.png")
    assert digest_of(dataset=str(path)) != digest


def test_the_right_to_read_an_image_counts(
    make_image: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the system, since giving it changes neither size nor time; who runs the tests may have all rights."""
    dataset = str(write_jsonl(tmp_path / "rows.jsonl", [{"query": "a", "images": ["a.png"]}]))
    image = make_image("a.png")
    readable = digest_of(dataset=dataset)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (image, os.R_OK))
        assert digest_of(dataset=dataset) != readable
    assert digest_of(dataset=dataset) == readable


def test_images_that_a_validation_has_noted_count_by_that_note(
    make_image: Callable[..., Path], write_rows: Callable[..., Path], validate: Callable[..., Any], tmp_path: Path
) -> None:
    image = make_image("a.png")
    validated = validate(write_rows({"query": "a", "response": "1", "images": ["a.png"]}))
    held_out = str(shutil.copy(validated.folder / "records.jsonl", tmp_path / "val.jsonl"))
    digest = digest_of(dataset=held_out)
    os.utime(image, ns=(0, 0))
    assert digest_of(dataset=held_out) == digest
    image.rename(tmp_path / "elsewhere.png")
    assert digest_of(dataset=held_out) == digest


def test_a_file_that_holds_no_records_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    with pytest.raises(DatasetError, match=r"a\.jsonl: the file holds no record"):
        digest_of(dataset=str(tmp_path / "a.jsonl"))
    with pytest.raises(ConfigurationError, match="no input is named"):
        digest_of()


def test_the_digest_of_a_folder_of_images_changes_with_what_is_in_it(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("photos/1.png")
    shutil.copy(tmp_path / "photos/1.png", os.fsdecode(os.fsencode(tmp_path / "photos") + b"/\xff.png"))
    photos = str(tmp_path / "photos")
    digests = {
        digest_of(images=photos, prompt="a"),
        digest_of(images=photos, prompt="b"),
        digest_of(images=photos, prompt="a", limit=1),
    }
    assert digest_of(images=photos, prompt="a") in digests
    os.utime(tmp_path / "photos/1.png", ns=(0, 0))
    digests.add(digest_of(images=photos, prompt="a"))
    make_image("photos/2.png")
    digests.add(digest_of(images=photos, prompt="a"))
    assert len(digests) == 5
    (tmp_path / "photos" / ".hidden.png").touch()
    assert digest_of(images=photos, prompt="a") in digests


def test_a_source_names_file_and_line() -> None:
    assert str(Source(file="train.jsonl", line=418)) == "train.jsonl:418"
    assert str(Source(file="train.jsonl")) == "train.jsonl"
    assert InputRow(source=Source(file="a", line=1)).error is None


def test_of_a_folder_the_images_up_to_the_limit_count_and_links_by_what_they_lead_to(
    make_image: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / ".hidden").mkdir()
    target = make_image("b.png").rename(tmp_path / ".hidden" / "b.png")
    make_image("a.png")
    (tmp_path / "b.png").symlink_to(target)
    source = InputSource(images=str(tmp_path), prompt="What?", limit=2)
    digest = input_digest(source)
    os.utime(target, (1, 1))
    changed = input_digest(source)
    assert changed != digest
    make_image("c.png")
    assert input_digest(source) == changed
    assert input_digest(source.model_copy(update={"limit": None})) != changed
    target.unlink()
    assert input_digest(source) not in (digest, changed)
