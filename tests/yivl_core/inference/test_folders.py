"""Image folders of any kind as an annotator runs them: wherever they lie, shared between workers, broken off and gone on with."""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from yivl_core.errors import ConfigurationError, DatasetError, OutputError, StorageError
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary
from yivl_core.inference.preparation import preparing
from yivl_core.outputs.manifest import read_manifest
from yivl_core.outputs.predictions import Prediction, list_parts, read_predictions
from yivl_core.progress import Progress

Infer = Callable[..., InferenceSummary]
NUM_IMAGES = 14
ASK = {"prompt": "What is it?", "shard_size": 4, "batch_size": 3}


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 14, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fourteen images in two folders, of which two are equal, and one that is cut off."""
    for number in range(NUM_IMAGES):
        draw(tmp_path / "scans" / f"{number % 2}" / f"{number:02d}.png", 0 if number == 9 else number)
    cut = tmp_path / "scans" / "1" / "05.png"
    cut.write_bytes(cut.read_bytes()[:60])
    return tmp_path / "scans"


def rows(summary: InferenceSummary) -> list[Prediction]:
    return list(read_predictions(summary.output))


def answers(summary: InferenceSummary) -> list[tuple[Any, ...]]:
    """What was answered to which content, whatever the images are called."""
    return [(row.sample_id, row.response, row.error_kind, [image.width for image in row.images]) for row in rows(summary)]


# The same images, however they are named


def test_a_folder_gives_a_row_for_each_image_and_counts_errors_by_kind(infer: Infer, folder: Path) -> None:
    summary = infer(images=str(folder), **ASK)
    found = rows(summary)
    assert [row.images[0].uri for row in found] == [f"{n % 2}/{n:02d}.png" for n in (*range(0, 14, 2), *range(1, 14, 2))]
    assert (summary.num_records, summary.num_failed, summary.num_by_error_kind) == (NUM_IMAGES, 1, {"truncated": 1})
    assert [row.error_kind for row in found if row.images[0].uri == "1/05.png"] == ["truncated"]
    assert [row.sample_id for row in found if row.images[0].uri in ("0/00.png", "1/09.png")] == [
        found[0].sample_id, f"{found[0].sample_id}#2",
    ]  # fmt: skip
    manifest = read_manifest(f"{summary.output}/manifest.json")
    assert manifest is not None
    assert manifest["errors"] == {"truncated": 1}
    assert manifest["data"]["prompt"] == "What is it?"


def in_memory(folder: Path, _: Path) -> str:
    store = fsspec.filesystem("memory")
    for path in folder.rglob("*.png"):
        store.pipe_file(f"/scans/{path.relative_to(folder)}", path.read_bytes())
    return "memory://scans"


def as_list(folder: Path, place: Path) -> str:
    (place / "list.txt").write_text("\n".join(sorted(str(path.relative_to(place)) for path in folder.rglob("*.png"))))
    return str(place / "list.txt")


def as_parquet(folder: Path, place: Path) -> str:
    images = [{"bytes": path.read_bytes(), "path": str(path.relative_to(folder))} for path in sorted(folder.rglob("*.png"))]
    pq.write_table(pa.table({"image": images}), place / "scans.parquet")
    return str(place / "scans.parquet")


INPUTS: dict[str, Callable[[Path, Path], str]] = {
    "glob": lambda folder, _: f"{folder}/**/*.png",
    "memory": in_memory,
    "list": as_list,
    "parquet": as_parquet,
}


@pytest.mark.parametrize("kind", INPUTS)
def test_the_same_images_give_the_same_answers_from_anywhere(kind: str, infer: Infer, folder: Path, tmp_path: Path) -> None:
    expected = answers(infer(images=str(folder), **ASK))
    settings = {"images": INPUTS[kind](folder, tmp_path), "output": kind, **ASK}
    with pytest.raises(KeyboardInterrupt):
        infer(**settings, on_progress=stop_at("infer", 6))
    assert answers(infer(**settings, resume=True)) == expected
    shutil.rmtree(tmp_path / kind / "predictions")
    for number in range(4):  # as workers do them, by the plan alone
        summary = infer(**settings, resume=True, as_planned=True, shard_indices=(3 - number,))
        assert summary.num_records == (2, 4, 4, NUM_IMAGES)[number]
    assert answers(summary) == expected


def stop_at(stage: str, done: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.stage == stage and progress.done == done:
            raise KeyboardInterrupt

    return stop


# Shared, resumed, refused


def test_parts_done_by_hand_make_the_whole(infer: Infer, folder: Path, tmp_path: Path) -> None:
    whole = infer(images=str(folder), **ASK)
    for number, done in ((3, 1), (1, 3), (2, 4)):
        summary = infer(images=str(folder), output="shared", shard=f"{number}/3", **ASK)
        assert summary.num_shards_done == done
        assert (summary.content_digest is None) == (number != 2)
    assert summary.content_digest == whole.content_digest
    assert list_parts(str(tmp_path / "shared")) == [f"part-{number:05d}.parquet" for number in range(4)]
    assert infer(images=str(folder), output="shared", shard="2/3", **ASK).content_digest == whole.content_digest
    with pytest.raises(OutputError, match="shard_size was 4 and is 5"):
        infer(images=str(folder), output="shared", shard="1/3", **{**ASK, "shard_size": 5})


def test_more_workers_than_shards_do_no_harm(infer: Infer, folder: Path) -> None:
    assert infer(images=str(folder), shard="9/9", **ASK).num_records == 0
    assert infer(images=str(folder), resume=True, **ASK).num_shards_done == 4


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "1/0", "a/b", "1/3/3", "-1/3", ""])
def test_a_part_that_cannot_be_is_refused(part: str) -> None:
    with pytest.raises(ValidationError, match="write i/n: 1/4, 2/4, 3/4 and 4/4 share the work between four"):
        InferenceConfig(model="m", images="i", prompt="p", output="o", shard=part)


def test_a_folder_that_was_changed_is_refused_and_the_changes_are_named(infer: Infer, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        infer(images=str(folder), on_progress=stop_at("infer", 6), **ASK)
    draw(folder / "0" / "00a.png", 77)
    draw(folder / "2" / "x.png", 78)
    (folder / "1" / "03.png").unlink()
    draw(folder / "1" / "07.png", 79)
    with pytest.raises(OutputError) as caught:
        infer(images=str(folder), resume=True, **ASK)
    for told in ("1 image was changed, the first is '1/07.png'", "1 image is gone, the first is '1/03.png'",
                 "2 images are new, the first is '0/00a.png'", "data.digest was"):  # fmt: skip
        assert told in str(caught.value)
    summary = infer(images=str(folder), resume=True, as_planned=True, **ASK)
    assert (summary.num_records, summary.num_by_error_kind) == (
        NUM_IMAGES,
        {"image_changed": 1, "image_missing": 1, "truncated": 1},
    )
    assert "0/00a.png" not in [row.images[0].uri for row in rows(summary)]


def test_a_dataset_that_was_changed_is_noticed_by_who_keeps_to_the_plan(infer: Infer, dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "rows.jsonl"
    lines = (dataset / "records.jsonl").read_text().splitlines(keepends=True)
    copy.write_text("".join(lines))
    infer(dataset=str(copy), shard_indices=(0,), shard_size=4)
    copy.write_text("".join([*lines[:5], lines[5].replace("What is it?", "What was it?"), *lines[6:]]))
    settings = {"dataset": str(copy), "shard_size": 4, "resume": True, "as_planned": True}
    with pytest.raises(DatasetError, match="records 4 to 7 are not those that were planned; the dataset was changed"):
        infer(shard_indices=(1,), **settings)
    infer(shard_indices=(2,), **settings)
    with pytest.raises(OutputError, match=r"data\.digest was"):
        infer(dataset=str(copy), shard_size=4, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "Why?"}, r'data\.prompt was "What is it\?" and is "Why\?"'),
        ({"prompt": None, "task": "ocr"}, r'data\.prompt was "What is it\?" and is "Write down all text'),
        ({"limit": 9}, r"data\.limit was null and is 9"),
    ],
)
def test_another_question_is_refused_by_name(settings: dict[str, Any], message: str, infer: Infer, folder: Path) -> None:
    infer(images=str(folder), shard_indices=(), **ASK)
    for kept in ({}, {"as_planned": True}):
        with pytest.raises(OutputError, match=message):
            infer(images=str(folder), resume=True, **{**ASK, **settings, **kept})


# What goes wrong


def test_a_run_with_too_many_failures_stops_and_goes_on_when_more_are_allowed(infer: Infer, folder: Path) -> None:
    whole = infer(images=str(folder), output="whole", **ASK)
    for name in ("0/06.png", "1/01.png"):
        shutil.copyfile(folder / "1" / "05.png", folder / name)
    message = (
        r"2 rows have failed, more than max_failures 1 allows \(2 truncated\); the first: .*06\.png: .* Mend the input or resume"
    )
    with pytest.raises(DatasetError, match=message):
        infer(images=str(folder), max_failures=1, **ASK)
    done = infer(images=str(folder), shard_indices=(), resume=True, **ASK)
    assert done.num_shards_done == 1
    with pytest.raises(DatasetError, match=r"2 rows have failed"):
        infer(images=str(folder), max_failures=1, resume=True, **ASK)
    summary = infer(images=str(folder), max_failures=3, resume=True, **ASK)
    assert summary.num_failed == 3
    (Path(summary.output) / "predictions" / "part-00003.parquet").unlink()
    with pytest.raises(DatasetError, match=r"3 rows have failed, .* allows \(3 in parts published before\)"):
        infer(images=str(folder), max_failures=2, resume=True, **ASK)
    assert whole.num_failed == 1
    with pytest.raises(DatasetError, match=r"1 row has failed, more than max_failures 0"):
        infer(images=str(folder), output="whole", max_failures=0, resume=True, **(ASK | {"batch_size": 1}), as_planned=True)


def test_a_folder_that_vanishes_stops_the_run_and_is_not_a_folder_of_missing_images(
    infer: Infer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yivl_core.inference.batch.preparing", partial(preparing, num_ahead=1))
    whole = infer(images=str(folder), output="whole", **ASK)
    away = folder.with_name("away")

    def take_away(progress: Progress) -> None:
        if progress.stage == "infer" and progress.done == 4 and folder.exists():
            folder.rename(away)

    with pytest.raises(StorageError, match=r"scans: the folder of images is gone, or empty, .* bring it back and resume"):
        infer(images=str(folder), on_progress=take_away, **(ASK | {"batch_size": 1, "shard_size": 2}), output="p")
    with pytest.raises(ConfigurationError, match="scans: there is no such folder of images"):
        infer(images=str(folder), resume=True, **(ASK | {"shard_size": 2}), output="p")
    away.rename(folder)
    assert infer(images=str(folder), resume=True, **(ASK | {"shard_size": 2}), output="p").content_digest == whole.content_digest


@pytest.mark.parametrize("kind", ["jsonl", "memory", "subfolder"])
def test_images_that_vanish_together_stop_the_run_whatever_the_input(
    kind: str, infer: Infer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is not mounted any more, or a bucket that was emptied. The first image to go is the last of its shard."""
    monkeypatch.setattr("yivl_core.inference.failures._NUM_VANISHED", 6)
    settings: dict[str, Any] = {**ASK, "images": str(folder)}
    if kind == "jsonl":
        lines = [{"query": "What is it?", "images": [str(path.relative_to(tmp_path))]} for path in sorted(folder.rglob("*.png"))]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = {"dataset": str(tmp_path / "rows.jsonl"), "shard_size": 4}
    elif kind == "memory":
        settings["images"] = in_memory(folder, tmp_path)
    whole = infer(**settings, output="whole")
    infer(**settings, shard_indices=(0,))
    (folder / "1").rename(tmp_path / "away")
    if kind == "memory":
        fsspec.filesystem("memory").rm("/scans/1", recursive=True)
    with pytest.raises(StorageError, match=r"the images of \d records one after the other are gone, .* and resume"):
        infer(**settings, resume=True, as_planned=True)
    (tmp_path / "away").rename(folder / "1")
    if kind == "memory":
        in_memory(folder, tmp_path)
    assert infer(**settings, resume=True, as_planned=True).content_digest == whole.content_digest


def test_images_that_were_never_there_are_rows(infer: Infer, tmp_path: Path) -> None:
    lines = [{"query": "What is it?", "images": [f"{number}.png"]} for number in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert infer(dataset=str(tmp_path / "rows.jsonl")).num_by_error_kind == {"image_missing": 30}


def test_an_image_that_goes_during_the_run_is_one_row(infer: Infer, folder: Path) -> None:
    def remove_one(progress: Progress) -> None:
        (folder / "1" / "13.png").unlink(missing_ok=True)

    summary = infer(images=str(folder), on_progress=remove_one, **ASK)
    assert summary.num_by_error_kind == {"image_missing": 1, "truncated": 1}


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_an_image_that_is_replaced_during_the_run_is_one_row(kind: str, infer: Infer, folder: Path, tmp_path: Path) -> None:
    """Another name for its sample would otherwise stand for a file that nobody has planned."""
    images = in_memory(folder, tmp_path) if kind == "memory" else str(folder)

    def replace_one(progress: Progress) -> None:
        other = draw(tmp_path / "other.png", 99).read_bytes() + bytes(kind == "memory")
        if kind == "memory":
            fsspec.filesystem("memory").pipe_file("/scans/1/13.png", other)
        else:
            (folder / "1" / "13.png").write_bytes(other)

    summary = infer(images=images, on_progress=replace_one, **ASK)
    assert summary.num_by_error_kind == {"image_changed": 1, "truncated": 1}
    changed = next(row for row in rows(summary) if row.error_kind == "image_changed")
    assert changed.error is not None
    assert "1/13.png" in changed.error
    assert "is not the file that was listed" in changed.error


def test_awkward_images_and_those_that_no_tool_carries_are_rows(infer: Infer, tmp_path: Path, shared_data: Path) -> None:
    """A newline in a name, a name that is not UTF-8, links, a pipe."""
    folder = tmp_path / "awkward"
    shutil.copytree(shared_data / "data/awkward/files", folder)
    manifest = json.loads((shared_data / "data/awkward/manifest.json").read_text(encoding="utf-8"))
    expected = {
        entry["file"].removeprefix("files/"): entry["kind"] if entry["expect"] == "reject" else None
        for entry in manifest["files"]
        if entry["expect"] != "ignore"
    }
    good = next(name for name, kind in expected.items() if kind is None)
    shutil.copyfile(folder / good, folder / "new\nline.png")
    shutil.copyfile(folder / good, os.fsencode(folder) + b"/\xff\xfe.png")
    (folder / "link.png").symlink_to(good)
    (folder / "out.png").symlink_to(shared_data / "data/awkward/manifest.json")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    expected |= {"new\nline.png": None, "\\xff\\xfe.png": "bad_unicode", "link.png": None, "out.png": "path_escape"}
    expected |= {"loop.png": "image_missing", "pipe.png": "not_a_file"}
    summary = infer(images=str(folder), prompt="What is it?", max_new_tokens=2, shard_size=10)
    assert {row.images[0].uri: row.error_kind for row in rows(summary)} == expected
    again = infer(images=str(folder), prompt="What is it?", max_new_tokens=2, shard_size=10, resume=True)
    assert again.content_digest == summary.content_digest


# What is told


def test_progress_tells_images_and_tokens_a_second_failures_and_what_is_left(infer: Infer, folder: Path) -> None:
    seen: list[Progress] = []
    infer(images=str(folder), on_progress=seen.append, **ASK)
    told = [event for event in seen if event.stage == "infer" and event.done]
    assert [event.done for event in told] == list(range(1, NUM_IMAGES + 1))
    for event in told:
        assert event.remaining_s == pytest.approx((NUM_IMAGES - event.done) / event.figures["images_per_s"])
        assert "records_per_s" not in event.figures
    assert told[-1].figures["failed"] == 1
    assert told[-1].figures["tokens_per_s"] > told[-1].figures["images_per_s"]


class Pictures(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attributes)["src"] or "")


@pytest.mark.parametrize("kind", ["folder", "parquet", "memory"])
def test_a_contact_sheet_shows_rows_with_their_images(kind: str, infer: Infer, folder: Path, tmp_path: Path) -> None:
    images = str(folder) if kind == "folder" else INPUTS[kind](folder, tmp_path)
    summary = infer(images=images, contact_sheet=NUM_IMAGES, **ASK)
    assert summary.contact_sheet == f"{summary.output}/contact-sheet.html"
    page = Path(summary.contact_sheet).read_text(encoding="utf-8")
    assert page.count("<article") == NUM_IMAGES
    sources = Pictures(page).sources
    assert len(sources) == NUM_IMAGES - 1
    assert len(set(sources)) == NUM_IMAGES - 2  # two are equal
    assert all(source.startswith("data:image/") for source in sources)
    assert summary.content_digest is not None
    assert summary.content_digest in page


def test_a_contact_sheet_is_made_when_all_is_done_and_by_the_seed(infer: Infer, folder: Path) -> None:
    first = infer(images=str(folder), contact_sheet=3, shard_indices=(0, 1), **ASK)
    assert first.contact_sheet is None
    pages = set()
    for seed in (0, 0, 1, 2):
        output = f"seed-{len(pages)}-{seed}"
        summary = infer(images=str(folder), contact_sheet=3, seed=seed, output=output, **ASK)
        assert summary.contact_sheet is not None
        page = Path(summary.contact_sheet).read_text(encoding="utf-8")
        assert page.count("<article") == 3
        pages.add(re.sub("seed-[0-9]-[0-9]", "", page))
    assert len(pages) == 3
    (Path(summary.output) / "contact-sheet.html").unlink()
    again = infer(images=str(folder), contact_sheet=3, seed=2, output=Path(summary.output).name, resume=True, **ASK)
    assert again.contact_sheet is not None
    assert Path(again.contact_sheet).read_text(encoding="utf-8") == page


def test_settings_that_do_not_go_together_are_refused() -> None:
    def refused(**settings: Any) -> str:
        with pytest.raises(ValidationError) as caught:
            InferenceConfig(model="m", output="o", **settings)
        return str(caught.value)

    assert "give a `prompt` or a `task`" in refused(images="i", prompt="p", task="ocr")
    assert "`images` goes together with `prompt` or `task`" in refused(images="i")
    assert "`images` goes together with `prompt` or `task`" in refused(dataset="d", task="ocr")
    assert "`subject` is what the task `count` counts" in refused(images="i", task="ocr", subject="sheep")
    assert "`language` is that of the question" in refused(images="i", prompt="p", language="zh")
    assert "`as_planned` goes with `resume`" in refused(images="i", prompt="p", as_planned=True)
