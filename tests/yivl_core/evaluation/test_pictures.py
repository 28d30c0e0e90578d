"""Small pictures for a page: which come first, and how many there is room for."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import ValidatedDataset, write_records
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import StorageError
from yivl_core.evaluation.pictures import MAX_PICTURE_BYTES, MIN_PICTURE_BYTES, load_pictures, room_for_pictures

Sample = dict[str, Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve records with noise of one size, whose pictures are about as large."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number in range(12):
        Image.effect_noise((90, 30), 60 + number).convert("RGB").save(folder / f"{number}.png")
        lines.append(json.dumps({"query": "q", "response": "r", "images": [f"{number}.png"]}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    validate_dataset(ValidationConfig(dataset=(str(folder / "rows.jsonl"),), output=str(folder / "validated")))
    return folder / "validated"


@pytest.fixture(scope="module")
def make_samples(dataset: Path) -> Callable[[dict[int, list[str]]], list[Sample]]:
    """A sample for each record, with the reasons that are given by number."""
    images = [validated.images[0] for validated in ValidatedDataset.open(str(dataset))]

    def make(reasons: dict[int, list[str]]) -> list[Sample]:
        return [
            {
                "reasons": reasons.get(number, []),
                "images": [{"uri": image.uri, "sha256": image.sha256}],
                "query": "q",
                "answer": None,
                "references": ["r"],
                "baseline": None,
            }
            for number, image in enumerate(images)
        ]

    return make


def numbers(pictures: dict[str, Any], samples: list[Sample]) -> list[int]:
    order = [sample["images"][0]["sha256"] for sample in samples]
    return [order.index(sha256) for sha256 in pictures]


def test_pictures_come_in_the_order_of_reasons_until_the_room_is_used_up(dataset: Path, make_samples: Any) -> None:
    samples = make_samples({2: ["failed"], 9: ["worst"], 4: ["random"], 5: ["mended"], 6: ["lost"], 7: ["random", "worst"]})
    every = load_pictures(str(dataset), samples)
    assert numbers(every, samples) == [7, 9, 6, 5, 4, 2, 0, 1, 3, 8, 10, 11]
    sizes = [len(str(picture.data_uri)) for picture in every.values()]
    for num in (0, 1, 5):
        some = load_pictures(str(dataset), samples, sum(sizes[:num]))
        assert list(some.items()) == list(every.items())[:num]
        assert load_pictures(str(dataset), samples, sum(sizes[:num]) + sizes[num] - 1) == some


def test_pictures_hold_the_image(dataset: Path, make_samples: Any) -> None:
    (picture,) = load_pictures(str(dataset), make_samples({})[3:4]).values()
    head, _, data = str(picture.data_uri).partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert head == f"data:image/{str(image.format).lower()};base64"
        assert image.size == (90, 30)
    assert (picture.width, picture.height) == (180, 60)


def test_an_image_that_is_not_there_as_it_was_is_told_of(dataset: Path, make_samples: Any) -> None:
    samples = make_samples({})[:4]
    samples[0]["images"].append({"uri": "other.png", "sha256": "0" * 64})
    samples[1]["images"][0]["sha256"] = None
    gone = dataset.parent / "3.png"
    content = gone.read_bytes()
    gone.unlink()
    try:
        pictures = load_pictures(str(dataset), samples)
    finally:
        gone.write_bytes(content)
    problems = [picture.problem for picture in pictures.values()]
    assert problems == [None, "is not in the dataset", None, "is not there any more"]


def test_images_are_found_through_a_file_of_held_out_records_too(dataset: Path, make_samples: Any, tmp_path: Path) -> None:
    write_records(tmp_path / "val.jsonl", ValidatedDataset.open(str(dataset)))
    assert load_pictures(str(tmp_path / "val.jsonl"), make_samples({})) == load_pictures(str(dataset), make_samples({}))
    with pytest.raises(StorageError, match=r"lost\.jsonl: there is no such file"):
        load_pictures(str(tmp_path / "lost.jsonl"), make_samples({}))


def test_long_texts_leave_less_room(make_samples: Any) -> None:
    (sample, *_) = make_samples({})
    assert room_for_pictures([sample]) == room_for_pictures([sample] * 2000) == MAX_PICTURE_BYTES
    long = sample | {"answer": "x" * 400, "baseline": {"answer": "x" * 100}}
    assert room_for_pictures([long] * 2000) == 4_900_000 - 2000 * (1000 + 502 * 3 // 2)
    assert room_for_pictures([sample | {"answer": "图" * 9000}] * 2000) == MIN_PICTURE_BYTES
