"""What a validation has looked at, so that the next one sees whether anything has changed since: `inputs.parquet`.

The file lists every image file with its state and with where its folder really is, which links and moves change, and in its
metadata a digest of all else that decides the result: the content of the dataset files, the settings, the code. Images are looked
up by name, size and times, not read.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yivl_core.data.cache.verdicts import file_state
from yivl_core.data.configuration import UNDECIDING, ValidationConfig
from yivl_core.data.dataset import (
    IMAGES_NAME,
    INPUTS_NAME,
    QUARANTINE_NAME,
    READABLE_REPORT_NAME,
    RECORDS_NAME,
    REPORT_NAME,
    SHEET_NAME,
    WARNINGS_NAME,
    ValidatedDataset,
)
from yivl_core.data.reading import readable
from yivl_core.digests import digest_file, digest_files, digest_json
from yivl_core.listing import file_state as stored_state
from yivl_core.storage import is_local, open_binary

_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("folder", pa.binary(), nullable=False),  # of the path, with its links followed
    ]
)
_METADATA = b"yivl"
_ROWS_PER_GROUP = 100_000
_BYTES_AT_A_TIME = 1 << 20
_RESULTS = (RECORDS_NAME, QUARANTINE_NAME, WARNINGS_NAME, IMAGES_NAME, REPORT_NAME, READABLE_REPORT_NAME, SHEET_NAME)
_TOKENIZER_FILES = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "config.json")


def digest_inputs(config: ValidationConfig, urls: Sequence[str]) -> str:
    """sha256 (hex) of all that decides a result but for the images.

    Args:
        config: the settings.
        urls: the dataset files that they name.

    Raises:
        DatasetError: a dataset to be kept apart is none.
        StorageError: a dataset file cannot be read.
    """
    content = [_content_state(url) for url in urls]
    tokenizer = None
    if config.model is not None:
        tokenizer = [digest_file(path) for name in _TOKENIZER_FILES if (path := Path(config.model) / name).is_file()]
    settings = json.dumps(config.model_dump(mode="json", exclude=set(UNDECIDING)))
    apart = [ValidatedDataset.open(folder).digest for folder in config.apart_from]
    named = [*urls, *(() if config.image_root is None else (config.image_root,))]
    places = [readable(os.path.realpath(url) if is_local(url) else url) for url in named]
    return digest_json([settings, [readable(url) for url in urls], places, content, tokenizer, apart, _code()])


def _content_state(url: str) -> str:
    """What changes with the content of a dataset file. A web server need not tell it, so that its file is read."""
    if is_local(url):
        return digest_file(Path(url))
    if not url.startswith(("http://", "https://")):
        return stored_state(url).state
    digest = hashlib.sha256()
    with open_binary(url) as file:
        while data := file.read(_BYTES_AT_A_TIME):
            digest.update(data)
    return digest.hexdigest()


def write_inputs(folder: Path, digest: str, images: Iterable[tuple[bytes, str]]) -> None:
    """Write `inputs.parquet` when all other files of a result are written.

    Args:
        folder: of the result.
        digest: of `digest_inputs`.
        images: path and state of each image file that was looked at, by path.
    """
    results = {name: file_state(str(folder / name)) for name in _RESULTS}
    schema = _SCHEMA.with_metadata({_METADATA: json.dumps({"digest": digest, "results": results}).encode()})
    folders = _Folders()
    rows = ((path, state, folders.real_folder(path)) for path, state in images)
    with pq.ParquetWriter(folder / INPUTS_NAME, schema) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.table(list(zip(*group, strict=True)), schema=schema))


def is_unchanged(folder: Path, digest: str) -> bool:
    """Whether a folder holds the result of the same inputs, itself unchanged, and every image file is as it was."""
    try:
        with pq.ParquetFile(folder / INPUTS_NAME) as file:
            noted: dict[str, Any] = json.loads((file.schema_arrow.metadata or {})[_METADATA])
            if noted["digest"] != digest:
                return False
            states: Iterator[tuple[str, str]] = ((str(folder / name), state) for name, state in noted["results"].items())
            if any(file_state(path) != state for path, state in states):
                return False
            folders = _Folders()
            return all(
                file_state(os.fsdecode(path)) == state and folders.real_folder(path) == real_folder
                for batch in file.iter_batches()
                for path, state, real_folder in zip(*(column.to_pylist() for column in batch.columns), strict=True)
            )
    except (OSError, ValueError, KeyError, pa.ArrowException):  # there is none, or none of ours
        return False


class _Folders:
    """Where the folders of files really are, looked up once for files that follow each other."""

    def __init__(self) -> None:
        self._folder: bytes | None = None
        self._real_folder = b""

    def real_folder(self, path: bytes) -> bytes:
        """The folder of a file, absolute, with its links followed."""
        folder = os.path.dirname(path)  # noqa: PTH120  (a `Path` for each of a million images is dear)
        if folder != self._folder:
            self._folder, self._real_folder = folder, os.path.realpath(folder)
        return self._real_folder


@cache
def _code() -> list[str]:
    root = Path(__file__).parents[2]
    paths = [path for package in ("data", "processing") for path in (root / package).rglob("*.py")]
    packages = [f"{name} {version(name)}" for name in ("orjson", "pillow", "pyarrow")]
    return [digest_files(root, [path.relative_to(root).as_posix() for path in paths]), *packages]
