"""Who checks rows: a few threads of this process and, where there is much to check, processes of their own.

Threads alone wait for each other, since parsing a row and decoding a small image is mostly Python. A process takes a second to
start, so a small dataset does without, and the threads go on meanwhile. A thread asks a process and waits for its answer.
"""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from queue import SimpleQueue

from yivl_core.data.checks.block_fetching import fetch_blocks
from yivl_core.data.checks.checked_rows import CheckedBlock, RowBlock
from yivl_core.data.checks.row_checks import RowChecker
from yivl_core.data.checks.row_worker import BrokenStreamError, read_reply, write_request
from yivl_core.data.network.fetching import UrlFetcher
from yivl_core.data.rows.mixed_files import FileRows
from yivl_core.data.rows.raw_row import Lines, RawRow, lines_of
from yivl_core.errors import ChildFailedError

_MAX_THREADS = 8
_NUM_IMAGES_FOR_WORKERS = 400
_NUM_ROWS_FOR_WORKERS = 10_000  # whatever images they have
_HEAD_START = 4  # processes are started at a quarter of that
_NUM_SINGLE_ROWS = 1000  # first ones, so that few rows with large images keep all threads busy
_ROWS_PER_BLOCK = 64
_BLOCK_BYTES = 1 << 18  # so that long rows do not add up
_TEXT_BLOCK_BYTES, _IMAGE_BLOCK_BYTES = 1 << 18, 1 << 13
_BLOCKS_AHEAD_OF_A_THREAD = 8
_BLOCKS_AHEAD_OF_A_PROCESS = 2
_COMMAND = (sys.executable, "-P", "-m", "yivl_core.data.checks.row_worker")  # -P: no module of the working folder takes our place
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # NumPy's matrix library would start a thread for each core in every process


def count_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def check_rows(
    files: Iterable[FileRows], checker: RowChecker, num_workers: int, fetcher: UrlFetcher | None = None
) -> Generator[CheckedBlock, None, None]:
    """Check the rows of files, in their order, a bounded number of them ahead.

    Args:
        files: the reader of each file, and its rows as `split_raw_rows` gives them.
        checker: checks rows in this process; the others make one like it.
        num_workers: processes that help where there is much to check; 0: threads alone.
        fetcher: fetches the images that rows name by URLs; None: no URL is allowed.

    Raises:
        ConfigurationError: an object store cannot be used as it is set up.
        StorageError: the disk or network failed.
        ChildFailedError: a process died.
    """
    waiting: deque[Future[CheckedBlock]] = deque()
    with closing(RowWorkers(checker, num_workers)) as workers:
        blocks = _blocks(files, workers)
        for block in blocks if fetcher is None else fetch_blocks(blocks, fetcher):
            waiting.append(workers.submit(block))
            while waiting and (len(waiting) > workers.num_blocks_ahead or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _blocks(files: Iterable[FileRows], workers: "RowWorkers") -> Iterator[RowBlock]:
    for reader, rows in files:
        block: list[RawRow] = []
        num_bytes = 0
        for row in rows:
            if isinstance(row, Lines):
                if workers.rows_per_block > 1:
                    yield RowBlock(reader=reader, rows=block, lines=row)
                    block, num_bytes = [], 0
                else:
                    yield from (RowBlock(reader=reader, rows=[single]) for single in lines_of(row, reader.max_line_bytes))
                continue
            block.append(row)
            num_bytes += row.num_bytes
            if len(block) >= workers.rows_per_block or num_bytes > _BLOCK_BYTES:
                yield RowBlock(reader=reader, rows=block)
                block, num_bytes = [], 0
        if block:
            yield RowBlock(reader=reader, rows=block)


class Pace:
    """How many bytes of lines make a block: few where rows have images, each of which takes a thousand times as long as a row."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._num_images = 0

    def note(self, block: CheckedBlock) -> None:
        """Take a block into account."""
        self._num_rows += block.num_rows
        self._num_images += len(block.images)

    def block_bytes(self) -> int:
        """For the next block."""
        is_text = self._num_rows >= _NUM_SINGLE_ROWS and self._num_images * _ROWS_PER_BLOCK < self._num_rows
        return _TEXT_BLOCK_BYTES if is_text else _IMAGE_BLOCK_BYTES


class RowWorkers:
    """Checks blocks of rows side by side. To be closed by who made it.

    Args:
        checker: checks rows in this process; the others make one like it.
        num_workers: processes that help where there is much to check; 0: none.
    """

    def __init__(self, checker: RowChecker, num_workers: int) -> None:
        self._checker = checker
        self._num_workers = num_workers
        self._num_rows = 0
        self._threads = ThreadPoolExecutor(min(_MAX_THREADS, count_cores()), thread_name_prefix="row")
        self._askers: ThreadPoolExecutor | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    @property
    def rows_per_block(self) -> int:
        """How many rows the next block should have."""
        return 1 if self._num_rows < _NUM_SINGLE_ROWS and not self._wants_processes else _ROWS_PER_BLOCK

    @property
    def num_blocks_ahead(self) -> int:
        """So many blocks keep all busy."""
        if self._wants_processes:
            return _BLOCKS_AHEAD_OF_A_PROCESS * self._num_workers
        return _BLOCKS_AHEAD_OF_A_THREAD * _MAX_THREADS if self.rows_per_block == 1 else _MAX_THREADS

    def submit(self, block: RowBlock) -> "Future[CheckedBlock]":
        """Have a block checked.

        Returns:
            What comes of it. Its `result` raises `StorageError` where the disk or network failed, and `ChildFailedError` where a
            process died.
        """
        self._num_rows += len(block.rows) + (0 if block.lines is None else block.lines.data.count(b"\n"))
        if not self._processes and self._is_much(_HEAD_START):
            self._start()
        if self._askers is None or not self._wants_processes:
            return self._threads.submit(self._checker.check, block)
        return self._askers.submit(self._ask, block)

    def close(self) -> None:
        """Drop what is not done, and end all threads and processes."""
        for process in self._processes:
            process.kill()
        for pool in (self._threads, self._askers):
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()  # closes its pipes and waits for it

    @property
    def _wants_processes(self) -> bool:
        return self._is_much(1)

    def _is_much(self, times: int) -> bool:
        """Whether this many times the rows or images so far are worth processes."""
        num_images, num_rows = self._checker.images.num_checked * times, self._num_rows * times
        return self._num_workers > 0 and (num_images >= _NUM_IMAGES_FOR_WORKERS or num_rows >= _NUM_ROWS_FOR_WORKERS)

    def _start(self) -> None:
        command = [*_COMMAND, json.dumps(asdict(self._checker.settings))]
        environment = {**_ENVIRONMENT, **os.environ}
        # Ctrl-C and SIGTERM, sent to a whole group perhaps, are kept from the processes: `close` ends them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for _ in range(self._num_workers):
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
                self._processes.append(process)
                self._idle.put(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._askers = ThreadPoolExecutor(self._num_workers, "row-asker")

    def _ask(self, block: RowBlock) -> CheckedBlock:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(write_request(block))
            process.stdin.flush()
            return read_reply(process.stdout, block.reader)
        except (BrokenPipeError, BrokenStreamError):
            raise _death(process.wait()) from None
        finally:
            self._idle.put(process)


def _death(code: int) -> ChildFailedError:
    if code < 0:
        reason = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            reason += " (out of memory, perhaps)"
    else:
        reason = f"ended with exit code {code}"
    return ChildFailedError(f"a process that checks rows {reason}; run it again, with fewer num_workers or with 0")
