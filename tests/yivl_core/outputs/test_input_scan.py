"""The look at a whole input: which samples occur again, what is read to know that, and what changes the digests."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.data.findings import Source, error
from yivl_core.data.images import Folder, ImageReference, ImageStore
from yivl_core.data.inputs import InputSource, open_input, row_text
from yivl_core.data.reading import InputRow
from yivl_core.data.records import Record
from yivl_core.listing import StoredFile
from yivl_core.outputs.input_scan import InputScan, ShardDigest, scan_input
from yivl_core.outputs.record_table import PlannedRecord, read_planned_records
from yivl_core.outputs.sample_ids import base_sample_id, image_digest, numbered
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import publish_bytes


class NotingStore(ImageStore):
    """Notes of which images a part, and of which all is read."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled: list[str] = []
        self.digested: list[str] = []

    def sample(self, image: ImageReference, num_bytes: int = 4096) -> bytes:
        self.sampled.append(image.address)
        return super().sample(image, num_bytes)

    def digest(self, image: ImageReference) -> str:
        self.digested.append(image.address)
        return super().digest(image)


class GivenRows:
    """An input of rows that are there."""

    is_seekable = False

    def __init__(self, rows: Sequence[InputRow], is_remote: bool) -> None:
        self._rows, self.is_remote = rows, is_remote

    def rows(self, first: int = 0) -> Iterator[InputRow]:
        return iter(self._rows[first:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which `a` and `copy_of_a` are equal, and `b` has their size."""
    folder = tmp_path_factory.mktemp("images")
    for name, data in {"a": b"AAAA", "copy_of_a": b"AAAA", "b": b"BBBB", "long": b"A" * 9}.items():
        (folder / name).write_bytes(data)
    (folder / "subfolder").mkdir()
    return folder


def make_row(root: Path, query: str | None = "read it", addresses: Sequence[str] = (), name: str | None = None) -> InputRow:
    source = Source(file="rows.jsonl", line=1)
    if query is None:
        return InputRow(source=source, findings=(error("invalid_json", "this is no JSON", "mend it"),))
    references = tuple(ImageReference(uri=address, address=address, root=root) for address in addresses)
    return InputRow(source=source, record=Record(query=query, images=tuple(addresses), id=name), images=references)


def scan(
    rows: Sequence[InputRow],
    store: ImageStore,
    shard_size: int = 5,
    on_progress: OnProgress = ignore_progress,
    is_remote: bool = False,
) -> tuple[InputScan, list[int]]:
    """What is found, and the occurrence number of each row."""
    with scan_input(GivenRows(rows, is_remote), store, shard_size, on_progress) as found:
        return found, [record.occurrence for record in found.table.records()]


def sample_ids(rows: Sequence[InputRow], store: ImageStore) -> list[str]:
    found, occurrences = scan(rows, store)
    assert found.num_records == len(rows)
    names = [base_sample_id(row, [image_digest(image, store) for image in row.images]) for row in rows]
    return [numbered(name, occurrence) for name, occurrence in zip(names, occurrences, strict=True)]


ADDRESSES = ["a", "copy_of_a", "b", "long", "missing", "also_missing", "../a", "subfolder"]
IDS = [None, None, "x", "y", "x#2", "x#2#2", "x#3"]


@settings(deadline=None)
@given(
    fields=st.lists(
        st.tuples(st.sampled_from([None, "q", "r"]), st.lists(st.sampled_from(ADDRESSES), max_size=2), st.sampled_from(IDS)),
        max_size=12,
    )
)
def test_ids_are_unique_and_the_first_bearer_of_a_name_keeps_it(
    folder: Path, fields: list[tuple[str | None, list[str], str | None]]
) -> None:
    rows, store = [make_row(folder, *values) for values in fields], ImageStore()
    ids = sample_ids(rows, store)
    assert len(set(ids)) == len(ids)
    names = [base_sample_id(row, [image_digest(image, store) for image in row.images]) for row in rows]
    for index, name in enumerate(names):
        is_first = name not in names[:index]
        assert (ids[index] == name) == is_first


def test_equal_images_under_other_names_are_the_same_sample(folder: Path) -> None:
    rows = [make_row(folder, addresses=[address]) for address in ("a", "b", "copy_of_a", "long", "a")]
    first, b, second, long, third = sample_ids(rows, ImageStore())
    assert (second, third) == (f"{first}#2", f"{first}#3")
    assert len({first, b, long}) == 3
    assert not any("#" in name for name in (first, b, long))


def test_ids_do_not_depend_on_where_the_images_lie(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "renamed").write_bytes(b"AAAA")
    here = sample_ids([make_row(folder, addresses=["a"])] * 2, ImageStore())
    there = sample_ids([make_row(tmp_path, addresses=["renamed"])] * 2, ImageStore())
    assert here == there


def test_of_images_a_part_is_read_where_texts_and_sizes_agree_and_all_where_the_parts_do(folder: Path) -> None:
    store = NotingStore()
    rows = [make_row(folder, "q", [name]) for name in ("a", "b", "long")] + [make_row(folder, "r", ["a"])]
    assert scan(rows, store)[1] == [1, 1, 1, 1]
    assert (store.sampled, store.digested) == (["a", "b"], [])
    assert scan([*rows, make_row(folder, "q", ["copy_of_a"])], store)[1] == [1, 1, 1, 1, 2]
    assert store.digested == ["a", "copy_of_a"]


def test_images_that_differ_in_the_middle_alone_are_told_apart(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        (tmp_path / name).write_bytes(bytes(5000) + name.replace("z", "x").encode() + bytes(5000))
    store = NotingStore()
    assert scan([make_row(tmp_path, "q", [name]) for name in ("x", "y", "z")], store)[1] == [1, 1, 2]
    assert store.digested == ["x", "y", "z"]


def test_images_whose_content_is_known_are_not_looked_at(folder: Path) -> None:
    """By an earlier validation, or by the ETag that a listing shows."""
    store = NotingStore()
    image = ImageReference(uri="gone", address="gone", root=folder, sha256="ab" * 32)
    row = InputRow(source=Source(file="f"), record=Record(query="q", images=("gone",)), images=(image,))
    assert scan([row, row], store)[1] == [1, 2]
    assert image_digest(image, ImageStore()) == "ab" * 32
    listed = [
        replace(row, images=(ImageReference(uri=n, address=n, root="s3://b", listed=StoredFile(n, 5, "s", key)),))
        for n, key in (("x", "e" * 32), ("y", "f" * 32), ("z", "e" * 32))
    ]
    assert scan(listed, store, is_remote=True)[1] == [1, 1, 2]
    assert store.sampled == store.digested == []


@pytest.fixture
def in_memory(tmp_path: Path) -> str:
    """A remote folder with two equal images, and one of the same size."""
    for name, data in (("a", b"AAAA"), ("copy_of_a", b"AAAA"), ("b", b"BBBB")):
        publish_bytes(f"memory://{tmp_path.name}/{name}", data)
    return f"memory://{tmp_path.name}"


def with_image(root: Folder, name: str, **known: Any) -> InputRow:
    image = ImageReference(uri=name, address=name, root=root, **known)
    return InputRow(source=Source(file="f"), record=Record(query="q", images=(name,)), images=(image,))


def test_equal_images_are_found_however_their_contents_are_known(folder: Path, in_memory: str) -> None:
    sha256 = hashlib.sha256(b"AAAA").hexdigest()
    rows = [with_image(folder, "a", sha256=sha256), *(with_image(folder, name) for name in ("b", "copy_of_a"))]
    assert scan(rows, ImageStore())[1] == [1, 1, 2]
    listed = [
        with_image(in_memory, name, listed=StoredFile(name, 4, name, key))
        for name, key in (("a", "a" * 32), ("b", "b" * 32), ("copy_of_a", None))
    ]
    held = with_image(folder, "held", data=b"AAAA", sha256=sha256)
    assert scan([held, with_image(folder, "a")], ImageStore())[1] == [1, 2]
    store = NotingStore()
    assert scan(listed, store, is_remote=True)[1] == [1, 1, 2]
    assert (
        scan([*listed[:2], with_image(in_memory, "gone", listed=StoredFile("gone", 0, "image_missing", None))], store)[1]
        == [1] * 3
    )
    assert store.sampled == []
    assert sorted(store.digested) == ["a", "b", "copy_of_a"]


def test_a_store_is_asked_about_many_images_at_once(in_memory: str) -> None:
    together = threading.Barrier(8)

    class Slow(ImageStore):
        def find(self, image: ImageReference) -> StoredFile:
            together.wait(timeout=60)
            return super().find(image)

        def digest(self, image: ImageReference) -> str:
            together.wait(timeout=60)
            return super().digest(image)

    rows = [with_image(in_memory, name) for name in ("a", "copy_of_a") * 4]
    assert scan(rows, Slow(), is_remote=True)[1] == list(range(1, 9))


def test_progress_tells_each_pass(folder: Path) -> None:
    seen: list[Progress] = []
    scan([make_row(folder, addresses=["a"])] * 1000, ImageStore(), on_progress=seen.append)
    passes = [("plan", 1000, None), ("compare", 1000, 1000), ("compare", 1000, 1000)]
    assert [(event.stage, event.done, event.total) for event in seen] == passes


def test_each_shard_has_the_digest_of_its_rows_and_the_whole_changes_with_images_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"AAAA")
    rows = [make_row(tmp_path, f"q{number}", ["a"]) for number in range(12)]
    found = scan(rows, ImageStore())[0]
    digests = []
    for first in (0, 5, 10):
        digests.append(ShardDigest())
        for row in rows[first : first + 5]:
            digests[-1].update(row_text(row))
    assert found.shard_digests == tuple(digest.hexdigest() for digest in digests)
    assert scan(rows, ImageStore(), shard_size=3)[0].digest == found.digest
    os.utime(tmp_path / "a", ns=(0, 7))
    touched = scan(rows, ImageStore())[0]
    assert touched.shard_digests == found.shard_digests
    assert touched.digest != found.digest
    swapped = scan([*rows[:10], rows[11], rows[10]], ImageStore())[0]
    assert [a == b for a, b in zip(swapped.shard_digests, touched.shard_digests, strict=True)] == [True, True, False]


# Folders


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 files, of which every third has the content of the one before it."""
    folder = tmp_path_factory.mktemp("numbers")
    for number in range(120):
        path = folder / f"{number % 7}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % (number - (number % 3 == 2)))
    return folder


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), shard_size=st.integers(1, 150))
def test_the_order_of_a_listing_decides_nothing(numbers: Path, seed: int, shard_size: int) -> None:
    def listed(order: Callable[[list[os.DirEntry[str]]], list[os.DirEntry[str]]]) -> tuple[object, ...]:
        scandir = os.scandir

        class Shuffled:
            def __init__(self, path: str) -> None:
                with scandir(path) as entries:
                    self._entries = order(list(entries))

            def __enter__(self) -> Iterator[os.DirEntry[str]]:
                return iter(self._entries)

            def __exit__(self, *_: object) -> None:
                pass

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("yivl_core.data.image_folders.os.scandir", Shuffled)
            source = open_input(InputSource(images=str(numbers), prompt="Read."))
            with scan_input(source, ImageStore(), shard_size) as found:
                return found.digest, found.shard_digests, list(found.table.records())

    shuffle = random.Random(seed).sample
    digest, shard_digests, records = listed(lambda entries: shuffle(entries, len(entries)))
    assert (digest, shard_digests, records) == listed(lambda entries: sorted(entries, key=lambda entry: entry.name))
    names = [record.file.name for record in records if record.file]
    assert names == sorted(names)
    assert len(set(names)) == 120
    assert len(shard_digests) == -(-120 // shard_size)
    assert sum(record.occurrence > 1 for record in records) == 40


def test_records_are_stored_with_all_that_was_found_and_read_by_their_numbers(tmp_path: Path) -> None:
    names = ["a.png", "caf\u00e9.png", "new\nline.png", os.fsdecode(b"\xff.png")]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(b"same")
    source = open_input(InputSource(images=str(tmp_path / "in"), prompt="Read."))
    with scan_input(source, ImageStore(), 3) as found:
        found.table.write(tmp_path / "records.parquet")
        records = list(found.table.records())
    assert [record.file.name for record in records if record.file] == sorted(names, key=os.fsencode)
    assert [record.occurrence for record in records] == [1, 2, 3, 1]
    for first in range(5):
        for stop in range(first, 5):
            assert list(read_planned_records(str(tmp_path / "records.parquet"), first, stop)) == records[first:stop]
    assert all(isinstance(record, PlannedRecord) for record in records)


def test_a_record_tells_whether_its_images_were_there(folder: Path) -> None:
    rows = [make_row(folder, "q", names) for names in (["a"], ["missing"], ["a", "missing"], [], ["subfolder"])]
    with scan_input(GivenRows([*rows, make_row(folder, None)], is_remote=False), ImageStore(), 9) as found:
        assert [record.is_found for record in found.table.records()] == [True, False, False, True, False, True]


FILL_A_DISK = """
import sys
from yivl_core import temporary_tables
from yivl_core.data.images import ImageStore
from yivl_core.data.inputs import InputSource, open_input
from yivl_core.outputs.input_scan import scan_input
temporary_tables._CACHE_KIB = 64
prompt = "Read." if sys.argv[1] == "images" else None
with scan_input(open_input(InputSource(**{sys.argv[1]: sys.argv[2]}, prompt=prompt)), ImageStore(), 9):
    pass
"""


@pytest.mark.parametrize("kind", ["images", "dataset"])
def test_a_full_disk_for_temporary_files_is_named(kind: str, tmp_path: Path, repository: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root; run the tests as root to have this one too")
    try:
        (tmp_path / "in").mkdir()
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"query": f"q{number}"}) + "\n" for number in range(20_000)))
        for number in range(3000):
            (tmp_path / "in" / f"{number:0200d}.png").touch()
        place = str(tmp_path / {"images": "in", "dataset": "rows.jsonl"}[kind])
        done = subprocess.run(
            [sys.executable, "-c", FILL_A_DISK, kind, place],
            cwd=repository, env={**os.environ, "TMPDIR": str(small)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        expected = f"StorageError: {small}: database or disk is full; free some space there, or set TMPDIR"
        assert expected in done.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
