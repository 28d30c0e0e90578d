"""`python fake_doors.py DOOR --supervised`: `python -m yivl_core` with doors that misbehave in a way of their own."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from yivl_core import doors
from yivl_core.errors import DatasetError, StorageError
from yivl_core.progress import OnProgress, Progress


class FakeConfig(BaseModel):
    folder: str = "."
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSummary:
    number: int
    names: dict[str, int] = field(default_factory=dict)


class CutImageError(DatasetError):
    """A kind that only the child knows."""


def answer(config: FakeConfig, on_progress: OnProgress) -> FakeSummary:
    print("some library says hello on stdout")
    os.system("echo a program does too")
    for done in range(3):
        on_progress(Progress(stage="count", done=done, total=3, unit="step", figures={"loss": 0.5}, message="æ"))
    return FakeSummary(number=config.number + 1, names={"a": 1})


def refuse(_: FakeConfig, __: OnProgress) -> Any:
    raise CutImageError("scan.png: cut short")


def fail_to_write(config: FakeConfig, _: OnProgress) -> Any:
    try:
        Path(config.folder, "no", "such").write_text("x")
    except OSError as error:
        raise StorageError("cannot write") from error


def break_down(_: FakeConfig, __: OnProgress) -> Any:
    raise RuntimeError("an invariant is broken")


def kill_itself(_: FakeConfig, __: OnProgress) -> Any:
    print("about to go", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(config: FakeConfig, on_progress: OnProgress) -> Any:
    """Tell its process id and that of a child of its own, then sleep."""
    grandchild = subprocess.Popen(["sleep", "600"])
    Path(config.folder, "pids").write_text(f"{os.getpid()} {grandchild.pid}")
    on_progress(Progress(stage="sleep", done=0, total=None, unit="step"))
    time.sleep(600)


def sleep_and_ignore_sigterm(config: FakeConfig, on_progress: OnProgress) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return sleep(config, on_progress)


def leave_a_grandchild(config: FakeConfig, _: OnProgress) -> FakeSummary:
    """Be done, while a process that it started still holds its pipes."""
    grandchild = subprocess.Popen(["sleep", "600"], stdout=sys.stdout)
    Path(config.folder, "pids").write_text(f"{grandchild.pid}")
    return FakeSummary(number=0)


def die_and_leave_a_grandchild(config: FakeConfig, on_progress: OnProgress) -> Any:
    leave_a_grandchild(config, on_progress)
    os._exit(3)


FUNCTIONS = [
    answer,
    refuse,
    fail_to_write,
    break_down,
    kill_itself,
    sleep,
    sleep_and_ignore_sigterm,
    leave_a_grandchild,
    die_and_leave_a_grandchild,
]


def install() -> None:
    """Add the fake doors to the real ones."""
    for function in FUNCTIONS:
        doors.DOORS[function.__name__] = doors.Door(
            config=FakeConfig, summary=FakeSummary, function=f"{__name__}:{function.__name__}"
        )


if __name__ == "__main__":
    install()
    from yivl_core.__main__ import main

    sys.exit(main())
