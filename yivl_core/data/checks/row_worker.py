"""A process that checks blocks of rows and does nothing else: `python -m yivl_core.data.checks.row_worker SETTINGS`.

The settings are those of `CheckSettings` in JSON.

```
stdin   {"reader": [...], "rows": [...], "sizes": [...]}       a line of JSON, then the rows' own bytes and the lines
stdout  {"noted": [...], "images": [...], "sizes": [...]}      a line of JSON, then what else a `CheckedBlock` holds, as bytes
        {"error": "...", "errno": 5}                           where the disk or network failed
```
The process ends with its stdin, so it never outlives the one that started it.
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import IO, Any

import numpy as np

from yivl_core.data.checks.checked_rows import CheckedBlock, Fetched, NotedRow, RowBlock
from yivl_core.data.checks.row_checks import CheckSettings, RowChecker, open_checker
from yivl_core.data.findings import Finding
from yivl_core.data.reading import RowReader, to_folder
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.raw_row import Lines, RawRow
from yivl_core.errors import StorageError

_READER_NAMES = [field.name for field in fields(RowReader)]


class BrokenStreamError(Exception):
    """A message ends before its end: the other process has died."""


def write_request(block: RowBlock) -> bytes:
    """The message that asks a worker to check a block."""
    reader = block.reader
    head = {
        "reader": {
            **{name: getattr(reader, name) for name in _READER_NAMES},
            "folder": str(reader.folder),
            "image_root": None if reader.image_root is None else str(reader.image_root),
            "mapping": reader.mapping.columns,
        },
        "rows": [[row.line, row.text, row.json is not None, row.values, _to_json(row.findings)] for row in block.rows],
        "contents": [list(row.contents) for row in block.rows],
        "first": None if block.lines is None else block.lines.first,
        "fetched": {
            url: [fetched.path, fetched.sha256, None if fetched.failure is None else fetched.failure.to_json()]
            for url, fetched in block.fetched.items()
        },
    }
    parts = [row.json for row in block.rows if row.json is not None]
    parts += [data for row in block.rows for data in row.contents.values()]
    return _message(head, parts if block.lines is None else [*parts, block.lines.data])


def read_reply(stream: IO[bytes], reader: RowReader) -> CheckedBlock:
    """What a worker answers about a block.

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
    lines, records, canonical, keys, answers, answer_lengths, questions, num_tokens = parts
    return CheckedBlock(
        file=reader.file,
        file_number=reader.file_number,
        num_rows=head["num_rows"],
        noted=[NotedRow(line, name, _from_json(findings), text) for line, name, findings, text in head["noted"]],
        lines=np.frombuffer(lines, np.int64),
        records=records,
        canonical=canonical,
        keys=keys,
        answers=answers,
        answer_lengths=np.frombuffer(answer_lengths, np.int32),
        questions=questions,
        num_tokens=np.frombuffer(num_tokens, np.int32),
        images=head["images"],
        image_files=head["image_files"],
        num_unsettled=head["num_unsettled"],
    )


def main() -> None:
    """Answer requests until stdin ends."""
    values = json.loads(sys.argv[1])
    settings = CheckSettings(**{**values, "policy": tuple(values["policy"])})
    _limit_memory(settings.max_worker_bytes)
    with open_checker(settings) as checker, suppress(BrokenPipeError, BrokenStreamError), os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # whatever a library prints is no reply
        while block := read_request(sys.stdin.buffer):
            replies.write(answer(block, checker))
            replies.flush()


def _limit_memory(num_bytes: int) -> None:
    """Have allocations fail, which makes a finding, before this process takes the machine's memory away."""
    _, highest = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(
        resource.RLIMIT_DATA, (num_bytes if highest == resource.RLIM_INFINITY else min(num_bytes, highest), highest)
    )


def read_request(stream: IO[bytes]) -> RowBlock | None:
    """The next block to check; None when there is none.

    Raises:
        BrokenStreamError: whoever asks has died.
    """
    message = _read_message(stream)
    if message is None:
        return None
    head, parts = message
    values = head["reader"]
    values["folder"] = to_folder(values["folder"])
    values["image_root"] = None if values["image_root"] is None else to_folder(values["image_root"])
    values["mapping"] = ColumnMapping(columns=tuple((ours, theirs) for ours, theirs in values["mapping"]))
    reader = RowReader(**values)
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
    rows = [
        row._replace(contents={name: next(own_bytes) for name in names}) if names else row
        for row, names in zip(rows, head["contents"], strict=True)
    ]
    fetched = {
        url: Fetched(path, sha256, None if failure is None else Finding(**failure))
        for url, (path, sha256, failure) in head["fetched"].items()
    }
    lines = None if head["first"] is None else Lines(head["first"], next(own_bytes))
    return RowBlock(reader=reader, rows=rows, lines=lines, fetched=fetched)


def answer(block: RowBlock, checker: RowChecker) -> bytes:
    """The message that answers a request."""
    try:
        checked = checker.check(block)
        checker.images.flush()  # since this process will be killed
    except StorageError as cause:
        return _message({"error": str(cause), "errno": getattr(cause.__cause__, "errno", None)}, [])
    head = {
        "num_rows": checked.num_rows,
        "noted": [[row.line, row.id, _to_json(row.findings), row.text] for row in checked.noted],
        "images": checked.images,
        "image_files": checked.image_files,
        "num_unsettled": checked.num_unsettled,
    }
    texts = (checked.lines.tobytes(), checked.records, checked.canonical, checked.keys, checked.answers)
    return _message(head, [*texts, checked.answer_lengths.tobytes(), checked.questions, checked.num_tokens.tobytes()])


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
