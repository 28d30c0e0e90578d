"""What a user names as datasets -> the files to read, in a fixed order, and how many rows of each are wanted.

| name | stands for |
|---|---|
| `rows.jsonl`, `s3://bucket/rows.csv.gz` | this file |
| `data/*.jsonl`, `s3://bucket/**/*.parquet` | files so named, sorted by the bytes of their names, without dot files |
| `rows.jsonl#500` | 500 rows of this file |
| `validated/` | a validated dataset |

A file that is really named so, with `#`, `*` or brackets, comes before any of these meanings. Nothing is opened.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from glob import has_magic
from pathlib import Path, PurePosixPath

from yivl_core.data.dataset import is_validated_dataset
from yivl_core.data.image_folders import find_files
from yivl_core.data.rows.compression import COMPRESSED_SUFFIXES, data_suffix, is_compressed
from yivl_core.errors import ConfigurationError, DatasetError, StorageError
from yivl_core.object_stores import without_secrets
from yivl_core.storage import exists, is_file, is_local, is_missing, join, list_files, parent

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

_COUNTED = re.compile(r"(.+)#([0-9]+)", re.DOTALL)
_MAX_NEAR_NAMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetPart:
    """A file to read, or a validated dataset.

    Attributes:
        url: where it is.
        num_rows: how many rows are wanted; None: all.
    """

    url: str
    num_rows: int | None = None


def find_dataset_files(names: Iterable[str]) -> list[DatasetPart]:
    """The files that names stand for, in the order of the names; a file that two names stand for comes twice.

    Raises:
        ConfigurationError: a name stands for nothing, for a folder that is no validated dataset, or for a number of rows of
            several files.
        StorageError: a folder cannot be listed.
    """
    return [part for name in names for part in _parts(name)]


def is_dataset_name(name: str) -> bool:
    """Whether a file of this name is one that holds rows, compressed or not."""
    suffix = data_suffix(name)
    return suffix in DATA_SUFFIXES and not (suffix == ".parquet" and is_compressed(name))


def _parts(name: str) -> list[DatasetPart]:
    counted = _COUNTED.fullmatch(name)
    is_asked = counted is not None and name.startswith(("http://", "https://"))  # a web server is never told what follows a `#`
    if not is_asked and (found := _find(name)):
        return [DatasetPart(url=url) for url in found]
    if counted is None or not (found := _find(counted.group(1))):
        raise ConfigurationError(_nothing_there(name if counted is None else counted.group(1)))
    num_rows = int(counted.group(2))
    if num_rows == 0:
        raise ConfigurationError(f"{without_secrets(name)}: no rows are wanted of it; leave it out, or write a number from 1")
    if len(found) > 1:
        raise ConfigurationError(
            f"{without_secrets(name)}: {num_rows} rows of {len(found)} files; write the number behind the name of each file"
        )
    return [DatasetPart(url=found[0], num_rows=num_rows)]


def _find(name: str) -> list[str]:
    """The files, or the validated dataset, that a name without a number stands for; empty where nothing is there."""
    if is_file(name):
        return [name]
    if exists(name):
        if not is_validated_dataset(name):
            place = without_secrets(name).rstrip("/")
            raise ConfigurationError(
                f"{place}: this is a folder, and no validated dataset; name the files in it, such as '{place}/*.jsonl'"
            )
        return [name]
    return _find_by_pattern(name) if has_magic(name) else []


def _find_by_pattern(pattern: str) -> list[str]:
    try:
        listing = find_files(pattern, frozenset({*DATA_SUFFIXES, *COMPRESSED_SUFFIXES}))
        names = [file.name for file in listing.files if is_dataset_name(file.name)]
    except DatasetError:  # nothing has such an ending
        return []
    except StorageError as cause:
        if not is_missing(cause):
            raise
        return []  # the folder in front of the pattern is not there
    if isinstance(listing.root, Path):
        return [str(listing.root / name) for name in names]
    return [join(listing.root, name) for name in names]


def _nothing_there(name: str) -> str:
    shown = without_secrets(name)
    if has_magic(name):
        return f"{shown}: no file there is named so and ends in {', '.join(DATA_SUFFIXES)}, or these with .gz or .zst"
    near = _near_names(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "check the path"
    return f"{shown}: there is no such file; {hint}"


def _near_names(name: str) -> list[str]:
    """Names of files in the same folder that are spelt nearly so."""
    last = PurePosixPath(name).name if is_local(name) else name.rpartition("/")[2]
    try:
        there = list_files(parent(name))
    except (StorageError, ConfigurationError):  # the file is not there in any case
        return []
    near = get_close_matches(last, filter(is_dataset_name, there), n=_MAX_NEAR_NAMES)
    return [without_secrets(str(Path(name).with_name(one)) if is_local(name) else join(parent(name), one)) for one in near]
