"""Rows of texts -> a tsv file as pandas writes it with every cell quoted, or an xlsx file as pandas reads it.

In xlsx a number is something else than its digits. So columns that pandas would read from the tsv as numbers or truth values are
written as such, since the `index` of the result has to equal that of the benchmark; all others, and predictions always, are text:
`=1+1` is no formula, `#N/A` no error. Rows come one at a time, and of neither file more than a row is held.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from yivl_core.errors import ConfigurationError, DatasetError

# Microsoft, "Excel specifications and limits": characters of a cell, rows of a sheet.
MAX_CELL_CHARS = 32_767
MAX_SHEET_ROWS = 1_048_576

ColumnKind = Literal["int", "float", "bool", "text"]

# What pandas.read_csv takes for a gap by default, and what for a truth value.
_GAPS = frozenset(
    {
        "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
        "NaN", "None", "n/a", "nan", "null",
    }
)  # fmt: skip
_TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
# Of a longer number xlsx does not keep all digits; pandas reads its text as the same number.
_INT = re.compile(r"[+-]?[0-9]{1,15}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]{1,15}|[0-9]*\.[0-9]+|[0-9]+\.)(?:[eE][+-]?[0-9]{1,2})?")
_NO_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # XML 1.0, 2.2 Characters
_LINE_END = re.compile(r"\r\n?")  # which a reader of XML makes a newline (2.11 End-of-Line Handling)


class ColumnKinds:
    """Finds out what pandas would take the cells of each column for."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._possible: dict[str, set[ColumnKind]] = {name: {"int", "float", "bool"} for name in columns}
        self._filled: set[str] = set()

    def update(self, cells: Mapping[str, str]) -> None:
        """Take in the next row."""
        for name, possible in self._possible.items():
            cell = cells[name]
            if cell in _GAPS:
                continue
            self._filled.add(name)
            if possible:
                possible &= _kinds_of(cell)

    def kinds(self) -> dict[str, ColumnKind]:
        """By column; `text` for one that holds nothing."""
        order: tuple[ColumnKind, ...] = ("int", "float", "bool")
        return {
            name: next((kind for kind in order if kind in possible), "text") if name in self._filled else "text"
            for name, possible in self._possible.items()
        }


def _kinds_of(cell: str) -> set[ColumnKind]:
    if _INT.fullmatch(cell):
        return {"int", "float"}
    if _FLOAT.fullmatch(cell):
        return {"float"}
    return {"bool"} if cell in _TRUTH else set()


class TableWriter(Protocol):
    """Writes rows.

    Attributes:
        num_cut: cells that were cut so far.
        num_cleaned: cells so far of which control characters were left out, or carriage returns made newlines.
    """

    num_cut: int
    num_cleaned: int

    def write(self, cells: Mapping[str, str]) -> None:
        """Write the next row.

        Raises:
            DatasetError: the file can hold no more rows.
        """


@contextmanager
def open_tsv(path: Path, kinds: Mapping[str, ColumnKind]) -> Iterator[TableWriter]:
    """A tsv file with these columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(kinds)
        yield _TsvWriter(writer, list(kinds))


@contextmanager
def open_xlsx(path: Path, kinds: Mapping[str, ColumnKind]) -> Iterator[TableWriter]:
    """An xlsx file with these columns.

    Raises:
        ConfigurationError: openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError as cause:
        raise ConfigurationError(
            "an xlsx file needs the package openpyxl, which is not installed; run pip install 'yivl[benchmarks]', or write tsv "
            "(file_format)"
        ) from cause
    workbook = openpyxl.Workbook(write_only=True)
    writer = _XlsxWriter(workbook.create_sheet("Sheet1"), kinds)
    writer.write_names()
    try:
        yield writer
    finally:  # also after an error, since this alone removes what the library has written for itself
        workbook.save(path)


class _TsvWriter:
    def __init__(self, writer: Any, columns: list[str]) -> None:
        self._writer, self._columns = writer, columns
        self.num_cut = self.num_cleaned = 0

    def write(self, cells: Mapping[str, str]) -> None:
        self._writer.writerow([cells[name] for name in self._columns])


class _XlsxWriter:
    def __init__(self, sheet: Any, kinds: Mapping[str, ColumnKind]) -> None:
        self._sheet, self._kinds = sheet, kinds
        self._num_rows = 0
        self.num_cut = self.num_cleaned = 0

    def write_names(self) -> None:
        self._append([self._text(name) for name in self._kinds])

    def write(self, cells: Mapping[str, str]) -> None:
        self._append([self._value(cells[name], kind) for name, kind in self._kinds.items()])

    def _append(self, values: list[Any]) -> None:
        if self._num_rows == MAX_SHEET_ROWS:
            raise DatasetError(f"a sheet of xlsx holds {MAX_SHEET_ROWS:,} rows, and there are more; write tsv (file_format)")
        self._num_rows += 1
        self._sheet.append(values)

    def _value(self, cell: str, kind: ColumnKind) -> Any:
        if kind == "text":
            return self._text(cell)
        if cell in _GAPS:
            return None
        if kind == "bool":
            return _TRUTH[cell]
        return int(cell) if _INT.fullmatch(cell) else float(cell)

    def _text(self, text: str) -> Any:
        from openpyxl.cell import WriteOnlyCell

        cleaned = _NO_XML.sub("", _LINE_END.sub("\n", text))
        self.num_cleaned += cleaned != text
        self.num_cut += len(cleaned) > MAX_CELL_CHARS
        cell = WriteOnlyCell(self._sheet, value=cleaned[:MAX_CELL_CHARS])
        cell.data_type = "s"  # whatever it looks like: openpyxl makes a formula of `=1`
        return cell if cleaned else None
