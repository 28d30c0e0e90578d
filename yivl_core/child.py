"""A door run in a process of its own: settings in as JSON, events out as JSON lines, the outcome as exit code.

```
stdin    settings (JSON)         stdout   {"event": "progress", "stage": "train", "done": 3, "total": 40, ...}
stderr   traceback of a bug               {"event": "progress", ...}
                                          {"event": "result", "summary": {...}}
                                       or {"event": "error", "kind": "DatasetError", "message": "...", "errno": null}
```
"""

import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NoReturn

from pydantic import ValidationError

import yivl_core.errors
from yivl_core.doors import Door
from yivl_core.errors import ConfigurationError, Interrupted, StorageError, YivlError
from yivl_core.progress import Progress
from yivl_core.settings import explain_validation_error
from yivl_core.storage import describe_os_error

INTERNAL_ERROR = 70
LASTING_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EBUSY,
    }
)
GRACE_S = 10.0  # from being asked to stop until being killed

Emit = Callable[[dict[str, Any]], None]


def run_door(door: Door, settings: str, emit: Emit) -> int:
    """Run a door and emit what comes of it.

    Args:
        door: what to run.
        settings: its settings, as JSON.
        emit: takes each event.

    Returns:
        The exit code.
    """

    def emit_progress(progress: Progress) -> None:
        emit({"event": "progress", **asdict(progress)})

    try:
        config = _read_settings(door, settings)
        with lasting_os_errors():
            summary = door.open()(config, emit_progress)
    except YivlError as error:
        emit(error_event(error))
        return error.exit_code
    except KeyboardInterrupt:
        emit(error_event(Interrupted("stopped; what had been published is kept")))
        return Interrupted.exit_code
    except Exception:
        traceback.print_exc()
        return INTERNAL_ERROR
    emit({"event": "result", "summary": asdict(summary)})
    return 0


@contextmanager
def lasting_os_errors() -> Iterator[None]:
    """Turns an operating system error that is the user's to mend (disk full, no permission) into a `StorageError`.

    `storage.py` does so for what passes through it; this is for libraries that write by themselves.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in LASTING_ERRORS:
            raise
        raise StorageError(describe_os_error(error, error.filename or "a file")) from error


def error_event(error: YivlError) -> dict[str, Any]:
    """The event for an error: its kind as `yivl_core.errors` names it, and the operating system's number of its cause, if any."""
    kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == yivl_core.errors.__name__)
    cause = error.__cause__
    return {
        "event": "error",
        "kind": kind,
        "message": str(error),
        "errno": cause.errno if isinstance(cause, OSError) else None,
    }


def read_error_event(event: dict[str, Any]) -> YivlError:
    """The error that an event tells of: `error_event` read back."""
    error: YivlError = getattr(yivl_core.errors, event["kind"])(event["message"])
    if event["errno"] is not None:
        error.__cause__ = OSError(event["errno"], os.strerror(event["errno"]))
    return error


def _read_settings(door: Door, settings: str) -> Any:
    try:
        return door.config.model_validate_json(settings)
    except ValidationError as error:
        raise ConfigurationError(explain_validation_error(error)) from error


@contextmanager
def private_stdout() -> Iterator[IO[str]]:
    """The real stdout, for events alone: whatever else is printed, by any library in any language, goes to stderr."""
    sys.stdout.flush()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        yield events
    finally:
        sys.stdout.flush()
        os.dup2(events.fileno(), 1)
        events.close()


def json_lines(file: IO[str]) -> Emit:
    """An `Emit` that writes one line for each event, at once. Where nobody reads them any more the work goes on."""
    lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with lock:
            try:
                file.write(json.dumps(event, ensure_ascii=False) + "\n")
                file.flush()
            except BrokenPipeError:
                with Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), file.fileno())

    return emit


def interrupt_on_sigterm() -> None:
    """From now on SIGTERM raises KeyboardInterrupt in the main thread, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _raise_interrupt)


def _raise_interrupt(_: int, __: object) -> NoReturn:
    raise KeyboardInterrupt


def stop_when_stdin_ends(grace_s: float = GRACE_S) -> None:
    """Stop this process, and its group if it leads one, when the other end of stdin is gone: when the parent has died.

    A death signal (prctl) would be shorter, but the kernel ties it to the thread that started the child, and it is Linux only.
    """
    threading.Thread(target=_watch_stdin, args=(grace_s,), daemon=True, name="watch-parent").start()


def _watch_stdin(grace_s: float) -> None:
    while os.read(0, 4096):
        pass
    leads_its_group = os.getpgrp() == os.getpid()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if leads_its_group:
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)
        time.sleep(grace_s)
