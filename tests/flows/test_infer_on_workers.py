"""Giving shards to workers, without any: the runs are made and watched, and nobody takes them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flows.configuration import InferConfig
from flows.infer import SHARD_DEPLOYMENT, _groups, infer, infer_shard
from yivl_core.errors import ChildFailedError, ConfigurationError

pytestmark = pytest.mark.flows

CONFIG = InferConfig(model="m", dataset="d", output="o", where="workers", deadline_s=60)


@pytest.fixture(autouse=True)
def two_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.inference.plan_shards", lambda settings: [0, 1])
    monkeypatch.setattr("tasks.inference.missing", lambda output: [1])


@pytest.fixture
def deployment(prefect_api: str) -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    deployment_id = infer_shard.to_deployment(name="infer-shard").apply()
    yield deployment_id
    with get_client(sync_client=True) as client:
        client.delete_deployment(deployment_id)


@pytest.fixture
def shard_runs(deployment: Any) -> Callable[[], list[Any]]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    def read() -> list[Any]:
        wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        with get_client(sync_client=True) as client:
            return sorted(client.read_flow_runs(deployment_filter=wanted), key=lambda run: str(run.name))

    return read


def test_without_the_deployment_the_command_that_makes_it_is_named(prefect_api):
    with pytest.raises(ConfigurationError, match=f"no deployment {SHARD_DEPLOYMENT}; run `prefect deploy --all`"):
        infer(CONFIG)


def test_each_missing_shard_is_a_run_where_there_are_few_and_an_interrupt_takes_them_back(shard_runs, monkeypatch):
    def press_ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.infer.ProgressRelay", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        infer(CONFIG)
    runs = shard_runs()
    assert [run.name for run in runs] == ["shard-00000", "shard-00001"]
    assert [run.parameters["config"]["shard_indices"] for run in runs] == [[0], [1]]
    assert all(run.parameters["config"]["resume"] and run.parameters["config"]["deadline_s"] == 60 for run in runs)
    assert {run.state.type.value for run in runs} <= {"CANCELLING", "CANCELLED"}


@pytest.mark.parametrize(
    ("num_shards", "shards_per_run", "sizes"),
    [(1, None, [1]), (31, None, [1] * 31), (33, None, [2] * 16 + [1]), (1000, None, [8] * 125), (7, 3, [3, 3, 1]), (3, 9, [3])],
)
def test_a_run_does_some_shards_with_the_model_loaded_once(num_shards, shards_per_run, sizes):
    indices = list(range(5, 5 + num_shards))
    groups = _groups(indices, shards_per_run)
    assert [len(group) for group in groups] == sizes
    assert [index for group in groups for index in group] == indices


def test_a_shard_that_no_worker_published_is_an_error_that_tells_what_to_do(deployment, monkeypatch):
    monkeypatch.setattr("flows.infer._unfinished", lambda client, run_ids: [])
    with pytest.raises(
        ChildFailedError, match=r"o: 1 of 2 shards were not published \(the first: 1\).*run this again with resume"
    ):
        infer(CONFIG)
