import errno
import hashlib
import os
from pathlib import Path

import pytest

from yivl_core.data.findings import Source
from yivl_core.data.images import ImageReference, ImageStore
from yivl_core.data.reading import InputRow
from yivl_core.data.records import Record
from yivl_core.errors import StorageError
from yivl_core.outputs.sample_ids import base_sample_id, image_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which `a` and `copy_of_a` are equal, and `b` has their size."""
    folder = tmp_path_factory.mktemp("images")
    for name, data in {"a": b"AAAA", "copy_of_a": b"AAAA", "b": b"BBBB", "long": b"A" * 9}.items():
        (folder / name).write_bytes(data)
    (folder / "subfolder").mkdir()
    return folder


def test_ids_depend_on_text_and_images_and_on_nothing_that_is_not_shown_to_the_model(folder: Path) -> None:
    def name(**changes: object) -> str:
        values = {"query": "q", "images": ("a",), "history": (("x", "y"),), "system": None} | changes
        return base_sample_id(InputRow(source=Source(file="f"), record=Record.model_validate(values)), ["d1"])

    assert name() == name(response="right", references=("too",), cluster_id="c", meta={"k": 1}, images=("elsewhere/a",))
    assert len({name(), name(query="r"), name(history=()), name(system=""), name(images=(None, "a"))}) == 5
    assert name(id="mine") == "mine"


def test_image_that_cannot_be_read_counts_as_one_word_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    images = [
        ImageReference(uri=address, address=address, root=root)
        for address, root in (("missing", folder), ("../a", folder), ("subfolder", folder), ("pipe", tmp_path))
    ]
    assert {image_digest(image, ImageStore()) for image in images} == {"unreadable"}


def test_digest_of_a_readable_image_is_that_of_its_bytes(folder: Path) -> None:
    image = ImageReference(uri="a", address="a", root=folder)
    assert image_digest(image, ImageStore()) == hashlib.sha256(b"AAAA").hexdigest()


def test_failing_disk_is_no_property_of_the_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(StorageError, match="a: Input/output error"):
        image_digest(ImageReference(uri="a", address="a", root=folder), ImageStore())
