"""Predictions -> the result file that VLMEvalKit's own evaluation reads: the benchmark's table with a `prediction` in each row.

`infer_data_job` (open-compass/VLMEvalKit, vlmeval/inference.py) writes all columns but `image`, and `prediction`, in the order of
the benchmark, to `MODEL_BENCHMARK.xlsx`; `run.py --mode eval --reuse` takes it up from a folder of an earlier run, WORK/MODEL/ID,
whose ID looks like T20260131-120000. Rows whose `image` is empty are none of its benchmark. Answers wait in a table on disk until
their rows come, so neither the benchmark nor the predictions are ever in memory.
"""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from yivl_core.data.findings import shown
from yivl_core.errors import DatasetError, IncompleteError
from yivl_core.evaluation.benchmarks.configuration import VLMEvalKitConfig, VLMEvalKitSummary
from yivl_core.evaluation.benchmarks.dataset_tables import BenchmarkRow, BenchmarkTable
from yivl_core.evaluation.benchmarks.result_tables import ColumnKind, ColumnKinds, open_tsv, open_xlsx
from yivl_core.evaluation.rows import CheckedRows
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import join, publish_from_file
from yivl_core.temporary_tables import temporary_database

_MAX_NAMED = 20
_ROWS_BETWEEN_EVENTS = 1000
_TAG = re.compile(r"<image(?: [0-9]+)?>")
_SCHEMA = """
CREATE TABLE answers (name TEXT PRIMARY KEY, query TEXT, response TEXT, is_used INTEGER DEFAULT 0);
CREATE TABLE lines (place TEXT PRIMARY KEY, name TEXT);
CREATE TABLE seen (name TEXT PRIMARY KEY, line INTEGER);
"""


def write_vlmevalkit(config: VLMEvalKitConfig, on_progress: OnProgress = ignore_progress) -> VLMEvalKitSummary:
    """Write the result file; nothing is written unless each row of the benchmark was answered, or failed.

    Args:
        config: names the predictions, the benchmark's table, and the file.
        on_progress: hears of the rows written.

    Raises:
        IncompleteError: parts of the predictions are missing, or rows of the benchmark have none.
        OutputError: the predictions cannot be read, or were changed.
        DatasetError: the table is broken, names an index twice, or has more rows than an xlsx file holds.
        ConfigurationError: the table is none by its name; openpyxl is not installed.
        StorageError: reading or writing failed.
    """
    table = BenchmarkTable(config.dataset, config.max_line_bytes)
    name = f"{config.model_name}_{config.dataset_name or table.name}.{config.file_format}"
    with temporary_database() as database:
        answers = _Answers(database, config.predictions)
        survey = _Survey(table, answers)
        file = join(config.output, name)
        open_writer = open_xlsx if config.file_format == "xlsx" else open_tsv
        with publish_from_file(file) as path, open_writer(path, survey.kinds) as writer:
            for number, row in enumerate(survey.rows(), 1):
                answer = answers.find(table, row)
                assert answer is not None, row.line
                writer.write({**row.cells, "prediction": answer.response or ""})
                if number % _ROWS_BETWEEN_EVENTS == 0 or number == survey.num_rows:
                    on_progress(Progress(stage="export", done=number, total=survey.num_rows, unit="row"))
        return VLMEvalKitSummary(
            file=file,
            num_rows=survey.num_rows,
            num_failed=survey.num_failed,
            num_without_image=survey.num_without_image,
            num_asked_otherwise=survey.num_asked_otherwise,
            num_unused=answers.num_unused(),
            num_cut=writer.num_cut,
            num_cleaned=writer.num_cleaned,
        )


class _Answer(NamedTuple):
    """What a prediction says; the query is None for an input line that is no record, the response for a failed row."""

    name: str
    query: str | None
    response: str | None


class _Answers:
    """All predictions, to be looked up by the index of their row, or by the line of a row that was no record."""

    def __init__(self, database: sqlite3.Connection, predictions: str) -> None:
        database.executescript(_SCHEMA)
        self.database, self.predictions = database, predictions
        database.execute("BEGIN")
        for prediction in CheckedRows(predictions):
            values = (prediction.sample_id, prediction.query, prediction.response)
            database.execute("INSERT OR IGNORE INTO answers (name, query, response) VALUES (?, ?, ?)", values)
            if prediction.query is None:
                place = PurePosixPath(prediction.source).name
                database.execute("INSERT OR IGNORE INTO lines VALUES (?, ?)", (place, prediction.sample_id))
        database.execute("COMMIT")

    def find(self, table: BenchmarkTable, row: BenchmarkRow) -> _Answer | None:
        """The answer to a row."""
        place = f"{PurePosixPath(table.url).name}:{row.line}"
        return self._named(row.cells["index"]) or self._named(*self._select("SELECT name FROM lines WHERE place = ?", place))

    def _named(self, name: str | None = None) -> _Answer | None:
        found = self._select("SELECT name, query, response FROM answers WHERE name = ?", name)
        return _Answer(*found) if found else None

    def _select(self, sql: str, value: str | None) -> tuple[Any, ...]:
        return self.database.execute(sql, (value,)).fetchone() or ()

    def mark_used(self, answer: _Answer) -> None:
        self.database.execute("UPDATE answers SET is_used = 1 WHERE name = ?", (answer.name,))

    def num_unused(self) -> int:
        (number,) = self.database.execute("SELECT COUNT(*) FROM answers WHERE NOT is_used").fetchone()
        return int(number)


class _Survey:
    """A look at all rows before one is written.

    Attributes:
        kinds: what stands in the columns of the result.
        num_rows: rows of the result.
        num_failed, num_without_image, num_asked_otherwise: as in the summary.

    Raises:
        IncompleteError: rows have no prediction.
        DatasetError: the table is broken, or names an index twice.
    """

    def __init__(self, table: BenchmarkTable, answers: _Answers) -> None:
        self._table = table
        self.num_rows = self.num_failed = self.num_without_image = self.num_asked_otherwise = 0
        columns = [name for name in table.columns if name not in ("image", "prediction")]
        kinds, missing, num_missing = ColumnKinds(columns), list[str](), 0
        answers.database.execute("BEGIN")
        for row in self._all_rows():
            self._check_index(row, answers.database)
            kinds.update(row.cells)
            self.num_rows += 1
            answer = answers.find(table, row)
            if answer is None:
                num_missing += 1
                missing += [row.cells["index"]] if len(missing) < _MAX_NAMED else []
                continue
            answers.mark_used(answer)
            self.num_failed += answer.response is None
            self.num_asked_otherwise += _is_asked_otherwise(row, answer)
        answers.database.execute("COMMIT")
        if num_missing:
            raise IncompleteError(self._missing(missing, num_missing, answers.predictions))
        self.kinds: dict[str, ColumnKind] = {**kinds.kinds(), "prediction": "text"}

    def rows(self) -> Iterator[BenchmarkRow]:
        """The rows of the result in order."""
        return (row for row in self._table if row.cells.get("image", "image"))

    def _all_rows(self) -> Iterator[BenchmarkRow]:
        for row in self._table:
            if row.cells.get("image", "image"):
                yield row
            else:
                self.num_without_image += 1

    def _check_index(self, row: BenchmarkRow, database: sqlite3.Connection) -> None:
        index, place = row.cells["index"], f"{self._table.url}:{row.line}"
        if not index:
            raise DatasetError(f"{place}: the `index` is empty; number the rows")
        first = database.execute("SELECT line FROM seen WHERE name = ?", (index,)).fetchone()
        if first is not None:
            raise DatasetError(f"{place}: the index {index} stands on line {first[0]} already; give each row its own")
        database.execute("INSERT INTO seen VALUES (?, ?)", (index, row.line))

    def _missing(self, names: list[str], number: int, predictions: str) -> str:
        further = f" and {number - len(names)} more" if number > len(names) else ""
        return (
            f"{predictions} holds nothing about {number} of {self.num_rows} rows of {self._table.url}, those of index "
            f"{', '.join(shown(name)[1:-1] for name in names)}{further}; run `yivl infer` over the table itself: "
            "a validated dataset lacks what is in quarantine, and rows that fail are written with an empty prediction"
        )


def _is_asked_otherwise(row: BenchmarkRow, answer: _Answer) -> bool:
    """Whether a question does not stand in what was asked, tags aside."""
    question = row.cells.get("question")
    return None not in (question, answer.query) and _TAG.sub("", question or "") not in _TAG.sub("", answer.query or "")
