import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.data.findings import Source, error
from yivl_core.data.images import ImageReference, ImageStore
from yivl_core.data.reading import InputRow
from yivl_core.data.records import Record
from yivl_core.errors import StorageError
from yivl_core.outputs.sample_ids import base_sample_id, find_repeats, image_digest, numbered
from yivl_core.progress import Progress


class NotingStore(ImageStore):
    """Notes each look at an image."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def resolve(self, image: ImageReference) -> Path:
        self.addresses.append(image.address)
        return super().resolve(image)


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


def sample_ids(rows: Sequence[InputRow], store: ImageStore) -> list[str]:
    num_rows, repeats = find_repeats(lambda: rows, store)
    assert num_rows == len(rows)
    return [
        numbered(base_sample_id(row, [image_digest(image, store) for image in row.images]), repeats.get(index, 1))
        for index, row in enumerate(rows)
    ]


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
    rows, store = [make_row(folder, *values) for values in fields], NotingStore()
    ids = sample_ids(rows, store)
    assert len(set(ids)) == len(ids)
    names = [base_sample_id(row, [image_digest(image, store) for image in row.images]) for row in rows]
    for index, name in enumerate(names):
        is_first = name not in names[:index]
        assert (ids[index] == name) == is_first


def test_equal_images_under_other_names_are_the_same_sample(folder: Path) -> None:
    rows = [make_row(folder, addresses=[address]) for address in ("a", "b", "copy_of_a", "long", "a")]
    first, b, second, long, third = sample_ids(rows, NotingStore())
    assert (second, third) == (f"{first}#2", f"{first}#3")
    assert len({first, b, long}) == 3
    assert not any("#" in name for name in (first, b, long))


def test_ids_do_not_depend_on_where_the_images_lie(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "renamed").write_bytes(b"AAAA")
    here = sample_ids([make_row(folder, addresses=["a"])] * 2, NotingStore())
    there = sample_ids([make_row(tmp_path, addresses=["renamed"])] * 2, NotingStore())
    assert here == there


def test_ids_depend_on_text_and_images_and_on_nothing_that_is_not_shown_to_the_model(folder: Path) -> None:
    def name(**changes: object) -> str:
        values = {"query": "q", "images": ("a",), "history": (("x", "y"),), "system": None} | changes
        return base_sample_id(InputRow(source=Source(file="f"), record=Record.model_validate(values)), ["d1"])

    assert name() == name(response="right", references=("too",), cluster_id="c", meta={"k": 1}, images=("elsewhere/a",))
    assert len({name(), name(query="r"), name(history=()), name(system=""), name(images=(None, "a"))}) == 5
    assert name(id="mine") == "mine"


def test_images_are_read_only_where_texts_and_sizes_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = hashlib.file_digest

    def noting(file: object, name: str) -> object:
        read.append(Path(file.name).name)  # type: ignore[attr-defined]
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", noting)
    rows = [make_row(folder, "q", [name]) for name in ("a", "b", "long")] + [make_row(folder, "r", ["a"])]
    assert find_repeats(lambda: rows, NotingStore()) == (4, {})
    assert read == ["a", "b"]


def test_images_that_validation_saw_are_not_looked_at(folder: Path) -> None:
    store = NotingStore()
    image = ImageReference(uri="gone", address="gone", root=folder, sha256="ab" * 32)
    row = InputRow(source=Source(file="f"), record=Record(query="q", images=("gone",)), images=(image,))
    assert find_repeats(lambda: [row, row], store) == (2, {1: 2})
    assert image_digest(image, store) == "ab" * 32
    assert store.addresses == []


def test_image_that_cannot_be_read_counts_as_one_word_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    images = [
        ImageReference(uri=address, address=address, root=root)
        for address, root in (("missing", folder), ("../a", folder), ("subfolder", folder), ("pipe", tmp_path))
    ]
    assert {image_digest(image, NotingStore()) for image in images} == {"unreadable"}


def test_digest_of_a_readable_image_is_that_of_its_bytes(folder: Path) -> None:
    image = ImageReference(uri="a", address="a", root=folder)
    assert image_digest(image, NotingStore()) == hashlib.sha256(b"AAAA").hexdigest()


def test_progress_tells_both_passes(folder: Path) -> None:
    seen: list[Progress] = []
    find_repeats(lambda: [make_row(folder)] * 1000, NotingStore(), seen.append)
    assert [(event.stage, event.done, event.total) for event in seen] == [("plan", 1000, None), ("compare", 1000, 1000)]


def test_failing_disk_is_no_property_of_the_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(StorageError, match="a: Input/output error"):
        image_digest(ImageReference(uri="a", address="a", root=folder), ImageStore())
