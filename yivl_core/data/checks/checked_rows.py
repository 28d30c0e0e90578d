"""What goes into a check of rows, and what comes out of it: blocks that travel between threads and processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from yivl_core.data.findings import Finding
from yivl_core.data.reading import RowReader
from yivl_core.data.rows.raw_row import Lines, RawRow


class Fetched(NamedTuple):
    """What became of a URL.

    Attributes:
        path: of its content in the cache; None where there is none.
        sha256: of the content (hex).
        failure: why there is none.
    """

    path: str | None
    sha256: str | None
    failure: Finding | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Rows of a file that are checked together.

    Attributes:
        reader: of that file.
        rows: in the file's order.
        lines: lines behind them that are not split yet.
        fetched: what became of the URLs that they name, of those that were fetched.
    """

    reader: RowReader
    rows: Sequence[RawRow] = ()
    lines: Lines | None = None
    fetched: Mapping[str, Fetched] = field(default_factory=dict)


class NotedRow(NamedTuple):  # which is made in half the time of a dataclass
    """A row about which there is something to say.

    Attributes:
        line: where it stands, as in `RawRow`; None for what concerns the file as a whole.
        id: the user's name for the record, if it is one.
        findings: those of the row, and those of its images.
        text: of a row that is rejected, how it is written; None for a clean one.
    """

    line: int | None
    id: str | None
    findings: tuple[Finding, ...]
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBlock:
    """What was found out about a block.

    Attributes:
        file: path of its file.
        file_number: which of the files it is.
        num_rows: how many rows it has, what concerns the file as a whole not counted.
        noted: rows about which there is something to say.
        lines: int64 `[N]`: where the clean rows stand, as in `RawRow`.
        records: their lines for `records.jsonl`.
        canonical: their content, a line each.
        keys: the first 16 bytes of the sha256 of each line of that.
        answers: the same of the response of each that has one, then zeros.
        answer_lengths: int32 `[N]`: characters of the response; -1 where there is none.
        questions: the same of what the model is shown, as `sample_digest` has it; empty where it is not wanted.
        num_tokens: int32 `[N]`, images included; empty where they are not counted.
        images: of the clean rows, in order: number of the row among these, then the values of the `ImageInfo`.
        image_files: state of each file that was looked at, by its path, also where the row is rejected.
        num_unsettled: how often nothing lasting is known of an image: its URL could not be fetched, or rights or memory did not
            suffice.
    """

    file: str
    file_number: int
    num_rows: int
    noted: Sequence[NotedRow]
    lines: npt.NDArray[np.int64]
    records: bytes
    canonical: bytes
    keys: bytes
    answers: bytes
    answer_lengths: npt.NDArray[np.int32]
    questions: bytes
    num_tokens: npt.NDArray[np.int32]
    images: Sequence[Sequence[Any]]
    image_files: Mapping[str, str]
    num_unsettled: int
