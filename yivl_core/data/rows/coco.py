"""COCO caption annotations -> rows: one for each caption to train on, one for each image to caption and compare.

```
{"info": {...}, "licenses": [...],
 "images": [{"id": 9, "file_name": "000000000009.jpg", ...}, ...],
 "annotations": [{"image_id": 9, "id": 661611, "caption": "Closeup of bins of food"}, ...]}
```
Images are named by their file in the folder that the user gives as the image root. Captions go to a table on disk until the
whole file is read, so its parts may come in any order and memory does not grow with it. https://cocodataset.org/#format-data
"""

import json
import re
import sqlite3
from collections.abc import Iterator
from itertools import groupby
from typing import IO, Any

from yivl_core.data.configuration import Purpose
from yivl_core.data.findings import Finding, Source, error, wrong_type
from yivl_core.data.presets import find_question
from yivl_core.data.rows.json_items import named_items
from yivl_core.data.rows.raw_row import MAX_KEPT_CHARS, RawRow, parse_raw_row
from yivl_core.data.rows.strict_json import StrictJsonReader, check_text, is_storable
from yivl_core.temporary_tables import temporary_database

DEFAULT_QUESTION = find_question("caption", "en")

_SECTIONS = ("images", "annotations")
# What the first field of such a file looks like; a row of ours under the name of .json may begin with "images": ["...
_START = re.compile(
    rb'\s*\{\s*"(?:(?:info|licenses|categories)"\s*:\s*[\[{]|type"\s*:\s*"|(?:images|annotations)"\s*:\s*\[\s*(?:\{|\]))'
)
_SCHEMA = """
CREATE TABLE images (number INTEGER PRIMARY KEY, id TEXT UNIQUE, line INTEGER, file_name TEXT);
CREATE TABLE annotations (number INTEGER PRIMARY KEY, id TEXT UNIQUE, line INTEGER, image_id TEXT, caption TEXT);
"""
_TRAINING_ROWS = """
SELECT annotations.line, annotations.id, annotations.image_id, annotations.caption, images.file_name
FROM annotations LEFT JOIN images ON images.id = annotations.image_id ORDER BY annotations.number
"""
_STRAY_ROWS = """
SELECT line, id, image_id FROM annotations WHERE image_id NOT IN (SELECT id FROM images) ORDER BY number
"""
_IMAGE_ROWS = """
SELECT images.line, images.id, images.file_name, annotations.caption
FROM images LEFT JOIN annotations ON annotations.image_id = images.id ORDER BY images.number, annotations.number
"""


def is_coco(head: bytes) -> bool:
    """Whether a `.json` file holds COCO annotations, by its first bytes (behind a byte order mark; 100 suffice)."""
    return _START.match(head) is not None


def read_coco(file: IO[bytes], max_bytes: int, purpose: Purpose, question: str = DEFAULT_QUESTION) -> Iterator[RawRow]:
    """The rows of a file of caption annotations, after what is wrong with its parts.

    For training a row for each caption, in the order of annotations, with the caption's line and `id`; images without a caption
    give none. For inference a row for each image, in the order of images, with the image's line and `id`: the first caption is
    the response, the others are references. In both `cluster_id` is the image's id. White space around a caption is dropped.

    Args:
        file: the document, behind a byte order mark if it has one.
        max_bytes: longest item that is read.
        purpose: what the rows are for.
        question: asked about each image.

    Returns:
        Rows with values, and before them rows with findings. Where the document itself is damaged, rows with findings alone.

    Raises:
        StorageError: the file cannot be read, or the disk for temporary files is full.
    """
    with temporary_database() as database:
        database.executescript(_SCHEMA)
        database.execute("BEGIN")
        tables = _Tables(database)
        yield from tables.fill(file, max_bytes)
        if tables.is_broken:
            return
        database.execute("COMMIT")
        yield from _training_rows(database, question) if purpose == "training" else _inference_rows(database, question)


class _Tables:
    """Takes images and captions into tables.

    Attributes:
        is_broken: whether the document was not read to its end, or lacks a part.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.is_broken = False

    def fill(self, file: IO[bytes], max_bytes: int) -> Iterator[RawRow]:
        """What is wrong with the document and its items."""
        reader = StrictJsonReader()
        missing = set(_SECTIONS)
        for section, item in named_items(file, _SECTIONS, max_bytes):
            if section is None:
                self.is_broken = True
                yield item
                continue
            missing.discard(section)
            row = parse_raw_row(item, reader)
            findings = list(row.findings)
            if row.values is not None and row.line is not None:
                findings += (self._add_image if section == "images" else self._add_caption)(row.values, row.line)
            if findings:
                yield row._replace(values=None, findings=findings)
        if missing and not self.is_broken:
            message = f"the file has nothing in {' and '.join(f'`{name}`' for name in sorted(missing))}"
            finding = error("missing_field", message, "name a file of caption annotations, such as captions_val2017.json")
            self.is_broken = True
            yield RawRow(line=None, findings=[finding])

    def _add_image(self, values: dict[str, Any], line: int) -> list[Finding]:
        findings: list[Finding] = []
        key = _key(values, "id", findings)
        name = _text(values, "file_name", findings)
        if not findings:
            findings += self._insert("images", "id, line, file_name", (key, line, name))
        return findings

    def _add_caption(self, values: dict[str, Any], line: int) -> list[Finding]:
        findings: list[Finding] = []
        key = _key(values, "id", findings) if values.get("id") is not None else None
        image = _key(values, "image_id", findings)
        caption = _text(values, "caption", findings)
        if not findings:
            findings += self._insert("annotations", "id, line, image_id, caption", (key, line, image, caption.strip()))
        return findings

    def _insert(self, table: str, columns: str, values: tuple[Any, ...]) -> Iterator[Finding]:
        """Add a row, unless there is one with this id, which is the first of the values."""
        try:
            marks = ", ".join("?" * len(values))
            self._database.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)  # noqa: S608  (names of ours)
        except sqlite3.IntegrityError:
            key = values[0]
            (line,) = self._database.execute(f"SELECT line FROM {table} WHERE id = ?", (key,)).fetchone()  # noqa: S608
            yield error(
                "duplicate_key",
                f"the id {key} stands in the {table} on line {Source.of_place('', line).line} already",
                "keep one of them",
            )


def _key(values: dict[str, Any], name: str, findings: list[Finding]) -> str:
    """An id as JSON writes it, so that 7 and "7" are two."""
    value = values.get(name)
    if type(value) is int:
        return str(value)
    if name not in values:
        findings.append(error("missing_field", f"there is no `{name}`", "add it"))
    elif not isinstance(value, str):
        findings.append(wrong_type(name, value, "a number or a string"))
    findings += check_text(value, name)
    return json.dumps(value)


def _text(values: dict[str, Any], name: str, findings: list[Finding]) -> str:
    value = values.get(name)
    if isinstance(value, str) and is_storable(value) and value.strip():
        return value
    if name not in values:
        remedy = "add it; of COCO's annotations, those of captions alone can be read" if name == "caption" else "add it"
        findings.append(error("missing_field", f"there is no `{name}`", remedy))
    elif not isinstance(value, str):
        findings.append(wrong_type(name, value, "a string"))
    elif not value.strip():
        findings.append(error("empty_field", f"`{name}` is empty", "fill it, or leave the item out"))
    findings += check_text(value, name)
    return value if isinstance(value, str) else ""


def _training_rows(database: sqlite3.Connection, question: str) -> Iterator[RawRow]:
    for line, key, image, caption, file_name in database.execute(_TRAINING_ROWS):
        if file_name is None:
            yield _stray(line, key, image)
            continue
        values = {"query": question, "response": caption, "images": [file_name], "cluster_id": _shown_id(image)}
        if key is not None:
            values["id"] = _shown_id(key)
        yield RawRow(line=line, text=caption[:MAX_KEPT_CHARS], values=values, num_bytes=len(caption))


def _inference_rows(database: sqlite3.Connection, question: str) -> Iterator[RawRow]:
    for line, key, image in database.execute(_STRAY_ROWS):
        yield _stray(line, key, image)
    for (line, image, file_name), group in groupby(database.execute(_IMAGE_ROWS), key=lambda row: row[:3]):
        captions = [caption for *_, caption in group if caption is not None]
        values: dict[str, Any] = {
            "query": question,
            "images": [file_name],
            "id": _shown_id(image),
            "cluster_id": _shown_id(image),
        }
        if captions:
            values["response"], *values["references"] = captions
        yield RawRow(line=line, text=file_name[:MAX_KEPT_CHARS], values=values, num_bytes=sum(map(len, captions)))


def _stray(line: int, key: str | None, image: str) -> RawRow:
    what = "an annotation" if key is None else f"the annotation {key}"
    message = f"{what} has the `image_id` {image}, which is none of the file's images"
    return RawRow(line=line, findings=[error("image_missing", message, "add the image to `images`, or leave the annotation out")])


def _shown_id(key: str) -> str:
    return str(json.loads(key)) if key.startswith('"') else key
