"""Alone in a folder."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from yivl_core.errors import BusyError, StorageError
from yivl_core.locks import move_aside, sole_user


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


HOLD = """
import sys, time
from pathlib import Path
from yivl_core.locks import sole_user
with sole_user(Path("run"), Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock of the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_in_which_another_process_works_is_refused(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yivl_core.locks._LOCK_TIMEOUT_S", 0.2)
    message = rf"{tmp_path}: another process works in this folder; wait for it, or choose another folder"
    with pytest.raises(BusyError, match=message), sole_user(tmp_path, tmp_path / ".lock"):
        pytest.fail("both at once")


def test_a_folder_is_free_again_when_its_user_was_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    killer = threading.Timer(0.3, holder.kill)
    killer.start()
    with sole_user(tmp_path, tmp_path / ".lock"):
        assert holder.wait() == -9
    killer.join()
    assert names(tmp_path) == []


def test_a_lock_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("...")
    with (
        pytest.raises(StorageError, match=r"file.*(choose another path|check the path)"),
        sole_user(tmp_path, tmp_path / "file" / ".lock"),
    ):
        pytest.fail("no lock")


def test_a_folder_steps_aside_unless_somebody_works_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yivl_core.locks._LOCK_TIMEOUT_S", 0.1)
    folder, aside = tmp_path / "folder", tmp_path / "aside"
    folder.mkdir()
    (folder / "content").write_text("...")
    with sole_user(folder, folder / ".lock"), pytest.raises(BusyError, match="folder: another process works in this folder"):
        move_aside(folder, aside)
    move_aside(folder, aside)
    assert (names(tmp_path), names(aside)) == (["aside"], ["content"])
    with pytest.raises(StorageError, match="folder"):
        move_aside(tmp_path / "aside" / "content" / "folder", aside)


def test_the_lock_of_who_comes_after_a_move_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    rename = Path.rename

    def rename_and_come(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        path.mkdir()
        (path / ".lock").touch()
        return moved

    monkeypatch.setattr(Path, "rename", rename_and_come)
    move_aside(folder, tmp_path / "aside")
    assert (names(folder), names(tmp_path / "aside")) == ([".lock"], [])
