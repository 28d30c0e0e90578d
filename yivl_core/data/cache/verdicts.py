"""What was found out about image files before, so that a file that has not changed is not decoded again.

A verdict counts for a file of the same path, size, inode and times of change, looked at in the same way by the same code. It is a
memory and no promise: whoever loads the image later checks its sha256. All processes that validate share one SQLite file; where
that cannot be used, images are looked at again.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

from yivl_core.data.findings import Finding
from yivl_core.data.references import ImageInfo
from yivl_core.digests import digest_files

Verdict = tuple[ImageInfo | None, tuple[Finding, ...]]

VERDICTS_NAME = "verdicts.sqlite"  # in the folder of a cache

_INFO_NAMES = [field.name for field in fields(ImageInfo)]
_DECIDING_MODULES = (
    "decoding.py",
    "findings.py",
    "checks/image_checks.py",
    "image_errors.py",
    "images.py",
    "references.py",
    "cache/verdicts.py",
)
_PASSING_DETAILS = frozenset({"permission_denied", "out_of_memory"})  # of this user, and of this process
_NUM_KEPT_TO_WRITE = 256
_WAIT_S = 30.0  # for other processes that write
_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, state TEXT, verdict TEXT, noted_at REAL) WITHOUT ROWID
"""


def file_state(path: str) -> str:
    """What changes whenever a file does, as far as that shows without reading it; the reason where there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116  (a `Path` for each of a million images is dear)
    except (OSError, ValueError) as error:  # ValueError: no path at all
        return type(error).__name__
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"


def is_lasting(findings: tuple[Finding, ...]) -> bool:
    """Whether findings about an image stay true as long as its file does, whoever looks at it."""
    return not any(finding.detail in _PASSING_DETAILS for finding in findings)


class Verdicts:
    """Remembers verdicts, for the threads of this process; to be closed by who made it.

    Args:
        path: the file that keeps them.
        way: how images are looked at; only verdicts of the same way count.
    """

    def __init__(self, path: Path, way: str) -> None:
        self._way = f"{way} {_rules()}"
        self._lock = threading.Lock()
        self._new: dict[str, tuple[str, str]] = {}
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._open()
        if self._database is None and not self._path.exists():  # it was damaged
            self._open()

    def verdict(self, path: str, uri: str, state: str, look: Callable[[], Verdict]) -> Verdict:
        """What was found out about a file, or is now by looking at it.

        Args:
            path: of the file.
            uri: how the record names it, which messages tell.
            state: of the file, as `file_state` gives it.
            look: finds out; called where nothing is known.
        """
        known = self._find(self._key(path, uri), state)
        if known is not None:
            return known
        verdict = look()
        if is_lasting(verdict[1]) and file_state(path) == state:  # and not changed meanwhile
            self._keep(self._key(path, uri), state, verdict)
        return verdict

    def flush(self) -> None:
        """Write what is new."""
        with self._lock:
            self._write()

    def close(self) -> None:
        """Write what is new, and forget all."""
        self.flush()
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _open(self) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._sqlite_errors():
            self._database = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            # Not a write-ahead log, which processes on several machines could not share; and disks are not waited for, since a
            # file that a power cut has damaged can be done without.
            self._database.executescript(f"PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = OFF; {_TABLE}")
            try:
                self._database.execute("SELECT key, state, verdict, noted_at FROM verdicts LIMIT 0")
            except sqlite3.OperationalError:  # of an earlier version
                self._database.executescript(f"DROP TABLE verdicts; {_TABLE}")

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        """What cannot be read or written is done without from then on; a file that is no database any more is removed."""
        try:
            yield
        except sqlite3.Error as error:
            if self._database is not None:
                self._database.close()  # which gives back a lock that other processes wait for
                self._database = None
            if type(error) is sqlite3.DatabaseError:
                with suppress(OSError):
                    self._path.unlink()

    def _key(self, path: str, uri: str) -> str:
        return f"{self._way}\0{path}\0{uri}"

    def _find(self, key: str, state: str) -> Verdict | None:
        with self._lock:
            row = self._new.get(key)
            if row is None and self._database is not None:
                with self._sqlite_errors():
                    row = self._database.execute("SELECT state, verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        return _from_json(row[1]) if row is not None and row[0] == state else None

    def _keep(self, key: str, state: str, verdict: Verdict) -> None:
        with self._lock:
            self._new[key] = (state, _to_json(verdict))
            if len(self._new) >= _NUM_KEPT_TO_WRITE:
                self._write()

    def _write(self) -> None:
        if not self._new:
            return
        rows, self._new = [(key, *row, time.time()) for key, row in self._new.items()], {}
        if self._database is not None:
            with self._sqlite_errors():
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", rows)
                self._database.execute("COMMIT")


def count_verdicts(path: Path) -> int:
    """How many verdicts a file keeps; none where there is no such file, or it cannot be read."""
    return _asked(path, "SELECT count(*) FROM verdicts")


def forget_verdicts(path: Path, before_s: float) -> int:
    """Remove the verdicts that were noted before a time, in seconds since 1970; the images will be looked at again.

    Returns:
        How many were removed.
    """
    number = _asked(path, "DELETE FROM verdicts WHERE noted_at < ?", before_s)
    if number:
        _asked(path, "VACUUM")
    return number


def _asked(path: Path, statement: str, *values: float) -> int:
    """The number that a statement gives, or of the rows that it changes; 0 where the file is none."""
    if not path.is_file():
        return 0
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)) as database:
        cursor = database.execute(statement, values)
        row = cursor.fetchone()
        return max(0, cursor.rowcount if row is None else int(row[0]))
    return 0


def _to_json(verdict: Verdict) -> str:
    info, findings = verdict
    return json.dumps([None if info is None else info.values, [asdict(finding) for finding in findings]])


def _from_json(text: str) -> Verdict:
    values, findings = json.loads(text)
    info = None if values is None else ImageInfo(**dict(zip(_INFO_NAMES, values, strict=True)))
    return info, tuple(Finding(**finding) for finding in findings)


@cache
def _rules() -> str:
    """What decides an verdict beside the file: our code and Pillow's."""
    return f"{digest_files(Path(__file__).parent.parent, _DECIDING_MODULES)[:16]} pillow {version('pillow')}"
