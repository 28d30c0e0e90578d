import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yivl_core.data.image_checks import check_images
from yivl_core.data.images import ImageReference, ImageStore, LoadedImage
from yivl_core.data.reading import InputRow, Source
from yivl_core.data.records import Record
from yivl_core.errors import StorageError


class CountingStore(ImageStore):
    """Counts how often each image is loaded, and waits a little for some, so that threads finish out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def load(self, image: ImageReference) -> LoadedImage:
        with self._lock:
            self.loads[image.uri] += 1
        if image.uri.startswith("1"):
            threading.Event().wait(0.005)
        if image.uri == "disk.png":
            raise StorageError("the disk failed")
        return super().load(image)


def rows(root: Path, *groups: tuple[str, ...]) -> Iterator[InputRow]:
    for number, names in enumerate(groups, 1):
        images = tuple(ImageReference(uri=name, address=name, root=root) for name in names)
        yield InputRow(source=Source(file="a.jsonl", line=number), record=Record(query="a", images=names), images=images)


def test_rows_keep_their_order_and_an_image_named_often_is_decoded_once(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(20):
        make_image(f"{number}.png")
    groups = [(f"{number % 20}.png", f"{(number + 1) % 20}.png") for number in range(300)]
    store = CountingStore()
    checked = list(check_images(rows(tmp_path, *groups), store))
    assert [one.row.source.line for one in checked] == list(range(1, 301))
    assert [tuple(image.uri for image in one.images) for one in checked] == groups
    assert store.loads == Counter({f"{number}.png": 1 for number in range(20)})
    assert all(one.is_clean for one in checked)


def test_only_a_bounded_number_of_rows_is_read_ahead(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("a.png")
    num_read = 0

    def counted() -> Iterator[InputRow]:
        nonlocal num_read
        for row in rows(tmp_path, *([("a.png",)] * 1000)):
            num_read += 1
            yield row

    checked = check_images(counted(), ImageStore())
    next(checked)
    assert num_read < 100
    assert sum(1 for _ in checked) == 999


def test_a_failing_disk_stops_the_check(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the disk failed"):
        list(check_images(rows(tmp_path, ("disk.png",)), CountingStore()))


def test_no_thread_stays_behind_when_the_reader_stops(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("a.png")
    checked = check_images(rows(tmp_path, *([("a.png",)] * 200)), ImageStore())
    next(checked)
    checked.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("image")]
