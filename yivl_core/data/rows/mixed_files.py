"""What a user names as a dataset -> its files, and of each its reader and its rows: all of them, or those that are drawn."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import PurePosixPath
from typing import TypeVar

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import RECORDS_NAME, is_validated_dataset
from yivl_core.data.findings import UnreadableFileError
from yivl_core.data.reading import RowReader
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.dataset_files import DatasetPart, find_dataset_files
from yivl_core.data.rows.mixing import MixedDataset, Selection, mix, take_rows
from yivl_core.data.rows.raw_row import Lines, RawRow, about_file
from yivl_core.data.rows.raw_rows import RowOptions, is_annotated, split_lines, split_raw_rows
from yivl_core.data.rows.row_counts import count_rows
from yivl_core.errors import ConfigurationError
from yivl_core.storage import join

Row = TypeVar("Row", bound=RawRow | Lines)
FileRows = tuple[RowReader, Iterable[RawRow | Lines]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFile:
    """A file of a dataset.

    Attributes:
        url: where it is.
        reader: makes records of its rows.
        rows: those that are taken, read when they are asked for.
        row_format: that of its rows, for the report: one of `FORMATS`, or `coco`.
    """

    url: str
    reader: RowReader
    rows: Iterable[RawRow | Lines]
    row_format: str


def open_files(config: ValidationConfig, block_bytes: Callable[[], int]) -> list[DatasetFile]:
    """The files of a dataset in order.

    Args:
        config: names the files, and how many rows of each are taken.
        block_bytes: about how many bytes of lines come together next.

    Raises:
        ConfigurationError: a name stands for nothing, or numbers and weights cannot be meant.
        DatasetError: the rows of a damaged file have to be counted.
        StorageError: a file cannot be read.
    """
    parts = [_records_of(part) for part in find_dataset_files(config.dataset)]
    options = RowOptions(purpose=config.purpose, mapping=ColumnMapping.of_options(config.columns), question=config.question)
    selections = _select(parts, config, options)
    files = []
    for number, (part, selection) in enumerate(zip(parts, selections, strict=True)):
        reader = RowReader.of_file(
            part.url, config.image_root, config.purpose, max_line_bytes=config.max_line_bytes, mapping=options.mapping
        )
        if selection is None:
            rows: Iterable[RawRow | Lines] = _with_damage(split_lines(part.url, config.max_line_bytes, options, block_bytes))
        else:
            single_rows = _with_damage(split_raw_rows(part.url, config.max_line_bytes, options))
            rows = (again for row, times in take_rows(single_rows, selection) for again in repeat(row, times))
        row_format = "coco" if is_annotated(part.url) else reader.row_format
        files.append(DatasetFile(url=part.url, reader=replace(reader, file_number=number), rows=rows, row_format=row_format))
    return files


def _records_of(part: DatasetPart) -> DatasetPart:
    """A validated dataset as the file of its records."""
    return replace(part, url=join(part.url, RECORDS_NAME)) if is_validated_dataset(part.url) else part


def _select(parts: list[DatasetPart], config: ValidationConfig, options: RowOptions) -> list[Selection | None]:
    """Which rows of each file are taken; None where all are."""
    if config.weights and len(config.weights) != len(parts):
        raise ConfigurationError(f"{len(config.weights)} weights for {len(parts)} files; give one for each")
    if not config.weights and config.num_rows is None and all(part.num_rows is None for part in parts):
        return [None] * len(parts)
    weights = config.weights or (None,) * len(parts)
    mixed = [
        MixedDataset(
            name=PurePosixPath(part.url).name,
            num_rows=count_rows(part.url, config.max_line_bytes, options),
            wanted=part.num_rows,
            weight=weight,
        )
        for part, weight in zip(parts, weights, strict=True)
    ]
    return list(mix(mixed, config.seed, config.num_rows))


def _with_damage(rows: Iterable[Row]) -> Iterator[Row | RawRow]:
    """The rows of a file that is damaged as far as they can be read, and then what is wrong with it."""
    try:
        yield from rows
    except UnreadableFileError as cause:
        yield about_file("damaged_file", cause.message, cause.remedy)
