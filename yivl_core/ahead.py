"""Work on items by helpers, ahead of whoever takes the results, which come in the order of the items."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, TypeVar

NUM_AHEAD = 64
# Of files that items hold or are going to; one larger item goes alone.
MAX_BYTES_AHEAD = 256_000_000
# Requests that are under way to an object store: each waits some 10 to 100 ms for its answer.
NUM_REQUESTS = 32

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Pending(Protocol[Result_co]):
    """What will have a result, as a `Future`."""

    def result(self) -> Result_co:
        """The result, which is waited for."""


def _nothing_held(_: object) -> int:
    return 0


def work_ahead(
    pool: Executor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    num_ahead: int = NUM_AHEAD,
    num_bytes: Callable[[Item], int] = _nothing_held,
) -> Iterator[Result]:
    """Results of work on items; items are taken in this thread.

    Args:
        pool: the helpers.
        work: what is done with an item.
        items: one after another.
        num_ahead: most items that have been taken while their results have not.
        num_bytes: memory that an item takes; no more are taken while those ahead hold `MAX_BYTES_AHEAD`.

    Raises:
        Exception: what `work` raises, when its result's turn comes.
    """
    return results_ahead(lambda item: pool.submit(work, item), items, num_ahead, num_bytes)


def results_ahead(
    submit: Callable[[Item], Pending[Result]],
    items: Iterable[Item],
    num_ahead: int = NUM_AHEAD,
    num_bytes: Callable[[Item], int] = _nothing_held,
) -> Iterator[Result]:
    """As `work_ahead`, where `submit` has the work begun."""
    source = iter(items)
    futures: deque[tuple[Pending[Result], int]] = deque()
    held = 0
    while True:
        room = max(0, num_ahead - len(futures))
        for item in islice(source, room if held < MAX_BYTES_AHEAD else 0):
            size = num_bytes(item)
            futures.append((submit(item), size))
            held += size
            if held >= MAX_BYTES_AHEAD:
                break
        if not futures:
            return
        future, size = futures.popleft()
        held -= size
        yield future.result()


@contextmanager
def request_threads() -> Iterator[Executor]:
    """Threads for questions to an object store; what is not begun when the block ends is not done."""
    pool = ThreadPoolExecutor(NUM_REQUESTS, "request")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
