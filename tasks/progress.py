"""Progress in words, and a way to watch it from outside a task. No Prefect here."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice

from yivl_core.progress import OnProgress, Progress, ignore_progress

watcher: ContextVar[OnProgress] = ContextVar("watcher", default=ignore_progress)


@contextmanager
def watching(on_progress: OnProgress) -> Iterator[None]:
    """Within this block, `on_progress` is called with every step of every task that runs in this process."""
    token = watcher.set(on_progress)
    try:
        yield
    finally:
        watcher.reset(token)


def describe(progress: Progress) -> str:
    """One line for a log: `train: 40/120 steps, loss 0.531, samples_per_s 3.1`."""
    parts = [f"{progress.stage}: {count(progress)}", figures(progress), remaining(progress), progress.message]
    return ", ".join(filter(None, parts))


def count(progress: Progress) -> str:
    """How far it is: `40/120 steps`, or `40 steps` where the end is not known."""
    of_total = "" if progress.total is None else f"/{progress.total}"
    return f"{progress.done}{of_total} {progress.unit}s"


def figures(progress: Progress, most: int | None = None) -> str:
    """The figures in four digits, whole numbers in full: `loss 0.531, samples_per_s 3.1`; the first so many, if that is given."""
    shown = islice(progress.figures.items(), most)
    return ", ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}" for name, value in shown)


def remaining(progress: Progress) -> str:
    """How long it will take: `12 min left`; empty where nobody knows, or when all is done."""
    if not progress.remaining_s:
        return ""
    for seconds, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if progress.remaining_s >= 1.5 * seconds:
            return f"{progress.remaining_s / seconds:.2g} {unit} left"
    return f"{progress.remaining_s:.0f} s left"
