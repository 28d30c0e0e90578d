import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tasks import process
from tasks.caching import may_pass
from tasks.process import run_in_child
from yivl_core import doors
from yivl_core.errors import ChildFailedError, ConfigurationError, DatasetError, Interrupted, StorageError
from yivl_core.progress import Progress

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("fake_doors.py")


@pytest.fixture(scope="module")
def fake_doors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_doors", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_doors"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def with_fake_doors(fake_doors: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "DOORS", dict(doors.DOORS))
    monkeypatch.setattr(process, "DOORS", doors.DOORS)
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, str(SCRIPT)))
    fake_doors.install()


@pytest.fixture
def config(fake_doors: ModuleType, tmp_path: Path) -> object:
    return fake_doors.FakeConfig(folder=str(tmp_path), number=41)


def told_pids(folder: Path) -> list[int]:
    path = folder / "pids"
    wait_until(path.exists)
    wait_until(lambda: bool(path.read_text()))
    return [int(pid) for pid in path.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, timeout_s: float = 20.0) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "it did not happen in time"
        time.sleep(0.02)


def test_progress_and_summary_come_back_and_nothing_else_is_mixed_in(config, fake_doors):
    events: list[Progress] = []
    summary = run_in_child("answer", config, events.append)
    assert summary == fake_doors.FakeSummary(number=42, names={"a": 1})
    assert events == [Progress(stage="count", done=n, total=3, unit="step", figures={"loss": 0.5}, message="æ") for n in range(3)]


def test_an_error_of_the_core_comes_back_as_its_kind_with_its_message(config):
    with pytest.raises(DatasetError, match=r"^scan\.png: cut short$") as caught:
        run_in_child("refuse", config)
    assert type(caught.value) is DatasetError


def test_a_storage_error_keeps_its_cause_so_that_only_what_may_pass_is_tried_again(config):
    with pytest.raises(StorageError, match="cannot write") as caught:
        run_in_child("fail_to_write", config)
    assert isinstance(caught.value.__cause__, OSError)
    assert not may_pass(caught.value)
    assert may_pass(StorageError("the network is away"))


def test_refused_settings_are_a_configuration_error(tmp_path):
    class Other(doors.BaseModel):
        number: str = "many"

    with pytest.raises(ConfigurationError, match="number 'many' has to be a whole number"):
        run_in_child("answer", Other())


def test_a_bug_in_the_child_is_told_with_its_last_words(config):
    with pytest.raises(ChildFailedError, match="exit code 70") as caught:
        run_in_child("break_down", config)
    assert "RuntimeError: an invariant is broken" in str(caught.value)


def test_a_killed_child_is_told_with_the_signal(config):
    with pytest.raises(ChildFailedError, match="killed by SIGKILL") as caught:
        run_in_child("kill_itself", config)
    assert "about to go" in str(caught.value)


def test_a_child_that_is_stopped_from_outside_says_that_it_was_interrupted(config, tmp_path):
    def stop(_: Progress) -> None:
        os.kill(told_pids(tmp_path)[0], signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped; what had been published is kept"):
        run_in_child("sleep", config, stop)


def test_the_deadline_stops_the_child_and_what_it_started(config, tmp_path):
    with pytest.raises(ChildFailedError, match=r"stopped after 6 s, its deadline"):
        run_in_child("sleep", config, deadline_s=6)
    pids = told_pids(tmp_path)
    assert len(pids) == 2
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_a_child_that_ignores_sigterm_is_killed(config, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    started = time.monotonic()
    with pytest.raises(ChildFailedError, match="deadline"):
        run_in_child("sleep_and_ignore_sigterm", config, deadline_s=6)
    assert time.monotonic() - started < 25
    wait_until(lambda: not any(is_running(pid) for pid in told_pids(tmp_path)))


def test_an_error_in_the_callback_stops_the_child(config, tmp_path):
    def fail(_: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_in_child("sleep", config, fail)
    wait_until(lambda: not any(is_running(pid) for pid in told_pids(tmp_path)))


def test_ctrl_c_in_the_parent_stops_the_child(config, tmp_path):
    def press_ctrl_c() -> None:
        told_pids(tmp_path)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=press_ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        run_in_child("sleep", config)
    wait_until(lambda: not any(is_running(pid) for pid in told_pids(tmp_path)))


@pytest.mark.parametrize("door", ["leave_a_grandchild", "die_and_leave_a_grandchild"])
def test_what_a_child_left_running_neither_blocks_nor_survives(door, config, tmp_path):
    started = time.monotonic()
    if door == "leave_a_grandchild":
        assert run_in_child(door, config).number == 0
    else:
        with pytest.raises(ChildFailedError, match="exit code 3"):
            run_in_child(door, config)
    assert time.monotonic() - started < 25
    (pid,) = told_pids(tmp_path)
    wait_until(lambda: not is_running(pid))


@pytest.mark.parametrize("door", ["sleep", "sleep_and_ignore_sigterm"])
def test_the_child_ends_when_its_parent_is_killed(door, tmp_path):
    """A parent of its own, killed with SIGKILL so that it can clean up nothing."""
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import fake_doors, tasks.process
fake_doors.install()
tasks.process._COMMAND = ({sys.executable!r}, "-c", "import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); "
    "import fake_doors, yivl_core.__main__ as m, yivl_core.child as c; "
    "fake_doors.install(); m.stop_when_stdin_ends = lambda: c.stop_when_stdin_ends(0.5); sys.exit(m.main())")
tasks.process.run_in_child({door!r}, fake_doors.FakeConfig(folder={str(tmp_path)!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        pids = told_pids(tmp_path)
        parent.kill()
        parent.wait()
        wait_until(lambda: not any(is_running(pid) for pid in pids))
    finally:
        parent.kill()
        parent.wait()


def test_no_torch_is_loaded_for_watching_over_a_child():
    code = "import tasks.process, sys; sys.exit('torch' in sys.modules or 'prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(autouse=True)
def leave_no_orphans(tmp_path: Path) -> Iterator[None]:
    yield
    if (tmp_path / "pids").exists():
        for pid in told_pids(tmp_path):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
