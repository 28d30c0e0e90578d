"""Tables that are larger than memory and needed for a while: SQLite in the system's folder for temporary files (TMPDIR)."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager

from yivl_core.errors import StorageError

_CACHE_KIB = 16_000


@contextmanager
def temporary_database() -> Iterator[sqlite3.Connection]:
    """An empty database, removed at the end. It is read and written by whoever holds it, one at a time."""
    with (
        table_errors(),
        tempfile.TemporaryDirectory(prefix="yivl-table-") as folder,
        closing(sqlite3.connect(f"{folder}/table.db", isolation_level=None, check_same_thread=False)) as database,
    ):
        database.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE; PRAGMA cache_size = -{_CACHE_KIB}"
        )
        yield database


@contextmanager
def table_errors() -> Iterator[None]:
    """Turns what SQLite cannot do in this block, mostly for lack of room, into an error with a remedy.

    Raises:
        StorageError: the disk is full, or fails.
    """
    try:
        yield
    except sqlite3.Error as error:
        place = tempfile.gettempdir()
        raise StorageError(f"{place}: {error}; free some space there, or set TMPDIR to a folder on a larger disk") from error
