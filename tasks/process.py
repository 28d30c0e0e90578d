"""Run a door of the core in a child process: progress comes back as it happens, and the child never outlives its parent.

```
parent  --settings, then an open stdin-->  child (own session and process group)
        <--progress, result or error-----
```
GPU work is done this way because a thread inside CUDA cannot be interrupted, and because a dead process frees its memory. The
child ends with the work, at its deadline, when the parent is interrupted, and (stdin ends) when the parent dies.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from pydantic import BaseModel, TypeAdapter

from yivl_core.child import GRACE_S, INTERNAL_ERROR, read_error_event
from yivl_core.doors import DOORS
from yivl_core.errors import ChildFailedError, Interrupted
from yivl_core.progress import OnProgress, Progress, ignore_progress

_COMMAND = (sys.executable, "-P", "-m", "yivl_core")  # -P: no module of the working folder takes the place of ours
# Threads of a matrix product that wait for each other give way to the threads that read images, instead of spinning.
_CHILD_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}
_POLL_S = 0.2
_EXIT_S = 30.0  # from its result until a child has to be gone: freeing a GPU takes a while
_STDERR_TAIL_BYTES = 4000


def run_in_child(door: str, config: BaseModel, on_progress: OnProgress = ignore_progress, deadline_s: float | None = None) -> Any:
    """Run `python -m yivl_core DOOR` and wait for it.

    Args:
        door: a name in `yivl_core.doors.DOORS`.
        config: the door's settings.
        on_progress: called in this thread for each step forward.
        deadline_s: seconds after which the child is stopped; None: no limit.

    Returns:
        The door's summary.

    Raises:
        YivlError: what the door raised, as the same kind.
        ChildFailedError: the child ended without a report (killed, out of memory, a bug), or passed its deadline.
    """
    with tempfile.TemporaryFile() as errors, _started(door, config, errors) as process:
        for event in _events(process, deadline_s):
            match event.pop("event"):
                case "progress":
                    on_progress(Progress(**event))
                case "result":
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_EXIT_S)
                    return TypeAdapter(DOORS[door].summary).validate_python(event["summary"])
                case "error":
                    raise read_error_event(event)
        raise _silent_end(door, process, errors)


@contextlib.contextmanager
def _started(door: str, config: BaseModel, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The child, given its settings; stopped on the way out, whatever the reason."""
    process = subprocess.Popen(
        [*_COMMAND, door, "--supervised"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
        env={**_CHILD_ENVIRONMENT, **os.environ},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it died at once, which is told below
            process.stdin.write(config.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        yield process
    finally:
        _stop(process)
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _events(process: subprocess.Popen[bytes], deadline_s: float | None) -> Iterator[dict[str, Any]]:
    """What the child tells, until it has nothing more to tell."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True, name="read-child").start()
    started = time.monotonic()
    while True:
        if deadline_s is not None and time.monotonic() - started > deadline_s:
            raise ChildFailedError(f"stopped after {deadline_s:g} s, its deadline; what had been published is kept")
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            if process.poll() is not None:
                _signal_group(process, signal.SIGKILL)  # something that it started may still hold the pipe open
            continue
        if line is None:
            return
        with contextlib.suppress(json.JSONDecodeError):  # a line that a signal cut short
            yield json.loads(line)


def _read_lines(stdout: IO[bytes], lines: "queue.SimpleQueue[bytes | None]") -> None:
    with contextlib.suppress(ValueError):  # closed meanwhile
        for line in stdout:
            lines.put(line)
    lines.put(None)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the child's whole group to end, wait a little, and kill what is left of it."""
    try:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
    finally:  # also when waiting is interrupted once more
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _silent_end(door: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> Exception:
    """The error for a child that ended without a report."""
    code = process.wait()
    if code == Interrupted.exit_code:
        return Interrupted(f"{door}: stopped; what had been published is kept")
    if code < 0:
        reason = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            reason += " (out of memory, perhaps: see the kernel's log)"
    else:
        reason = f"ended with exit code {code}" + (" (an internal error)" if code == INTERNAL_ERROR else "")
    tail = _last_lines(errors)
    return ChildFailedError(f"{door}: the child process {reason}" + (f"; its last words:\n{tail}" if tail else ""))


def _last_lines(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _STDERR_TAIL_BYTES))
    return errors.read().decode(errors="replace").strip()
