import hashlib
import json
import runpy
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "data/handwritten_numbers"


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return loaded


def rows(folder: Path, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]


def test_no_scan_is_in_both_parts_and_all_are_used(manifest: dict[str, Any]) -> None:
    scans = {
        part: set(chain(*(entry["scans"] for name, entry in manifest["images"].items() if name.startswith(f"images/{part}/"))))
        for part in ("train", "val")
    }
    assert not scans["train"] & scans["val"]
    assert scans["train"] | scans["val"] == set(range(1797))
    uses = Counter(chain(*(entry["scans"] for entry in manifest["images"].values())))
    assert set(uses.values()) <= {1, 2, 3}


def test_every_row_names_an_image_that_is_the_one_of_the_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    for part, num_rows in (("train", 600), ("val", 200)):
        part_rows = rows(folder, part)
        assert len(part_rows) == num_rows
        assert all(set(row) == {"query", "response", "images"} and row["response"].isdigit() for row in part_rows)
        assert {len(row["response"]) for row in part_rows} == {3, 4, 5, 6}
    names = [row["images"][0] for part in ("train", "val") for row in rows(folder, part)]
    assert names == list(manifest["images"])
    assert sorted(names) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    assert digests == {name: entry["sha256"] for name, entry in manifest["images"].items()}
    assert len(set(digests.values())) == 800


def test_an_image_shows_the_scans_that_the_manifest_names_and_the_answer_is_their_labels(
    folder: Path, manifest: dict[str, Any]
) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    for row in [*rows(folder, "train")[::50], *rows(folder, "val")[::20]]:
        name = row["images"][0]
        scans = manifest["images"][name]["scans"]
        assert row["response"] == "".join(str(digits.target[scan]) for scan in scans)
        small = 255 - np.asarray(Image.open(folder / name)).astype(int)
        assert small.shape[0] == 32
        position = 0
        for scan in scans:  # each scan follows within the next seven columns
            ink = np.kron(np.rint(digits.images[scan] * 255 / 16), np.ones((4, 4)))
            position = next(left for left in range(position, position + 7) if (small[:, left : left + 32] == ink).all()) + 32


def test_the_program_makes_the_folder_again(folder: Path, manifest: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    runpy.run_path(str(folder / "make.py"))["main"](tmp_path)
    made = json.loads((tmp_path / "manifest.json").read_text())
    for name in ("train.jsonl", "val.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    for name, entry in manifest["images"].items():
        assert made["images"][name]["scans"] == entry["scans"]
        assert Image.open(tmp_path / name).tobytes() == Image.open(folder / name).tobytes()
    assert {key: made[key] for key in made if key != "images"} == {key: manifest[key] for key in manifest if key != "images"}


def test_it_is_a_clean_dataset_and_a_small_one(folder: Path, validate: Callable[..., Any]) -> None:
    result = validate(folder / "train.jsonl", folder / "val.jsonl")
    assert (result.summary.num_records, result.summary.num_images, result.findings) == (800, 800, [])
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_000_000
