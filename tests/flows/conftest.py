"""One Prefect server for all tests of flows, and a dataset so small that a whole run takes seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image, ImageDraw
from pydantic import BaseModel, TypeAdapter

from yivl_core.child import read_error_event, run_door
from yivl_core.doors import DOORS
from yivl_core.progress import OnProgress, Progress, ignore_progress

NUM_RECORDS = 12
_DEMO_TIMEOUT_S = 1800  # so that a demo that hangs does not hang the tests


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Prefect keeps its files, in this process and in those that tests start."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def prefect_api(prefect_home: Path) -> Iterator[str]:
    """The address of a server that lives as long as the tests."""
    from prefect import settings
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    updates = {
        settings.PREFECT_HOME: prefect_home,
        settings.PREFECT_LOCAL_STORAGE_PATH: prefect_home / "storage",
        settings.PREFECT_SERVER_ANALYTICS_ENABLED: False,
        settings.PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore",
    }
    with temporary_settings(updates), prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl and val.jsonl, and images of printed numbers."""
    folder = tmp_path_factory.mktemp("numbers")
    write_numbers(folder / "train.jsonl", range(100, 100 + NUM_RECORDS))
    write_numbers(folder / "val.jsonl", range(500, 503))
    return folder


def write_numbers(path: Path, numbers: range) -> None:
    """A jsonl file with one record for each number, its images beside it."""
    lines = []
    for number in numbers:
        image = Image.new("RGB", (40, 20), "white")
        ImageDraw.Draw(image).text((5, 4), str(number), fill="black")
        image.save(path.with_name(f"{number}.png"))
        lines.append(json.dumps({"query": "Read the number.", "response": str(number), "images": [f"{number}.png"]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def read_artifacts(prefect_api: str) -> Callable[[Any], list[Any]]:
    """The artifacts of a flow run, by its id."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    def read(flow_run_id: Any) -> list[Any]:
        with get_client(sync_client=True) as client:
            of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
            return client.read_artifacts(artifact_filter=of_run, limit=200)

    return read


@pytest.fixture(scope="session")
def cli_environment(prefect_api: str, prefect_home: Path) -> dict[str, str]:
    """The environment of a command that uses the tests' server, and no GPU."""
    return {**os.environ, "PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(prefect_home), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `yivl demo` leaves in `work`, and what it prints in `stdout` and `stderr`.

    It takes minutes, so the first process of the tests that wants it makes it for all.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            # On all cores, since the other process of the tests waits for it too, sooner or later.
            unwanted = ("PREFECT_API_URL", "OMP_NUM_THREADS")
            environment = {name: value for name, value in os.environ.items() if name not in unwanted}
            command = [sys.executable, "-m", "flows.cli", "demo", "--output", str(folder / "work")]
            with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
                environment["PREFECT_HOME"] = str(folder / "prefect")
                subprocess.run(command, stdout=stdout, stderr=stderr, env=environment, check=False, timeout=_DEMO_TIMEOUT_S)
    return folder


@contextmanager
def core_without_children() -> Iterator[None]:
    """Tasks run the core in this process: a child takes seconds to load torch, and what happens in it is the same."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in ("inference", "merging", "training"):
            monkeypatch.setattr(f"tasks.{module}.run_in_child", run_here)
        yield


@pytest.fixture
def core_in_this_process() -> Iterator[None]:
    """Fixtures of a whole module come before this one: the runs that they make have children."""
    with core_without_children():
        yield


@pytest.fixture(scope="module")
def core_in_this_process_for_module() -> Iterator[None]:
    with core_without_children():
        yield


def run_here(door: str, config: BaseModel, on_progress: OnProgress = ignore_progress, deadline_s: float | None = None) -> Any:
    """`run_in_child` without a child and a deadline; settings, progress, summary and errors pass through JSON all the same."""
    outcomes = []

    def take(event: dict[str, Any]) -> None:
        event = json.loads(json.dumps(event))
        kind = event.pop("event")
        if kind == "progress":
            on_progress(Progress(**event))
        else:
            outcomes.append((kind, event))

    code = run_door(DOORS[door], config.model_dump_json(), take)
    assert outcomes, f"{door}: exit code {code}, see the traceback on stderr"
    ((kind, event),) = outcomes
    if kind == "error":
        raise read_error_event(event)
    return TypeAdapter(DOORS[door].summary).validate_python(event["summary"])


@pytest.fixture(scope="session", autouse=True)
def one_version_of_the_code() -> Iterator[None]:
    """Content keys hold the digest of the source; it must not change under a test while somebody edits."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tasks.caching.code_digest", lambda: "the source")
        yield
