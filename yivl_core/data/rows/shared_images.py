"""Tables in which a row names another one whose image it shares -> the same rows, each with its image.

In VLMEvalKit's tables an `image` of at most 64 characters is the `index` of the row that holds the image. That row may stand
anywhere. So where such a cell is met the file is read twice more: to see which rows are named, and to take their images, and no
others, into a table on disk. Files without such cells are read once, and memory does not depend on the file.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from yivl_core.data.findings import UnreadableFileError, error, shown
from yivl_core.data.rows.benchmarks import MAX_INDEX_CHARS
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.formats import detect_format
from yivl_core.data.rows.raw_row import RawRow
from yivl_core.temporary_tables import temporary_database

_SCHEMA = """
CREATE TABLE rows (name TEXT PRIMARY KEY, link TEXT, image TEXT);
CREATE INDEX links ON rows (link);
"""


def with_shared_images(
    rows: Iterator[RawRow], read_again: Callable[[], Iterator[RawRow]], mapping: ColumnMapping
) -> Iterator[RawRow]:
    """The rows of a table, with the image in place of the index of the row that holds it.

    Such a row gets the other's index as `cluster_id`, too. A short `image` that is no index, but looks like a path, is left as it
    is; any other is an error of its row.

    Args:
        rows: of a file, in order.
        read_again: gives the same rows once more.
        mapping: the user's names of columns; without `index` or `image` under their own names nothing is looked up.

    Raises:
        StorageError: the file cannot be read again, or the disk for temporary files is full.
    """
    with ExitStack() as stack:
        images: _Images | None = None
        for row in rows:
            link = _link(row.values)
            if link is None or row.values is None or detect_format(mapping.apply(row.values)) != "vlmevalkit":
                yield row
                continue
            if images is None:
                images = _Images(stack.enter_context(temporary_database()))
                images.fill(read_again)
            yield images.resolve(row, row.values, link)


class _Images:
    """Rows by index: which row each one names, and the images of those that are named."""

    def __init__(self, database: sqlite3.Connection) -> None:
        database.executescript(_SCHEMA)
        self._database = database

    def fill(self, read_again: Callable[[], Iterator[RawRow]]) -> None:
        self._database.execute("BEGIN")
        for values in _readable(read_again()):
            link = _link(values)
            self._database.execute("INSERT OR IGNORE INTO rows (name, link) VALUES (?, ?)", (_name(values), link))
        for values in _readable(read_again()):
            if _link(values) is None and isinstance(image := values.get("image"), str):
                sql = "UPDATE rows SET image = ? WHERE name = ? AND image IS NULL AND EXISTS (SELECT 1 FROM rows WHERE link = ?)"
                self._database.execute(sql, (image, _name(values), _name(values)))
        self._database.execute("COMMIT")

    def resolve(self, row: RawRow, values: dict[str, Any], link: str) -> RawRow:
        seen = {_name(values)}
        name = link
        while name not in seen and (found := self._find(name)) is not None:
            seen.add(name)
            further, image = found
            if image is not None:
                whole = {"cluster_id": name, **values, "image": image}
                return row._replace(values=whole, num_bytes=row.num_bytes + len(image))
            if further is None:
                return _unusable(row, f"`image` is {shown(link)}, and the row of that index holds no image")
            name = further
        if name in seen:
            return _unusable(row, f"`image` is {shown(link)}, which leads from row to row and back here")
        if any(sign in link for sign in "./:"):
            return row
        return _unusable(row, f"`image` is {shown(link)}, which is neither an image nor the index of a row")

    def _find(self, name: str) -> tuple[str | None, str | None] | None:
        found: tuple[str | None, str | None] | None
        found = self._database.execute("SELECT link, image FROM rows WHERE name = ?", (name,)).fetchone()
        return found


def _unusable(row: RawRow, message: str) -> RawRow:
    finding = error("image_missing", message, "write the image in base64, or the index of a row with the same image")
    return row._replace(values=None, findings=[*row.findings, finding])


def _readable(rows: Iterator[RawRow]) -> Iterator[dict[str, Any]]:
    """The values of the rows that can be read, up to where a damaged file ends."""
    try:
        for row in rows:
            if row.values is not None and "index" in row.values:
                yield row.values
    except UnreadableFileError:
        return


def _name(values: dict[str, Any]) -> str:
    return str(values["index"]).strip()


def _link(values: dict[str, Any] | None) -> str | None:
    """What a row says in place of an image."""
    image = None if values is None or "index" not in values else values.get("image")
    return image.strip() if isinstance(image, str) and 0 < len(image) <= MAX_INDEX_CHARS else None
