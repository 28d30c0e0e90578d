"""A benchmark's table as it is written: the names of its columns, and its rows as texts, one in memory at a time."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from yivl_core.data.findings import Finding
from yivl_core.data.reading import readable_url
from yivl_core.data.rows.compression import data_suffix, open_uncompressed
from yivl_core.data.rows.line_rows import TableRow, read_cells
from yivl_core.data.rows.raw_rows import DELIMITERS
from yivl_core.errors import ConfigurationError, DatasetError
from yivl_core.storage import open_binary

_BOM = b"\xef\xbb\xbf"


class BenchmarkRow(NamedTuple):
    """One row.

    Attributes:
        line: where it starts, from 1.
        cells: its texts by column.
    """

    line: int
    cells: dict[str, str]


class BenchmarkTable:
    """A table with an `index` in each row. Iterating reads the rows in order.

    Args:
        url: a tsv or csv file, compressed or not.
        max_line_bytes: longest row that is read.

    Attributes:
        columns: their names in order.

    Raises:
        ConfigurationError: by its name the file is none of these.
        DatasetError: it has no column `index`; while rows are read: one is broken or longer than allowed, or the file is damaged.
        StorageError: it cannot be read.
    """

    def __init__(self, url: str, max_line_bytes: int) -> None:
        self.url = readable_url(url)
        if data_suffix(url) not in DELIMITERS:
            raise ConfigurationError(f"{self.url}: this is no table; name the .tsv of the benchmark, of which columns are copied")
        self._address, self._max_line_bytes = url, max_line_bytes
        self.columns = next((self._header(row) for row in self._rows()), [])
        if "index" not in self.columns:
            raise DatasetError(
                f"{self.url}: the first row names no column `index`, but {', '.join(self.columns) or 'nothing'}; "
                "name a table as VLMEvalKit has it"
            )

    @property
    def name(self) -> str:
        """The benchmark's name by that of the file: `OCRBench` for `OCRBench.tsv.gz`."""
        name = PurePosixPath(self.url).name
        return name[: name.lower().rindex(data_suffix(self._address))]

    def __iter__(self) -> Iterator[BenchmarkRow]:
        rows = self._rows()
        next(rows)
        for row in rows:
            cells = self._checked(row)
            if len(cells) != len(self.columns):
                raise DatasetError(f"{self.url}:{row.line}: {len(cells)} cells for {len(self.columns)} columns; mend the row")
            yield BenchmarkRow(row.line, dict(zip(self.columns, cells, strict=True)))

    def _rows(self) -> Iterator[TableRow]:
        delimiter = DELIMITERS[data_suffix(self._address)]
        with open_binary(self._address) as opened, open_uncompressed(opened, self._address) as file:
            if file.peek(len(_BOM)).startswith(_BOM):
                file.read(len(_BOM))
            yield from read_cells(file, self._max_line_bytes, delimiter)
            file.read(1)  # raises where the file is damaged, which was its end to the reader

    def _header(self, row: TableRow) -> list[str]:
        names = [name.strip() for name in self._checked(row)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DatasetError(f"{self.url}: the first row names the column {twice!r} twice; give each column its own name")
        return names

    def _checked(self, row: TableRow) -> list[str]:
        if row.findings:
            finding: Finding = row.findings[0]
            raise DatasetError(f"{self.url}:{row.line}: {finding.message}; {finding.remedy}")
        return row.cells
