import errno
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from yivl_core.data.rows import dataset_files
from yivl_core.data.rows.dataset_files import DatasetPart, find_dataset_files, is_dataset_name
from yivl_core.errors import ConfigurationError, StorageError

Place = Callable[..., str]


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Puts empty files below a folder, on this machine or elsewhere, and gives the folder's address."""
    if request.param == "local":
        root = str(tmp_path)
    elif request.param == "memory":
        root = "memory://dataset-files"
    else:
        root = f"{request.getfixturevalue('bucket')}/dataset-files"

    def put(*names: str) -> str:
        for name in names:
            path = f"{root}/{name}"
            if request.param == "local":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            with fsspec.open(path, "wb") as file:
                file.write(b"{}\n")
        return root

    yield put
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()


def names_of(root: str, parts: list[DatasetPart]) -> list[str]:
    return [part.url.removeprefix(root + "/") for part in parts]


def refusal(*names: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        find_dataset_files(names)
    return str(caught.value)


def test_names_and_patterns_stand_for_files_in_a_fixed_order(place: Place) -> None:
    root = place("b.jsonl", "a.jsonl.gz", "Z.csv", "deep/er/c.parquet", "deep/d.json.zst", "notes.txt", "x.gz", ".hidden.jsonl")

    def find(*names: str) -> list[str]:
        return names_of(root, find_dataset_files([f"{root}/{name}" for name in names]))

    assert find("b.jsonl", "Z.csv", "b.jsonl") == ["b.jsonl", "Z.csv", "b.jsonl"]
    assert find("*") == ["Z.csv", "a.jsonl.gz", "b.jsonl"]
    assert find("**/*") == ["Z.csv", "a.jsonl.gz", "b.jsonl", "deep/d.json.zst", "deep/er/c.parquet"]
    assert find("*.jsonl*", "deep/*/[c-e].parquet") == ["a.jsonl.gz", "b.jsonl", "deep/er/c.parquet"]


def test_a_number_behind_a_name_is_the_number_of_rows(place: Place) -> None:
    root = place("a.jsonl", "b.csv")
    assert find_dataset_files([f"{root}/a.jsonl#500", f"{root}/*.csv#7", f"{root}/a.jsonl"]) == [
        DatasetPart(url=f"{root}/a.jsonl", num_rows=500),
        DatasetPart(url=f"{root}/b.csv", num_rows=7),
        DatasetPart(url=f"{root}/a.jsonl"),
    ]
    assert "#0: no rows are wanted of it; leave it out, or write a number from 1" in refusal(f"{root}/a.jsonl#0")
    assert "*#500: 500 rows of 2 files; write the number behind the name of each file" in refusal(f"{root}/*#500")


def test_a_file_that_is_really_named_so_comes_first(place: Place) -> None:
    root = place("a.jsonl", "a.jsonl#5", "b[1].jsonl", "b1.jsonl")
    parts = find_dataset_files([f"{root}/a.jsonl#5", f"{root}/b[1].jsonl", f"{root}/b[1].jsonl#3", f"{root}/a.jsonl#6"])
    assert names_of(root, parts) == ["a.jsonl#5", "b[1].jsonl", "b[1].jsonl", "a.jsonl"]
    assert [part.num_rows for part in parts] == [None, None, 3, 6]


def test_a_name_without_a_file_is_refused_with_the_names_that_are_near(place: Place) -> None:
    root = place("train.jsonl", "trial.txt", "other.csv")
    assert refusal(f"{root}/trian.jsonl") == f"{root}/trian.jsonl: there is no such file; did you mean {root}/train.jsonl?"
    assert refusal(f"{root}/trian.jsonl#5") == f"{root}/trian.jsonl: there is no such file; did you mean {root}/train.jsonl?"
    assert refusal(f"{root}/zzz") == f"{root}/zzz: there is no such file; check the path"
    assert refusal(f"{root}/nowhere/train.jsonl").endswith("there is no such file; check the path")
    assert "nowhere/*.csv: no file there is named so" in refusal(f"{root}/nowhere/*.csv")
    assert refusal(f"{root}/*.txt") == (
        f"{root}/*.txt: no file there is named so and ends in .jsonl, .json, .csv, .tsv, .parquet, or these with .gz or .zst"
    )


def test_a_folder_is_refused_unless_it_is_a_validated_dataset(
    tmp_path: Path, make_image: Any, write_rows: Any, validate: Any
) -> None:
    make_image("a.png")
    path = write_rows({"query": "Read it.", "images": ["a.png"]})
    folder = str(validate(path).folder)
    assert find_dataset_files([folder, f"{folder}#1"]) == [DatasetPart(url=folder), DatasetPart(url=folder, num_rows=1)]
    assert refusal(str(tmp_path)) == (
        f"{tmp_path}: this is a folder, and no validated dataset; name the files in it, such as '{tmp_path}/*.jsonl'"
    )


def test_relative_names_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    monkeypatch.chdir(tmp_path)
    assert find_dataset_files(["*.gz", "a.jsonl.gz"]) == [DatasetPart(url="a.jsonl.gz")] * 2
    assert refusal("a.jsnl.gz") == "a.jsnl.gz: there is no such file; did you mean a.jsonl.gz?"


def test_a_folder_that_cannot_be_listed_gives_no_hint_and_no_silent_lack_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StorageError("the disk fails") from OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(dataset_files, "list_files", fail)
    monkeypatch.setattr(dataset_files, "find_files", fail)
    assert refusal(f"{tmp_path}/a.jsonl") == f"{tmp_path}/a.jsonl: there is no such file; check the path"
    with pytest.raises(StorageError, match="the disk fails"):
        find_dataset_files([f"{tmp_path}/*.jsonl"])


def test_secrets_of_an_address_are_not_shown() -> None:
    message = refusal("memory://user:secret@store/rows.jsonl")
    assert message == "memory://store/rows.jsonl: there is no such file; check the path"


def test_a_compressed_parquet_file_is_no_dataset() -> None:
    assert is_dataset_name("a.PARQUET")
    assert is_dataset_name("a.csv.zst")
    assert not is_dataset_name("a.parquet.gz")
    assert not is_dataset_name("jsonl")
