"""prefect.yaml on a real server: PostgreSQL, one process worker, and each deployed flow run to its end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from yivl_core.model.files import checkpoint_digest

pytestmark = [pytest.mark.flows, pytest.mark.slow]

PREFECT = str(Path(sys.executable).with_name("prefect"))
DEBIAN_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"{what} took longer than {timeout_s:g} s"
        time.sleep(0.3)


@contextmanager
def postgresql() -> Iterator[str]:
    """A database cluster of its own; the address of its database `postgres`."""
    program = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *map(str, DEBIAN_PROGRAMS)]))
    if program is None:
        pytest.skip("no PostgreSQL here (initdb): apt-get install postgresql")
    as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    folder, port = Path(tempfile.mkdtemp(prefix="yivl-postgresql-")), free_port()
    if as_owner:
        shutil.chown(folder, "postgres")
    programs = Path(program).resolve().parent
    data = str(folder / "data")
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    try:
        initdb = [str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run([*as_owner, *initdb], check=True, capture_output=True, cwd="/")
        start = [str(programs / "pg_ctl"), "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start"]
        subprocess.run([*as_owner, *start], check=True, stdout=subprocess.DEVNULL, cwd="/")
        yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
    finally:
        stop = [str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "stop"]
        subprocess.run([*as_owner, *stop], check=False, capture_output=True, cwd="/")
        shutil.rmtree(folder)


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str], cwd: Path) -> Iterator[None]:
    """A program that runs in the background, killed at the end with all it started."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, cwd=cwd, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_all_of(home: Path) -> None:
    """Kill the processes that keep their files in a Prefect home: runs that a failed test left behind."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PREFECT_HOME={home}".encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Any]:
    """A client of a server to which prefect.yaml was deployed, with a worker that takes runs."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    home = tmp_path_factory.mktemp("prefect-home")
    with ExitStack() as stack:
        stack.callback(kill_all_of, home)
        port = free_port()
        environment = os.environ | {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_API_DATABASE_CONNECTION_URL": stack.enter_context(postgresql()),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

        def prefect(*arguments: str) -> None:
            done = subprocess.run(
                [PREFECT, "--no-prompt", *arguments], env=environment, cwd=repository, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

        start = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
        stack.enter_context(running(start, home / "server.log", environment, cwd=home))
        stack.enter_context(temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}))
        client = stack.enter_context(get_client(sync_client=True))
        wait_until(lambda: client.api_healthcheck() is None, "the start of the server", 120)
        prefect("work-pool", "create", "yivl", "--type", "process")
        prefect("deploy", "--all")
        work = [PREFECT, "worker", "start", "--pool", "yivl", "--limit", "4"]
        stack.enter_context(running(work, home / "worker.log", environment, cwd=home))
        yield client


def has_process(run_id: Any) -> bool:
    """Whether a process works on a flow run."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def start(api: Any, deployment: str, **config: Any) -> Any:
    found = api.read_deployment_by_name(f"{deployment}/{deployment}")
    return api.create_flow_run_from_deployment(found.id, parameters={"config": config}).id


def finish(api: Any, *run_ids: Any) -> None:
    """Wait for runs; each has to end well."""
    wait_until(lambda: all(api.read_flow_run(run_id).state.is_final() for run_id in run_ids), "the runs", 170)
    for run_id in run_ids:
        run = api.read_flow_run(run_id)
        assert run.state.is_completed(), f"{run.name}: {run.state.name} {run.state.message}"


def artifacts_of(api: Any, run_id: Any) -> dict[str, Any]:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    found = api.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])), limit=200)
    return {artifact.key: artifact.data for artifact in found}


def task_states(api: Any, run_id: Any) -> Counter[str]:
    """How many task runs of a flow run ended in each state, once the server has heard of all."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    def read() -> list[Any]:
        return list(api.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))))

    wait_until(lambda: all(run.state.is_final() for run in read()), "the news of the tasks", 20)
    return Counter(run.state_name for run in read())


def test_every_deployment_is_there_and_retrain_is_scheduled_every_night(api, repository):
    wanted = yaml.safe_load((repository / "prefect.yaml").read_text())["deployments"]
    deployed = {deployment.name: deployment for deployment in api.read_deployments()}
    assert deployed.keys() == {deployment["name"] for deployment in wanted}
    assert {"validate", "sft", "export", "infer", "infer-shard", "evaluate", "promote", "retrain", "demo"} <= deployed.keys()
    (nightly,) = deployed["retrain"].schedules
    assert (nightly.schedule.cron, nightly.schedule.timezone, nightly.active) == ("0 2 * * *", "Etc/UTC", True)
    assert deployed["retrain"].global_concurrency_limit.limit == 1


def test_a_worker_finishes_deployed_flows(api, small_dataset, tiny_checkpoint, tmp_path):
    """Single flows run beside each other; then what follows from them."""
    records, work, model = str(small_dataset / "train.jsonl"), str(tmp_path), str(tiny_checkpoint)
    answers = {"dataset": records, "shard_size": 6, "where": "workers", "max_new_tokens": 3}
    infer = start(api, "infer", model=model, output=f"{work}/predictions", **answers)
    sft = start(api, "sft", model=model, dataset=records, output=f"{work}/sft", batch_size=4)
    validate = start(api, "validate", dataset=[records], output=f"{work}/validated")
    finish(api, sft, infer)
    export = start(api, "export", adapter=f"{work}/sft/adapter", output=f"{work}/merged")
    evaluate = start(api, "evaluate", predictions=f"{work}/predictions", output=f"{work}/report")
    finish(api, validate, export, evaluate)

    assert (tmp_path / "validated" / "report.json").is_file()
    assert (tmp_path / "merged" / "config.json").is_file()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["rows"]["total"] == 12
    shards = [run for run in api.read_flow_runs() if run.name.startswith("shard-")]
    assert sorted(run.name for run in shards) == ["shard-00000", "shard-00001"]
    assert all(run.state.is_completed() for run in shards)
    assert artifacts_of(api, sft)["train-progress"] == 100
    assert json.loads(artifacts_of(api, evaluate)["metrics"])[0]["num_samples"] == 12


def test_a_promotion_waits_for_a_yes_and_its_worker_does_not(api, tiny_checkpoint, tmp_path):
    (tmp_path / "report").mkdir()
    report = {
        "format": "yivl evaluation report",
        "version": 2,
        "scoring": {"primary": "cer"},
        "figures": {"cer": {"value": 0.05}},
        "gate": {"result": "passed", "reasons": []},
        "comparison": None,
        "predictions": {"content_digest": "x", "manifest": {"model": {"digest": checkpoint_digest(tiny_checkpoint)}}},
    }
    (tmp_path / "report" / "report.json").write_text(json.dumps(report))
    settings = {"model": str(tiny_checkpoint), "report": str(tmp_path / "report"), "approval": True}
    runs = {name: start(api, "promote", registry=str(tmp_path / name), **settings) for name in ("yes", "no")}
    wait_until(lambda: all(api.read_flow_run(run).state.is_paused() for run in runs.values()), "the suspension", 120)
    wait_until(lambda: not any(map(has_process, runs.values())), "the end of the processes", 60)
    time.sleep(3)  # a worker that has not seen the end of a run's process stumbles over the run when it comes again
    assert not (tmp_path / "yes").exists()
    for name, run in runs.items():
        api.resume_flow_run(run, run_input={"is_approved": name == "yes", "reason": "seen by A. N."})
    finish(api, *runs.values())
    told = json.loads((tmp_path / "yes" / "registry.json").read_text())
    assert told["current"]["model"] == str(tiny_checkpoint)
    assert told["history"][0]["reason"].endswith("; approved: seen by A. N.")
    assert not (tmp_path / "no" / "registry.json").exists()


def test_a_worker_goes_on_from_what_the_demo_has_left(api, demo_folder):
    """The last test of this file, since whoever runs the demo first takes minutes."""
    demo = start(api, "demo", output=str(demo_folder / "work"))
    finish(api, demo)
    told = json.loads(next(demo_folder.glob(f"work/runs/*-{str(demo)[:8]}/summary.json")).read_text())
    assert (told["training"]["num_train_samples"], told["evaluation"]["num_samples"]) == (600, 200)
    retrain = start(api, "retrain", **told["config"])
    finish(api, retrain)
    assert {"training", "metrics", "sample-predictions", "retrain-metrics", "retrain"} <= artifacts_of(api, demo).keys()
    assert task_states(api, retrain)["Cached"] == 4, "what the demo trained, merged and answered (twice) is not done again"
