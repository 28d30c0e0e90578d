r"""Large JSON documents -> the items of their lists, one at a time, each as the bytes in which it is written.

```
[ITEM, ITEM, ...]                        list_items
{"images": [ITEM, ...], "info": {...}}   named_items: lists by the names of the object's fields
```
Items are found here and parsed strictly elsewhere (`parse_raw_row`), so bytes that are not UTF-8 or a key given twice concern one
item. What is no JSON, inside an item or between items, ends the reading with a finding that says so. Memory depends on the
longest item allowed, not on the document: a longer item is passed over, and is not checked.
"""

from collections.abc import Container, Iterator
from typing import IO

from yivl_core.data.findings import error, place_of, shown
from yivl_core.data.rows.json_document import BrokenDocumentError, JsonDocument, broken
from yivl_core.data.rows.raw_row import MAX_KEPT_CHARS, RawRow

_TAIL = "write a comma, or {} at the end of the {}"


def list_items(file: IO[bytes], max_bytes: int) -> Iterator[RawRow]:
    """The items of a document that is a list, each with its bytes or with what is wrong with it.

    Args:
        file: the document, behind a byte order mark if it has one.
        max_bytes: longest item that is read.

    Returns:
        Rows with `json` filled, or with findings; none for an empty document or list. Where the document as a whole is no list,
        the only row has no line.
    """
    document = JsonDocument(file, max_bytes)
    first = document.peek()
    if first == "[":
        numbering = _Numbering()
        try:
            yield from map(numbering.place, _items(document))
            _check_end(document, "list")
        except BrokenDocumentError as cause:
            yield numbering.place(cause.row)
    elif first:
        finding = error("invalid_json", "the file is not a JSON list", "name it .jsonl if it holds one record a line")
        yield RawRow(line=None, findings=[finding])


def named_items(file: IO[bytes], names: Container[str], max_bytes: int) -> Iterator[tuple[str | None, RawRow]]:
    """The items of some lists of a document that is an object, in the order of the document.

    Args:
        file: as for `list_items`.
        names: of the fields whose lists are wanted. Other fields are passed over.
        max_bytes: longest item, and longest value of another kind, that is read.

    Returns:
        (name of the list, row). The name is None for what is wrong with the document: then it was not read to its end, or
        a list is missing from what was read.
    """
    document = JsonDocument(file, max_bytes)
    if document.peek() != "{":
        finding = error("invalid_json", "the file is not a JSON object", 'write {"name": [...], ...}')
        yield None, RawRow(line=None, findings=[finding])
        return
    try:
        yield from _fields(document, names)
        _check_end(document, "object")
    except BrokenDocumentError as cause:
        yield None, cause.row


class _Numbering:
    """Counts the items that begin on the same line."""

    def __init__(self) -> None:
        self._line, self._item = 0, 0

    def place(self, row: RawRow) -> RawRow:
        """A row, of which the line is known, with its place."""
        assert row.line is not None
        self._line, self._item = row.line, self._item + 1 if row.line == self._line else 1
        return row._replace(line=place_of(self._line, self._item))


def _items(document: JsonDocument) -> Iterator[RawRow]:
    """The items of the list whose bracket is next; leaves the document behind the closing one."""
    document.take()
    if document.peek() == "]":
        document.take()
        return
    while True:
        yield document.read_item()
        if document.take_comma():
            continue
        if document.peek() == "]":
            document.take()
            return
        message = "behind an item of the list there is neither a comma nor a bracket"
        raise broken(document.line, "invalid_json", message, _TAIL.format("]", "list"))


def _fields(document: JsonDocument, names: Container[str]) -> Iterator[tuple[str | None, RawRow]]:
    seen = set()
    document.take()
    if document.peek() == "}":
        document.take()
        return
    while True:
        name = document.read_name()
        line = document.line
        if name in seen:
            finding = error("duplicate_key", f"the key {shown(name)} stands twice in one object", "keep one of them")
            yield None, RawRow(line=line, findings=[finding])
        if name in names:
            seen.add(name)
        if name in names and document.peek() == "[":
            for row in map(_Numbering().place, _items(document)):
                yield name, row
        elif name in names:
            row = document.read_item()
            text = row.text or (row.json or b"")[:MAX_KEPT_CHARS].decode(errors="backslashreplace")
            finding = error("wrong_type", f"`{name}` is not a list: {shown(text)}", "write a list")
            yield None, RawRow(line=row.line, text=text, findings=[finding])
        else:
            document.skip_value()
        if document.take_comma():
            continue
        if document.peek() == "}":
            document.take()
            return
        message = "behind a field of the object there is neither a comma nor a brace"
        raise broken(document.line, "invalid_json", message, _TAIL.format("}", "object"))


def _check_end(document: JsonDocument, kind: str) -> None:
    if document.peek():
        message = f"behind the {kind} there is more text: {shown(document.text_ahead(200))}"
        finding = error("trailing_garbage", message, "remove it")
        raise BrokenDocumentError(RawRow(line=document.line, findings=[finding]))
