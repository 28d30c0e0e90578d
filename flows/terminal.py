"""What a person sees on stderr while a command runs: a bar for each stage with its figures, and warnings.

Where stderr is no terminal, plain lines take the place of the bars: one every few seconds.
"""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from tasks.progress import count, describe, figures, remaining
from yivl_core.progress import Progress

LINE_EVERY_S = 10.0
_MOST_FIGURES = 4  # beside a bar; all of them are in the log
_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_OF_PREFECTS_QUEUES = "Still processing items"  # what it has still to send when a command ends early


class Terminal:
    """An `on_progress` that shows what is done. Use it as a context manager, so that the bars end before other output."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on stderr, or on another console."""
        self._console = console or Console(stderr=True)
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            # What is left of the width, in as many lines as it takes.
            TextColumn("{task.fields[figures]}", table_column=Column(ratio=1)),
        )
        self._bars = Bars(*columns, console=self._console, expand=True) if self._console.is_terminal else None
        self._last: Progress | None = None
        self._is_said = True
        self._said_at = 0.0
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()
        self._say_last()

    def __call__(self, progress: Progress) -> None:
        """Show one step forward."""
        is_new = self._last is None or progress.stage != self._last.stage or progress.done < self._last.done
        if self._bars:
            self._show_bar(self._bars, progress, is_new)
        else:
            self._show_line(progress, is_new)

    def say(self, text: str) -> None:
        """Show a line of text, above the bars and after what was done before it."""
        self._say_last()
        self._print(text)

    def _show_bar(self, bars: Bars, progress: Progress, is_new: bool) -> None:
        if self._bar is None or is_new:
            if self._bar is not None and self._last is not None:
                bars.update(self._bar, total=self._last.total or self._last.done)  # where nobody knew, it is all
                bars.stop_task(self._bar)
            self._bar = bars.add_task(progress.stage, total=progress.total, count="", figures="")
        bars.update(self._bar, total=progress.total, completed=progress.done, count=count(progress))
        if said := ", ".join(filter(None, [figures(progress, _MOST_FIGURES), remaining(progress)])) or progress.message:
            bars.update(self._bar, figures=said)
        self._last = progress

    def _show_line(self, progress: Progress, is_new: bool) -> None:
        if is_new:
            self._say_last()
        has_news = bool(progress.message) and (self._last is None or progress.message != self._last.message)
        self._last, self._is_said = progress, False
        if is_new or has_news or time.monotonic() - self._said_at >= LINE_EVERY_S:
            self._say_last()

    def _say_last(self) -> None:
        """Show the latest step as a line, if it has not been shown."""
        if self._last and not self._is_said:
            self._is_said, self._said_at = True, time.monotonic()
            self._print(describe(self._last))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class WarningHandler(logging.Handler):
    """Shows warnings of any library on a terminal. What Prefect's engine logs as an error of a run the command tells itself."""

    def __init__(self, terminal: Terminal) -> None:
        """Take records of level warning and above."""
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        is_of_run = record.name in _RUN_LOGGERS and record.levelno >= logging.ERROR
        if is_of_run or str(record.msg).startswith(_OF_PREFECTS_QUEUES):
            return
        self._terminal.say(f"{record.levelname.lower()}: {record.getMessage()}")
