"""Folders and outputs on an object store that answers as S3 does, and one that fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from yivl_core.errors import ConfigurationError, OutputError, StorageError
from yivl_core.inference.configuration import InferenceSummary
from yivl_core.outputs.predictions import list_parts, read_predictions
from yivl_core.storage import exists, list_files

Infer = Callable[..., InferenceSummary]
NUM_IMAGES = 11
ASK = {"prompt": "What is it?", "shard_size": 3, "batch_size": 2, "contact_sheet": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images; two are equal, one is broken, one has a name that needs care in a URL."""
    folder = tmp_path_factory.mktemp("scans")
    names = [f"{number:02d}.png" for number in range(NUM_IMAGES - 1)] + ["ü +%20 &=#.png"]
    for number, name in enumerate(names):
        (folder / f"{number % 2}").mkdir(exist_ok=True)
        pixels = np.random.default_rng(number % 9).integers(0, 256, (9, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number % 2}" / name)
    (folder / "0" / "04.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def images(folder: Path, bucket: str) -> str:
    """The same images on the store."""
    filesystem = fsspec.filesystem("s3")
    for path in folder.rglob("*.png"):
        filesystem.pipe_file(f"{bucket}/scans/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"{bucket}/scans"


def content(summary: InferenceSummary) -> list[tuple[Any, ...]]:
    return [(row.sample_id, row.images, row.response, row.error_kind) for row in read_predictions(summary.output)]


def test_a_folder_on_s3_is_answered_as_a_local_one(infer: Infer, folder: Path, images: str, bucket: str, flaky_s3: Any) -> None:
    expected = content(infer(images=str(folder), **ASK))
    assert sum(row[0].endswith("#2") for row in expected) == 2
    before = flaky_s3.count("GET", ".png")
    summary = infer(images=images, output=f"{bucket}/out", **ASK)
    assert content(summary) == expected
    assert flaky_s3.count("GET", ".png") - before <= 2 * NUM_IMAGES + 1  # once, and again for the sheet and the broken one
    assert summary.num_by_error_kind == {"not_an_image": 1}
    assert list_parts(f"{bucket}/out") == [f"part-{number:05d}.parquet" for number in range(4)]
    names = [name for name in list_files(f"{bucket}/out") if not name.startswith("records-")]
    assert names == ["contact-sheet.html", "manifest.json", "plan.json"]
    again = infer(images=images, output=f"{bucket}/out", resume=True, **ASK)
    assert again.content_digest == summary.content_digest


@pytest.mark.parametrize("glob", ["/**/*.png", "/*/0*.png"])
def test_a_pattern_on_s3_matches_what_a_local_one_does(glob: str, infer: Infer, folder: Path, images: str) -> None:
    here, there = (infer(images=f"{root}{glob}", output=name, **ASK) for root, name in ((str(folder), "a"), (images, "b")))
    assert [row.images[0].uri for row in read_predictions(here.output)] == [
        row.images[0].uri for row in read_predictions(there.output)
    ]


def test_a_dataset_on_s3_is_read_with_its_images(infer: Infer, images: str, bucket: str) -> None:
    lines = b'{"query": "What?", "images": ["scans/0/00.png"]}\n{"query": "And?", "images": ["gone.png"]}\n'
    fsspec.filesystem("s3").pipe_file(f"{bucket}/rows.jsonl", lines)
    summary = infer(dataset=f"{bucket}/rows.jsonl")
    assert [row.error_kind for row in read_predictions(summary.output)] == [None, "image_missing"]
    fsspec.filesystem("s3").pipe_file(f"{bucket}/list.txt", b"scans/0/00.png\nscans/1/01.png\n")
    assert infer(images=f"{bucket}/list.txt", prompt="What?", output="list").num_by_finish_reason.keys() <= {"stop", "length"}


def test_what_is_wrong_with_one_address_is_an_error_of_its_row(infer: Infer, images: str, bucket: str) -> None:
    addresses = {"scans/0/00.png": None, "scans/0": "image_missing",
                 "scans/0/": "image_missing", "a?versionId=1": "image_missing",
                 "x::foo": "image_missing", "s3://other/a.png": "url_not_allowed", "x" * 1500: "image_missing"}  # fmt: skip
    fsspec.filesystem("s3").pipe_file(f"{bucket}/list.txt", "\n".join(addresses).encode())
    summary = infer(images=f"{bucket}/list.txt", prompt="What?")
    assert {row.images[0].uri: row.error_kind for row in read_predictions(summary.output)} == addresses


def test_objects_that_a_local_file_names_are_fetched_where_they_are_allowed(
    infer: Infer, images: str, tmp_path: Path, flaky_s3: Any, s3_server: str
) -> None:
    lines = [{"query": "What?", "images": [f"{images}/{name}"]} for name in ("0/00.png", "0/00.png", "gone.png", "0/04.png")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"dataset": str(tmp_path / "rows.jsonl"), "cache": str(tmp_path / "cache")}
    refused = infer(**settings, output="refused")
    assert refused.num_by_error_kind == {"url_not_allowed": 4}
    assert flaky_s3.count("GET", ".png") == 0
    summary = infer(**settings, allow_url=("s3://bucket", s3_server))
    kinds = [None, None, "image_missing", "not_an_image"]
    assert [row.error_kind for row in read_predictions(summary.output)] == kinds
    assert flaky_s3.count("GET", "0/00.png") == 1


def test_two_colons_in_a_key_are_a_part_of_it(infer: Infer, folder: Path, bucket: str) -> None:
    fsspec.filesystem("s3").pipe_file(f"{bucket}/in/a.png::x.png", (folder / "0" / "00.png").read_bytes())
    summary = infer(images=f"{bucket}/in", output=f"{bucket}/out::x", **ASK)
    assert [(row.images[0].uri, row.error_kind) for row in read_predictions(summary.output)] == [("a.png::x.png", None)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "method"),
    [("part-00001", "PUT"), ("scans/0/06.png", "GET"), ("plan.json", "PUT")],
)
def test_a_store_that_answers_503_ends_the_run_with_a_word_and_it_goes_on_later(
    part: str, method: str, infer: Infer, folder: Path, images: str, bucket: str, flaky_s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yivl_core.filesystems._NUM_CLIENT_TRIES", 1)  # how long it is tried has tests of its own
    whole = infer(images=images, output=f"{bucket}/whole", **ASK)
    with (
        flaky_s3.failing(part, status=503, method=method),
        pytest.raises(StorageError, match=rf"{part}.*503.*SlowDown") as caught,
    ):
        infer(images=images, output=f"{bucket}/out", **ASK)
    assert "resume" in str(caught.value)
    parts = list_parts(f"{bucket}/out")
    assert parts == [f"part-{number:05d}.parquet" for number in range(len(parts))]
    rows = list(read_predictions(f"{bucket}/out")) if parts else []
    assert [row.record_index for row in rows] == list(range(3 * len(parts)))
    assert exists(f"{bucket}/out/manifest.json") is False
    assert infer(images=images, output=f"{bucket}/out", resume=True, **ASK).content_digest == whole.content_digest


def test_a_store_that_fails_now_and_then_is_asked_again(infer: Infer, images: str, bucket: str, flaky_s3: Any) -> None:
    whole = infer(images=images, output=f"{bucket}/whole", **ASK)
    with flaky_s3.failing("part-00002", times=1) as part, flaky_s3.failing("scans/1/01.png", times=1, method="GET") as image:
        summary = infer(images=images, output=f"{bucket}/out", **ASK)
    assert (part.num_answers, image.num_answers) == (1, 1)
    assert summary.content_digest == whole.content_digest


def test_a_bucket_that_vanishes_is_no_bucket_of_missing_images(infer: Infer, images: str, bucket: str) -> None:
    infer(images=images, output="p", shard_indices=(0,), **ASK)
    filesystem = fsspec.filesystem("s3")
    filesystem.rm(bucket, recursive=True)
    settings = {"images": images, "output": "p", "resume": True, "as_planned": True, **ASK}
    with pytest.raises((StorageError, ConfigurationError), match="bucket"):
        infer(**settings)
    with pytest.raises((StorageError, ConfigurationError), match="bucket"):
        infer(images=images, output="q", **ASK)


def test_two_that_plan_at_the_same_time_agree(infer: Infer, images: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from yivl_core.outputs import shards

    publish_new = shards.publish_new

    def publish_late(url: str, data: bytes) -> bool:
        monkeypatch.undo()
        infer(images=images, output=f"{bucket}/out", shard="1/2", **ASK)
        return publish_new(url, data)

    monkeypatch.setattr(shards, "publish_new", publish_late)
    summary = infer(images=images, output=f"{bucket}/out", shard="2/2", **ASK)
    assert summary.content_digest is not None
    with pytest.raises(OutputError, match="shard_size was 3 and is 4"):
        infer(images=images, output=f"{bucket}/out", shard="2/2", **{**ASK, "shard_size": 4})
