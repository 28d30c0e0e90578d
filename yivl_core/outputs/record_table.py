"""What is known of each record before it is answered, on disk: by SQLite while it is found out, then as a parquet file."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yivl_core.errors import OutputError
from yivl_core.listing import StoredFile
from yivl_core.outputs.sample_ids import numbered
from yivl_core.storage import open_binary

_ROWS_AT_A_TIME = 10_000
_ROWS_PER_GROUP = 20_000
_SCHEMA = pa.schema(
    [
        pa.field("occurrence", pa.int64(), nullable=False),
        pa.field("is_found", pa.bool_(), nullable=False),
        pa.field("name", pa.binary()),
        pa.field("num_bytes", pa.int64()),
        pa.field("state", pa.string()),
        pa.field("content_key", pa.string()),
        pa.field("line", pa.int64()),
    ],
    metadata={"yivl.schema": "planned records", "yivl.schema_version": "1"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRecord:
    """One record of the plan.

    Attributes:
        occurrence: which record of its name it is, from 1.
        is_found: whether all of its images were there.
        file: of an input of image files, which one it is; else None.
        line: of a list of image files, where it is named; else None.
    """

    occurrence: int
    is_found: bool
    file: StoredFile | None
    line: int | None


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """What a first look tells of a record.

    Attributes:
        key: equal for equal samples.
        is_found, file, line: as in `PlannedRecord`.
    """

    key: bytes
    is_found: bool
    file: StoredFile | None
    line: int | None


class RecordTable:
    """Records in the order of the input. Not to be shared between threads.

    Args:
        database: an empty one.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.executescript(
            "CREATE TABLE records (number INTEGER PRIMARY KEY, key BLOB, occurrence INTEGER DEFAULT 1, is_found INTEGER,"
            " name BLOB, num_bytes INTEGER, state TEXT, content_key TEXT, line INTEGER);"
            "CREATE TABLE alike (number INTEGER PRIMARY KEY);"
            "CREATE TABLE names (name TEXT PRIMARY KEY, next INTEGER) WITHOUT ROWID;"
        )

    def extend(self, records: Iterable[FoundRecord]) -> None:
        """Add records, numbered on from those that are there."""
        source = iter(records)
        while batch := [
            (record.key, record.is_found, *_columns(record.file), record.line) for record in islice(source, _ROWS_AT_A_TIME)
        ]:
            self._write(
                "INSERT INTO records (key, is_found, name, num_bytes, state, content_key, line) VALUES (?, ?, ?, ?, ?, ?, ?)",
                batch,
            )

    def records(self) -> Iterator[PlannedRecord]:
        """All records, in order."""
        return (_planned(columns) for _, *columns in self._pages("TRUE"))

    def find_alike(self) -> int:
        """Note which records share their key with another; returns how many do."""
        self._database.execute("DELETE FROM alike")
        self._database.execute(
            "INSERT INTO alike SELECT number FROM records"
            " WHERE key IN (SELECT key FROM records GROUP BY key HAVING COUNT(*) > 1) ORDER BY number"
        )
        (number,) = self._database.execute("SELECT COUNT(*) FROM alike").fetchone()
        return int(number)

    def alike(self) -> Iterator[tuple[int, PlannedRecord]]:
        """The records that `find_alike` has noted, with their numbers from 0, in order."""
        for number, *columns in self._pages("number IN (SELECT number FROM alike)"):
            yield number - 1, _planned(columns)

    def set_keys(self, keys: Iterable[tuple[int, bytes]]) -> None:
        """Give records other keys, by their numbers."""
        source = iter(keys)
        while batch := [(key, number + 1) for number, key in islice(source, _ROWS_AT_A_TIME)]:
            self._write("UPDATE records SET key = ? WHERE number = ?", batch)

    def set_occurrences(self, names: Iterable[tuple[int, str]], key_of_name: Callable[[str], bytes]) -> None:
        """Number the bearers of each name.

        Args:
            names: numbers of records in order, with their names.
            key_of_name: the key of a record that has been given a name by the user; an occurrence that would make a name of these
                is passed over.
        """
        self._database.execute("CREATE INDEX keys ON records (key)")
        source = iter(names)
        while batch := list(islice(source, _ROWS_AT_A_TIME)):
            self._write(
                "UPDATE records SET occurrence = ? WHERE number = ?",
                [(self._next_occurrence(name, key_of_name), number + 1) for number, name in batch],
            )

    def write(self, path: Path) -> None:
        """Write the records as the parquet file that `read_planned_records` reads."""
        with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
            pages = self._pages("TRUE")
            while rows := list(islice(pages, _ROWS_PER_GROUP)):
                _, occurrences, are_found, *others = zip(*rows, strict=True)
                columns = [occurrences, [bool(is_found) for is_found in are_found], *others]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))

    def _next_occurrence(self, name: str, key_of_name: Callable[[str], bytes]) -> int:
        found = self._database.execute("SELECT next FROM names WHERE name = ?", (name,)).fetchone()
        occurrence = found[0] if found else 1
        while occurrence > 1 and self._has_key(key_of_name(numbered(name, occurrence))):
            occurrence += 1
        self._database.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (name, occurrence + 1))
        return int(occurrence)

    def _has_key(self, key: bytes) -> bool:
        return self._database.execute("SELECT 1 FROM records WHERE key = ? LIMIT 1", (key,)).fetchone() is not None

    def _pages(self, condition: str) -> Iterator[tuple[Any, ...]]:
        """Rows in order, some at a time, so that the table may be written to meanwhile."""
        query = (
            "SELECT number, occurrence, is_found, name, num_bytes, state, content_key, line FROM records"  # noqa: S608  (no user's text)
            f" WHERE number > ? AND {condition} ORDER BY number LIMIT {_ROWS_AT_A_TIME}"
        )
        last = 0
        while rows := self._database.execute(query, (last,)).fetchall():
            yield from rows
            last = rows[-1][0]

    def _write(self, statement: str, batch: list[tuple[Any, ...]]) -> None:
        self._database.execute("BEGIN")
        self._database.executemany(statement, batch)
        self._database.execute("COMMIT")


def read_planned_records(url: str, first: int, stop: int) -> Iterator[PlannedRecord]:
    """Records `first` to `stop - 1` of the file that `RecordTable.write` wrote; of others nothing is read.

    Raises:
        OutputError: the file is damaged.
        StorageError: it cannot be read.
    """
    with open_binary(url) as file:
        try:
            parquet = pq.ParquetFile(file)
            start = 0
            for group in range(parquet.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                if start < stop and end > first:
                    table = parquet.read_row_group(group).slice(max(first - start, 0), min(stop, end) - max(first, start))
                    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                        yield _planned(row)
                start = end
        except (pa.ArrowException, ValueError) as error:
            raise OutputError(f"{url} is damaged ({error}); run `yivl infer` again with an empty output folder") from error


def _columns(file: StoredFile | None) -> tuple[bytes | None, int | None, str | None, str | None]:
    return (None, None, None, None) if file is None else (os.fsencode(file.name), file.num_bytes, file.state, file.content_key)


def _planned(columns: Sequence[Any]) -> PlannedRecord:
    occurrence, is_found, name, num_bytes, state, content_key, line = columns
    file = None if name is None else StoredFile(os.fsdecode(name), num_bytes, state, content_key)
    return PlannedRecord(occurrence=occurrence, is_found=bool(is_found), file=file, line=line)
