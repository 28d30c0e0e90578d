"""What Prefect makes of the options that all tasks share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from pydantic import BaseModel

from tasks.caching import CACHED_TASK, CORE_TASK, run_cached
from tasks.progress import watching
from tasks.relay import ProgressRelay
from yivl_core.errors import DatasetError, StorageError, YivlError
from yivl_core.progress import Progress

pytestmark = pytest.mark.flows


class Config(BaseModel):
    output: str


def times_called(errors: list[Exception]) -> tuple[int, BaseException | None]:
    """How often a task is tried that fails with one error after the other, then works; and what comes out."""
    calls: list[int] = []

    @task(**{**CORE_TASK, "retry_delay_seconds": [0, 0]})
    def work() -> None:
        calls.append(1)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]

    @flow
    def try_it() -> None:
        work()

    result = try_it(return_state=True).result(raise_on_failure=False)
    return len(calls), result


def of_full_disk() -> StorageError:
    error = StorageError("the disk is full")
    error.__cause__ = OSError(28, "No space left on device")
    return error


def test_a_failure_of_storage_that_may_pass_is_tried_again(prefect_api):
    assert times_called([StorageError("the network is away")]) == (2, None)


@pytest.mark.parametrize("error", [DatasetError("no record"), of_full_disk(), ZeroDivisionError("a bug")])
def test_what_will_not_pass_fails_at_once_as_it_was_raised(error, prefect_api):
    num_calls, result = times_called([error])
    assert num_calls == 1
    assert result is error


def test_tries_come_to_an_end(prefect_api):
    num_calls, result = times_called([StorageError(str(number)) for number in range(9)])
    assert num_calls == 3
    assert isinstance(result, StorageError)


@pytest.fixture
def stage(tmp_path: Path) -> Callable[[str], str]:
    """A stage that writes a file which counts how often it was made, and returns what it wrote."""

    @task(name="stage", **CACHED_TASK)
    def make(config: Config, deadline_s: float | None, cache_key: str) -> dict[str, str]:
        path = Path(config.output)
        count = path.with_suffix(".count")
        count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
        path.write_text("content")
        return {"content": "content", "count": count.read_text()}

    def is_intact(summary: dict[str, str]) -> bool:
        path = tmp_path / "made"
        if not path.exists():
            raise YivlError("gone")
        return path.read_text() == summary["content"]

    @flow
    def run(key: str) -> str:
        output = str(tmp_path / "made")
        return run_cached(make, Config(output=output), key=key, output=output, is_intact=is_intact)["count"]

    return run


def test_a_stage_is_made_once_for_each_key(stage, tmp_path, prefect_api):
    key = str(tmp_path)
    assert [stage(key), stage(key), stage(key + "other"), stage(key)] == ["1", "1", "2", "1"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("changed")])
def test_a_stage_whose_result_is_gone_or_changed_is_made_again(harm, stage, tmp_path, prefect_api):
    assert stage(str(tmp_path)) == "1"
    harm(tmp_path / "made")
    assert stage(str(tmp_path)) == "2"
    assert stage(str(tmp_path)) == "2"


def test_what_is_cached_is_readable_and_small(stage, tmp_path, prefect_api, prefect_home):
    stage(str(tmp_path))
    path = max((prefect_home / "storage").glob("stage-*"), key=lambda path: path.stat().st_mtime_ns)
    assert json.loads(path.read_text())["metadata"]["serializer"]["type"] == "json"
    assert path.stat().st_size < 10_000


def test_progress_goes_to_the_watcher_at_each_step_and_to_the_artifact_at_the_last(prefect_api, read_artifacts):
    steps = [Progress(stage="count", done=done, total=50, unit="step", figures={"loss": 1.0}) for done in range(51)]

    def count() -> None:
        relay = ProgressRelay("count")
        for step in steps:
            relay(step)

    seen: list[Any] = []
    with watching(seen.append):
        state = flow(count)(return_state=True)
    assert seen == steps
    (artifact,) = read_artifacts(state.state_details.flow_run_id)
    assert artifact.key == "count-progress"
    assert artifact.data == 100
    assert artifact.description == "count: 50/50 steps, loss 1"


@pytest.mark.parametrize("request_name", ["create_progress_artifact", "update_progress_artifact"])
def test_a_server_that_refuses_an_artifact_does_not_end_the_work(request_name, prefect_api, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no")

    monkeypatch.setattr(f"tasks.relay.{request_name}", refuse)

    @flow
    def count() -> str:
        relay = ProgressRelay("hiccup")
        for done in (0, 2):
            relay(Progress(stage="count", done=done, total=2, unit="step"))
        return "done"

    assert count() == "done"
