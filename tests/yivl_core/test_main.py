import errno
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from yivl_core.child import error_event, lasting_os_errors, read_error_event, run_door
from yivl_core.doors import DOORS, Door, ShardedInferenceConfig
from yivl_core.errors import DatasetError, OutputError, StorageError, YivlError
from yivl_core.inference.configuration import InferenceConfig

COMMAND = [sys.executable, "-m", "yivl_core"]


def run(*arguments: str, settings: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], input=settings, capture_output=True, text=True, check=False, timeout=120)


def validation_settings(folder: Path) -> str:
    (folder / "data.jsonl").write_text('{"query": "Hello", "response": "there"}\n')
    return json.dumps({"dataset": [str(folder / "data.jsonl")], "output": str(folder / "validated")})


def test_settings_from_stdin_give_progress_and_then_one_result(tmp_path):
    done = run("validate", settings=validation_settings(tmp_path))
    assert done.returncode == 0, done.stderr
    *progress, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert progress
    assert {event["event"] for event in progress} == {"progress"}
    assert last["event"] == "result"
    assert last["summary"]["num_records"] == 1


def test_settings_may_come_from_a_file(tmp_path):
    (tmp_path / "settings.json").write_text(validation_settings(tmp_path))
    done = run("validate", str(tmp_path / "settings.json"))
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "result"


def test_a_settings_file_that_is_not_there_is_wrong_usage(tmp_path):
    done = run("validate", str(tmp_path / "lost.json"))
    assert done.returncode == 2
    assert "lost.json: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{}", "dataset is missing\noutput is missing"),
        ('{"dataset": [], "output": "o"}', "dataset [] has to have at least 1 entry"),
    ],
)
def test_refused_settings_are_an_error_event_and_exit_code_2(settings, message):
    done = run("validate", settings=settings)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"event": "error", "kind": "ConfigurationError", "message": message, "errno": None}
    assert done.stderr == ""


def test_an_error_of_the_core_gives_its_exit_code(tmp_path):
    settings = json.dumps({"predictions": str(tmp_path), "output": str(tmp_path / "report")})
    done = run("evaluate", settings=settings)
    assert done.returncode == OutputError.exit_code
    assert json.loads(done.stdout)["kind"] == "OutputError"


def test_sigterm_ends_a_door_with_an_interrupted_event(tmp_path):
    (tmp_path / "settings.json").write_text(validation_settings(tmp_path))
    code = """
import os, signal, sys, threading
from yivl_core import __main__, doors
def wait(config, on_progress):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(60)
__main__.DOORS["validate"] = doors.Door(config=doors.ValidationConfig, summary=dict, function="__main__:wait")
sys.argv[1:] = ["validate", sys.argv[1]]
sys.exit(__main__.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "settings.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert json.loads(done.stdout)["kind"] == "Interrupted"


class NoSettings(BaseModel):
    pass


@dataclass(frozen=True)
class NoSummary:
    pass


def outcome(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]], str]:
    def fail(*_: object) -> NoSummary:
        raise error

    class FailingDoor(Door):
        def open(self) -> Any:
            return fail

    events: list[dict[str, Any]] = []
    code = run_door(FailingDoor(config=NoSettings, summary=NoSummary, function=""), "{}", events.append)
    return code, events, capsys.readouterr().err


def test_a_bug_is_a_traceback_on_stderr_and_no_event(capsys):
    code, events, errors = outcome(ZeroDivisionError("a bug"), capsys)
    assert (code, events) == (70, [])
    assert "ZeroDivisionError: a bug" in errors


def test_a_full_disk_is_an_error_of_storage_whoever_wrote(capsys):
    code, events, errors = outcome(OSError(errno.ENOSPC, "No space left on device", "/there/metrics.jsonl"), capsys)
    assert code == StorageError.exit_code
    assert events[0]["kind"] == "StorageError"
    assert events[0]["errno"] == errno.ENOSPC
    assert events[0]["message"].startswith("/there/metrics.jsonl: the disk is full")
    assert errors == ""


def test_other_errors_of_the_operating_system_are_bugs():
    with pytest.raises(OSError, match="Bad file descriptor"), lasting_os_errors():
        raise OSError(errno.EBADF, "Bad file descriptor")


def kinds(base: type[YivlError] = YivlError) -> list[type[YivlError]]:
    return [base, *(kind for child in base.__subclasses__() if child.__module__ == base.__module__ for kind in kinds(child))]


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_error_is_read_back_as_it_was(kind):
    error = read_error_event(json.loads(json.dumps(error_event(kind("what, where and how to mend it")))))
    assert type(error) is kind
    assert str(error) == "what, where and how to mend it"
    assert error.__cause__ is None


def test_a_kind_of_a_module_of_its_own_is_read_back_as_the_one_that_all_know():
    class CutError(DatasetError):
        pass

    assert type(read_error_event(error_event(CutError("cut")))) is DatasetError


def test_each_door_leads_somewhere():
    assert DOORS.keys() == {"validate", "train", "merge", "infer", "evaluate"}
    for door in DOORS.values():
        assert callable(door.open())


def test_the_settings_of_a_shard_are_those_of_inference_and_its_index():
    own = ShardedInferenceConfig.model_fields.keys() - InferenceConfig.model_fields.keys()
    assert own == {"shard_indices"}


def test_looking_at_the_doors_loads_no_torch():
    code = "import sys, yivl_core.__main__; sys.exit(str([m for m in ('torch', 'transformers', 'prefect') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_work_goes_on_when_nobody_reads_the_events_any_more(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "validate"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    process.stdin.write(validation_settings(tmp_path))
    process.stdin.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
    assert (tmp_path / "validated" / "report.json").is_file()
