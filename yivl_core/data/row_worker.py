"""A process that checks blocks of rows and does nothing else: `python -m yivl_core.data.row_worker MAX_PIXELS`.

```
stdin   {"reader": [...], "rows": [...], "sizes": [...]}     a line of JSON, then the rows' own bytes
stdout  {"rows": [...], "images": [...], "sizes": [...]}     a line of JSON, then records, canonical and keys
        {"error": "...", "errno": 5}                         where the disk or network failed
```
The process ends with its stdin, so it never outlives the one that started it.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from yivl_core.data.findings import Finding
from yivl_core.data.images import ImageStore
from yivl_core.data.raw_rows import RawRow
from yivl_core.data.reading import RowReader
from yivl_core.data.row_checks import CheckedBlock, CheckedRow, ImageChecker, RowBlock, check_block
from yivl_core.errors import StorageError


class BrokenStreamError(Exception):
    """A message ends before its end: the other process has died."""


def write_request(block: RowBlock) -> bytes:
    """The message that asks a worker to check a block."""
    reader = block.reader
    head = {
        "reader": [reader.file, str(reader.folder), reader.image_root and str(reader.image_root), reader.purpose],
        "rows": [[row.line, row.text, row.json is not None, row.values, _to_json(row.findings)] for row in block.rows],
    }
    return _message(head, [row.json for row in block.rows if row.json is not None])


def read_reply(stream: IO[bytes], file: str) -> CheckedBlock:
    """What a worker answers about a block of a file.

    Raises:
        StorageError: its disk or network failed.
        BrokenStreamError: it has died.
    """
    head, parts = _read_message(stream) or ({}, [])
    if "error" in head:
        number = head["errno"]
        raise StorageError(head["error"]) from (None if number is None else OSError(number, os.strerror(number)))
    if not head:
        raise BrokenStreamError
    records, canonical, keys = parts
    rows = [
        CheckedRow(line=line, id=name, findings=_from_json(findings), text=text) for line, name, findings, text in head["rows"]
    ]
    return CheckedBlock(file=file, rows=rows, records=records, canonical=canonical, keys=keys, images=head["images"])


def main() -> None:
    """Answer requests until stdin ends."""
    images = ImageChecker(ImageStore(int(sys.argv[1])))
    with suppress(BrokenPipeError, BrokenStreamError), os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # whatever a library prints is no reply
        while block := read_request(sys.stdin.buffer):
            replies.write(answer(block, images))
            replies.flush()


def read_request(stream: IO[bytes]) -> RowBlock | None:
    """The next block to check; None when there is none.

    Raises:
        BrokenStreamError: whoever asks has died.
    """
    message = _read_message(stream)
    if message is None:
        return None
    head, parts = message
    file, folder, image_root, purpose = head["reader"]
    reader = RowReader(file=file, folder=Path(folder), image_root=image_root and Path(image_root), purpose=purpose)
    own_bytes = iter(parts)
    rows = [
        RawRow(
            line=line,
            text=text,
            json=next(own_bytes) if has_bytes else None,
            values=values,
            findings=_from_json(findings),
        )
        for line, text, has_bytes, values, findings in head["rows"]
    ]
    return RowBlock(reader=reader, rows=rows)


def answer(block: RowBlock, images: ImageChecker) -> bytes:
    """The message that answers a request."""
    try:
        checked = check_block(block, images)
    except StorageError as cause:
        return _message({"error": str(cause), "errno": getattr(cause.__cause__, "errno", None)}, [])
    head = {
        "rows": [[row.line, row.id, _to_json(row.findings), row.text] for row in checked.rows],
        "images": checked.images,
    }
    return _message(head, [checked.records, checked.canonical, checked.keys])


def _message(head: dict[str, Any], parts: Sequence[bytes]) -> bytes:
    line = json.dumps(head | {"sizes": [len(part) for part in parts]}).encode()  # all ASCII, also half a surrogate pair
    return b"".join([line, b"\n", *parts])


def _read_message(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    line = stream.readline()
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise BrokenStreamError
    head = json.loads(line)
    parts = [stream.read(size) for size in head["sizes"]]
    if [len(part) for part in parts] != head["sizes"]:
        raise BrokenStreamError
    return head, parts


def _to_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [finding.to_json() for finding in findings]


def _from_json(findings: Sequence[dict[str, Any]]) -> tuple[Finding, ...]:
    return tuple(Finding(**finding) for finding in findings)


if __name__ == "__main__":
    main()
