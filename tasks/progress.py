"""Progress in words, and a way to watch it from outside a task. No Prefect here."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
    return ", ".join(filter(None, [f"{progress.stage}: {count(progress)}", figures(progress), progress.message]))


def count(progress: Progress) -> str:
    """How far it is: `40/120 steps`, or `40 steps` where the end is not known."""
    of_total = "" if progress.total is None else f"/{progress.total}"
    return f"{progress.done}{of_total} {progress.unit}s"


def figures(progress: Progress) -> str:
    """The figures in four digits: `loss 0.531, samples_per_s 3.1`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
