"""One answer of batch inference as a row, and the parquet files that hold the rows.

An output folder holds `predictions/part-NNNNN.parquet` (the rows, split as `shards.py` plans), `plan.json` and `manifest.json`.
Parts are read one batch of rows at a time, so a folder may be larger than memory; a part being written is held in memory.
The columns, their units and when they are null stand in `schema.py`.
"""

import hashlib
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from yivl_core.data.reading import InputRow
from yivl_core.digests import canonical_json
from yivl_core.errors import OutputError
from yivl_core.outputs.schema import COLUMNS, PREDICTION_SCHEMA, READ_SCHEMAS
from yivl_core.storage import join, list_files, open_binary, publish_bytes

PARTS_FOLDER = "predictions"
FinishReason = Literal["stop", "length", "error"]

_PART_NAME = re.compile(r"part-(\d{5,})\.parquet")
_BATCH_ROWS = 1000
# Raised with the columns that are content, not with the schema: the same answers keep their digest.
_CONTENT_VERSION = "1"
_CONTENT_COLUMNS = tuple(column.name for column in COLUMNS if column.is_content)


class DamagedPartError(OutputError):
    """A part that cannot be read as it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionImage:
    """One image of a row: its address as given, and what could be found out about it (sha256 in hex, size in pixels)."""

    uri: str
    sha256: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One row. Each attribute is a column of `schema.COLUMNS`, which tells meaning, unit and when it is null."""

    sample_id: str
    cluster_id: str | None
    record_index: int
    source: str
    query: str | None
    history: tuple[tuple[str, str], ...]
    system: str | None
    images: tuple[PredictionImage, ...]
    reference: str | None
    references: tuple[str, ...]
    meta: str
    response: str | None
    finish_reason: FinishReason
    error_kind: str | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_logprobs: tuple[float, ...] | None = None
    preprocess_s: float | None = None
    generate_s: float | None = None

    @property
    def has_failed(self) -> bool:
        """Whether there is an error in place of an answer."""
        return self.finish_reason == "error"


class RecordColumns(TypedDict):
    """The columns that an input row decides, whatever the model makes of it."""

    cluster_id: str | None
    source: str
    query: str | None
    history: tuple[tuple[str, str], ...]
    system: str | None
    reference: str | None
    references: tuple[str, ...]
    meta: str


def record_columns(row: InputRow) -> RecordColumns:
    """What the row's record says, to be unpacked into `Prediction(...)`; next to nothing for a line that is no record."""
    record = row.record
    return RecordColumns(
        cluster_id=record.cluster_id if record else None,
        source=str(row.source),
        query=record.query if record else None,
        history=record.history if record else (),
        system=record.system if record else None,
        reference=record.response if record else None,
        references=record.references if record else (),
        meta=canonical_json(record.meta if record else {}),
    )


def write_part(output: str, file_name: str, predictions: Sequence[Prediction]) -> None:
    """Publish rows as one parquet file, in one step. Equal rows give equal bytes (with the same version of pyarrow).

    Raises:
        StorageError: the file cannot be written.
    """
    for prediction in predictions:
        _check(prediction)
    table = pa.Table.from_pylist([_to_columns(prediction) for prediction in predictions], schema=PREDICTION_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    publish_bytes(join(output, PARTS_FOLDER, file_name), buffer.getvalue())


def list_parts(output: str) -> list[str]:
    """The file names of the published parts, in record order."""
    names = [name for name in list_files(join(output, PARTS_FOLDER)) if _PART_NAME.fullmatch(name)]
    return sorted(names, key=lambda name: (len(name), name))


def read_predictions(output: str) -> Iterator[Prediction]:
    """The rows of an output folder in record order, one batch of rows in memory at a time.

    Raises:
        OutputError: there are no predictions, a part cannot be read, has another schema, or holds records of another part.
        StorageError: a part cannot be opened.
    """
    return map(to_prediction, read_columns(output))


def read_columns(output: str) -> Iterator[dict[str, Any]]:
    """The same rows as values by column, for who needs no `Prediction` of each: to make a million takes a quarter of a minute.

    Raises:
        OutputError, StorageError: as `read_predictions`.
    """
    file_names = list_parts(output)
    if not file_names:
        raise OutputError(
            f"{output} holds no {PARTS_FOLDER}/part-*.parquet; give the folder that `yivl infer --output` was told to write to"
        )
    last_index = -1
    for file_name in file_names:
        url = join(output, PARTS_FOLDER, file_name)
        for columns in _read_part(output, file_name):
            if columns["record_index"] <= last_index:
                raise OutputError(
                    f"{url}: record {columns['record_index']} comes after record {last_index}, so parts of different runs are "
                    "mixed in this folder; run `yivl infer` again with an empty output folder"
                )
            last_index = columns["record_index"]
            yield columns


def read_chosen_columns(output: str, file_name: str, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Some columns of a part, in batches of rows: the others are not unpacked, which saves most of the time.

    Raises:
        OutputError, StorageError: as `read_predictions`.
    """
    with _opened_part(join(output, PARTS_FOLDER, file_name), columns) as batches:
        for batch in batches:
            yield batch.to_pylist()


def read_rows(output: str, record_indices: Collection[int]) -> Iterator[Prediction]:
    """Some rows, in record order; the others are unpacked, but no objects are made of them.

    Args:
        output: the folder.
        record_indices: which rows; those that are not there are left out.

    Raises:
        OutputError, StorageError: as `read_predictions`.
    """
    wanted = pa.array(sorted(record_indices), pa.int64())
    for file_name in list_parts(output):
        with _opened_part(join(output, PARTS_FOLDER, file_name)) as batches:
            found = [batch.filter(pc.is_in(batch.column("record_index"), wanted)) for batch in batches]
        for batch in found:
            yield from map(to_prediction, batch.to_pylist())


def count_failures(output: str, file_name: str, records: range) -> int | None:
    """How many rows of a part have an error in place of an answer; None if it cannot be read, or holds other records.

    Raises:
        OutputError: it has another schema, so another yivl wrote it: nothing that may be written over.
        StorageError: it cannot be opened.
    """
    indices, num_failed = list[int](), 0
    try:
        with _opened_part(join(output, PARTS_FOLDER, file_name)) as batches:
            for batch in batches:
                indices += batch.column("record_index").to_pylist()
                num_failed += batch.num_rows - batch.column("error_kind").null_count
    except DamagedPartError:
        return None
    return num_failed if indices == list(records) else None


class ContentDigest:
    """sha256 over all columns that are content, row by row: the same however the rows are split into parts.

    Of a row it takes `canonical_json`, which orjson writes in a fifth of the time for what these columns hold: texts and 64-bit
    whole numbers, no fractions.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256(f"predictions {_CONTENT_VERSION}\n".encode())

    def update(self, prediction: Prediction) -> None:
        """Take in the next row in record order."""
        self.update_columns(_to_columns(prediction))

    def update_columns(self, columns: Mapping[str, Any]) -> None:
        """The same with the row as `read_columns` gives it."""
        content = {name: columns[name] for name in _CONTENT_COLUMNS}
        self._hash.update(orjson.dumps(content, option=orjson.OPT_SORT_KEYS) + b"\n")

    def hexdigest(self) -> str:
        """The digest of the rows so far, in hex."""
        return self._hash.hexdigest()


def content_digest(output: str) -> str:
    """The `ContentDigest` of an output folder.

    Raises:
        OutputError, StorageError: as `read_predictions`.
    """
    digest = ContentDigest()
    for columns in read_columns(output):
        digest.update_columns(columns)
    return digest.hexdigest()


def read_part(output: str, file_name: str) -> Iterator[Prediction]:
    """The rows of one part.

    Raises:
        OutputError, StorageError: as `read_predictions`.
    """
    return map(to_prediction, _read_part(output, file_name))


def _read_part(output: str, file_name: str) -> Iterator[dict[str, Any]]:
    with _opened_part(join(output, PARTS_FOLDER, file_name)) as batches:
        for batch in batches:
            yield from batch.to_pylist()


@contextmanager
def _opened_part(url: str, columns: Sequence[str] | None = None) -> Iterator[Iterator[pa.RecordBatch]]:
    """The rows of a part in batches; whatever is wrong with what it holds is a `DamagedPartError`."""
    with open_binary(url) as file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            _check_schema(parquet.schema_arrow, url)
            yield _read_batches(parquet, columns)
        except (pa.ArrowException, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk or the network, not the content
            raise DamagedPartError(
                f"{url} is damaged ({error}); run the same `yivl infer` with --resume to write it again"
            ) from error


def _read_batches(parquet: pq.ParquetFile, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    num_rows = 0
    for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
        batch.validate(full=True)
        num_rows += batch.num_rows
        yield batch
    if num_rows != parquet.metadata.num_rows:  # a damaged page header can hide rows without an error
        raise pa.ArrowInvalid(f"{num_rows} rows where there should be {parquet.metadata.num_rows}")


def _check_schema(schema: pa.Schema, url: str) -> None:
    version = (schema.metadata or {}).get(b"yivl.schema_version", b"none").decode()
    known = READ_SCHEMAS.get(version)
    if known is None or not schema.equals(known):
        read = " and ".join(READ_SCHEMAS)
        what = f"the prediction schema version {version}" if known is None else f"other columns than version {version}"
        raise OutputError(
            f"{url} has {what}, and this yivl reads {read}; "
            "read it with what wrote it, or run `yivl infer` again with an empty output folder"
        )


def _check(prediction: Prediction) -> None:
    for column in COLUMNS:
        assert column.null_when is not None or getattr(prediction, column.name) is not None, column.name
    answer = (prediction.response, prediction.prompt_tokens, prediction.completion_tokens)
    problem = (prediction.error_kind, prediction.error)
    absent, present = (answer, problem) if prediction.has_failed else (problem, answer)
    assert all(value is None for value in absent), prediction
    assert all(value is not None for value in present), prediction
    logprobs = prediction.completion_logprobs
    assert logprobs is None or len(logprobs) == prediction.completion_tokens, prediction


def _to_columns(prediction: Prediction) -> dict[str, Any]:
    columns: dict[str, Any] = {column.name: getattr(prediction, column.name) for column in COLUMNS}
    columns["history"] = [{"query": query, "response": response} for query, response in prediction.history]
    columns["references"] = list(prediction.references)
    columns["images"] = [
        {"uri": _as_utf8(image.uri), "sha256": image.sha256, "width": image.width, "height": image.height}
        for image in prediction.images
    ]
    columns["completion_logprobs"] = None if prediction.completion_logprobs is None else list(prediction.completion_logprobs)
    columns["source"] = _as_utf8(prediction.source)
    columns["error"] = None if prediction.error is None else _as_utf8(prediction.error)
    return columns


def to_prediction(columns: dict[str, Any]) -> Prediction:
    """The row whose values by column these are, from `read_columns`; the dictionary is used up."""
    columns["history"] = tuple((pair["query"], pair["response"]) for pair in columns["history"])
    columns["references"] = tuple(columns["references"])
    columns["images"] = tuple(PredictionImage(**image) for image in columns["images"])
    if (logprobs := columns.get("completion_logprobs")) is not None:
        columns["completion_logprobs"] = tuple(logprobs)
    return Prediction(**columns)


def _as_utf8(text: str) -> str:
    """The text with what UTF-8 cannot say escaped: the name of a file may hold any bytes."""
    return text.encode(errors="backslashreplace").decode()
