"""What became of an input since its split was planned, in words."""

import os
from collections.abc import Iterable, Iterator

from yivl_core.listing import StoredFile
from yivl_core.outputs.input_scan import InputScan
from yivl_core.outputs.record_table import PlannedRecord

_SHOWN = {"new": ("is new", "are new"), "gone": ("is gone", "are gone"), "changed": ("was changed", "were changed")}


def describe_changes(planned: Iterable[PlannedRecord], scan: InputScan) -> str:
    """` (3 images are new, the first is a.png; 1 image is gone, the first is b.png)`; empty where the rows are no image files.

    Args:
        planned: the records as they were found when the split was planned.
        scan: the input as it is now.
    """
    counts: dict[str, int] = {}
    firsts: dict[str, str] = {}
    for change, name in _changes(_files(planned), _files(scan.table.records())):
        counts[change] = counts.get(change, 0) + 1
        firsts.setdefault(change, name)
    told = [
        f"{number:,} image{'s' if number > 1 else ''} {_SHOWN[change][number > 1]}, the first is {firsts[change]!a}"
        for change, number in sorted(counts.items())
    ]
    return f" ({'; '.join(told)})" if told else ""


def _files(records: Iterable[PlannedRecord]) -> Iterator[StoredFile]:
    """Of a folder, whose files come sorted by their names; those of a list do not."""
    return (record.file for record in records if record.file is not None and record.line is None)


def _changes(before: Iterator[StoredFile], now: Iterator[StoredFile]) -> Iterator[tuple[str, str]]:
    old, new = next(before, None), next(now, None)
    while old is not None or new is not None:
        old_key, new_key = (None if file is None else os.fsencode(file.name) for file in (old, new))
        if new is not None and (old_key is None or (new_key is not None and new_key < old_key)):
            yield "new", new.name
            new = next(now, None)
        elif old is not None and (new_key is None or (old_key is not None and old_key < new_key)):
            yield "gone", old.name
            old = next(before, None)
        else:
            assert old is not None
            assert new is not None
            if old.state != new.state:
                yield "changed", old.name
            old, new = next(before, None), next(now, None)
