"""Tables that are larger than memory and needed for a while: SQLite in the system's folder for temporary files (TMPDIR)."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from yivl_core.errors import StorageError

_CACHE_KIB = 16_000


@contextmanager
def temporary_database() -> Iterator[sqlite3.Connection]:
    """An empty database. It is read and written by whoever holds it, one at a time.

    SQLite removes its file when it has opened it, so that nothing is left of it however this process ends.

    Raises:
        StorageError: the disk is full, or fails.
    """
    with _table_errors(), closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as database:
        database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_CACHE_KIB}")
        yield database


@contextmanager
def _table_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        place = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108  (where SQLite looks first)
        raise StorageError(f"{place}: {error}; free some space there, or set TMPDIR to a folder on a larger disk") from error
