"""Who looks at images: a few threads of this process and, where there are many images, processes of their own.

Threads alone wait for each other, since decoding a small image is mostly Python. A process takes half a second to start, so a
small dataset does without. Each process belongs to a thread here, which asks it and waits for its answer.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from yivl_core.data.image_worker import Outcome, check_image, read_reply, write_request
from yivl_core.data.images import ImageReference, ImageStore
from yivl_core.errors import ChildFailedError

_MAX_THREADS = 8
_NUM_IMAGES_FOR_WORKERS = 1000
_NUM_ROWS_AHEAD = 64  # of threads
_ROWS_PER_REQUEST = 64
_COMMAND = (sys.executable, "-P", "-m", "yivl_core.data.image_worker")  # -P: no module of the working folder takes our place
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # NumPy's matrix library would start a thread for each core in every process


def count_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


class ImageWorkers:
    """Looks at images side by side. To be closed by who made it.

    Args:
        store: reads the images in this process; the others make one like it.
        num_workers: processes for the images behind the first thousand; 0: none.
    """

    def __init__(self, store: ImageStore, num_workers: int) -> None:
        self._store = store
        self._num_workers = num_workers
        self._num_images = 0
        self._threads = ThreadPoolExecutor(min(_MAX_THREADS, count_cores()), thread_name_prefix="image")
        self._askers: ThreadPoolExecutor | None = None
        self._own = threading.local()  # the process of a thread
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def rows_per_request(self) -> int:
        """From how many rows the images of the next `submit` should come."""
        return _ROWS_PER_REQUEST if self._wants_processes else 1

    @property
    def num_rows_ahead(self) -> int:
        """So many rows keep all busy."""
        return 2 * _ROWS_PER_REQUEST * self._num_workers if self._wants_processes else _NUM_ROWS_AHEAD

    def submit(self, images: Sequence[ImageReference]) -> "Future[list[Outcome]]":
        """Have images looked at.

        Returns:
            An outcome for each image. Its `result` raises `StorageError` where the disk or network failed, and `ChildFailedError`
            where a process died.
        """
        use_process = self._wants_processes
        self._num_images += len(images)
        if not use_process:
            return self._threads.submit(lambda: [check_image(image, self._store) for image in images])
        if self._askers is None:
            self._askers = ThreadPoolExecutor(self._num_workers, "image-asker", initializer=_block_signals)
        return self._askers.submit(self._ask, images)

    def close(self) -> None:
        """Drop what is not done, and end all threads and processes."""
        with self._lock:
            self._is_closed = True
            for process in self._processes:
                process.kill()
        for pool in (self._threads, self._askers):
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()  # closes its pipes and waits for it

    @property
    def _wants_processes(self) -> bool:
        return self._num_workers > 0 and self._num_images >= _NUM_IMAGES_FOR_WORKERS

    def _ask(self, images: Sequence[ImageReference]) -> list[Outcome]:
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(write_request(images))
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            raise _death(process.wait())
        return read_reply(line)

    def _process(self) -> "subprocess.Popen[bytes]":
        """The process of this thread, started where there is none yet."""
        if not hasattr(self._own, "process"):
            with self._lock:
                if self._is_closed:
                    raise ChildFailedError("the images are no longer wanted")
                command = [*_COMMAND, str(self._store.max_pixels)]
                environment = {**_ENVIRONMENT, **os.environ}
                self._own.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
                self._processes.append(self._own.process)
        process: subprocess.Popen[bytes] = self._own.process
        return process


def _block_signals() -> None:
    """Keep Ctrl-C and SIGTERM, sent to a whole group perhaps, from the processes that this thread starts: `close` ends them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _death(code: int) -> ChildFailedError:
    if code < 0:
        reason = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            reason += " (out of memory, perhaps)"
    else:
        reason = f"ended with exit code {code}"
    return ChildFailedError(f"a process that checks images {reason}; run it again, with fewer num_workers or with 0")
