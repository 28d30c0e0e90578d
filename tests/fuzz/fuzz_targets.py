"""The fuzz targets by name, with the folders of real files that they begin with."""

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from format_target import FormatTarget
from image_target import ImageTarget
from row_target import RowTarget


class Target(Protocol):
    """What is fuzzed.

    Attributes:
        tokens: what inputs are made of.
    """

    tokens: Sequence[bytes]

    def check(self, data: bytes) -> None:
        """Fails where a promise is broken."""

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        """An input near this one."""

    def seeds(self) -> Iterator[bytes]:
        """Inputs to begin with."""


def open_target(name: str, folder: Path) -> Target:
    """A target by its name; it writes into the folder."""
    data = Path(os.environ.get("YIVL_TEST_DATA", "../shared")) / "data"
    rows, images = (path if path.is_dir() else None for path in (data / "bad_jsonl" / "one", data / "awkward" / "files"))
    if name == "rows":
        return RowTarget(folder, rows)
    return FormatTarget(rows) if name == "formats" else ImageTarget(images)
