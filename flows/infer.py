"""Records with images -> predictions: in one process (`infer`), or some shards a run on the workers (`infer-shard`)."""

import time
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.checked_flow import flow
from flows.configuration import InferConfig, InferShardConfig
from tasks import inference
from tasks.relay import ProgressRelay
from yivl_core.errors import ChildFailedError, ConfigurationError
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary
from yivl_core.progress import Progress
from yivl_core.settings import narrow

SHARD_DEPLOYMENT = "infer-shard/infer-shard"
POLL_S = 3.0
RUNS_PER_REQUEST = 200
_MOST_SHARDS_PER_RUN = 8
_FEWEST_RUNS = 16


@flow(name="infer")
def infer(config: InferConfig) -> InferenceSummary:
    """Answer every record; one row for each in the predictions, failures included."""
    settings = narrow(config, InferenceConfig)
    if config.where == "workers":
        _infer_on_workers(settings, config.shards_per_run, config.deadline_s)
        settings = narrow(settings, InferenceConfig, resume=True, as_planned=True)  # nothing is left to do but to count
    return inference.infer(settings, config.deadline_s)


@flow(name="infer-shard")
def infer_shard(config: InferShardConfig) -> InferenceSummary:
    """Answer the records of some shards; what `infer` gives to a worker."""
    return inference.infer_shards(narrow(config, InferenceConfig), config.shard_indices, config.deadline_s)


def _infer_on_workers(settings: InferenceConfig, shards_per_run: int | None, deadline_s: float | None) -> None:
    """Start deployment runs for the missing shards and wait until all have ended.

    Raises:
        ConfigurationError: the server has no such deployment.
        ChildFailedError: a shard was not published.
    """
    shard_indices = inference.plan_shards(settings)
    with get_client(sync_client=True) as client:
        run_ids: list[UUID] = []
        try:
            run_ids.extend(_start(settings, group, deadline_s) for group in _groups(shard_indices, shards_per_run))
            _wait(client, run_ids)
        except BaseException:
            _cancel(client, run_ids)
            raise
    left = inference.missing(settings.output)
    if left:
        raise ChildFailedError(
            f"{settings.output}: {len(left)} of {len(shard_indices)} shards were not published (the first: {left[0]}); "
            f"see the runs of {SHARD_DEPLOYMENT} for the reason, then run this again with resume"
        )


def _groups(shard_indices: list[int], shards_per_run: int | None) -> list[tuple[int, ...]]:
    """Which shards go to one run: each run starts a process and loads the model, and the last ones should end together."""
    size = shards_per_run or max(1, min(_MOST_SHARDS_PER_RUN, len(shard_indices) // _FEWEST_RUNS))
    return [tuple(shard_indices[start : start + size]) for start in range(0, len(shard_indices), size)]


def _start(settings: InferenceConfig, shard_indices: tuple[int, ...], deadline_s: float | None) -> UUID:
    """One run on a worker, by its id. The key lets a request that is sent twice count once, and a later attempt be a new run."""
    first, last = shard_indices[0], shard_indices[-1]
    config = narrow(settings, InferShardConfig, shard_indices=shard_indices, deadline_s=deadline_s, resume=True)
    try:
        run = run_deployment(
            SHARD_DEPLOYMENT,
            parameters={"config": config.model_dump(mode="json")},
            idempotency_key=f"{runtime.flow_run.id}-{runtime.flow_run.run_count}-{first}-{last}",
            flow_run_name=f"shard-{first:05d}" if first == last else f"shards-{first:05d}-{last:05d}",
            timeout=0,
        )
    except ObjectNotFound as error:
        raise ConfigurationError(
            f"the Prefect server has no deployment {SHARD_DEPLOYMENT}; run `prefect deploy --all` and start a worker, "
            "or infer with where=here"
        ) from error
    assert isinstance(run, FlowRun)
    return run.id


def _wait(client: SyncPrefectClient, run_ids: list[UUID]) -> None:
    relay = ProgressRelay("shards")
    num_done = -1
    while num_done < len(run_ids):
        if num_done >= 0:
            time.sleep(POLL_S)
        num_done = len(run_ids) - len(_unfinished(client, run_ids))
        relay(Progress(stage="shards", done=num_done, total=len(run_ids), unit="run"))


def _cancel(client: SyncPrefectClient, run_ids: list[UUID]) -> None:
    for run_id in _unfinished(client, run_ids):
        client.set_flow_run_state(run_id, Cancelling())


def _unfinished(client: SyncPrefectClient, run_ids: list[UUID]) -> list[UUID]:
    """The runs that have not ended, asked for in as few requests as the server allows."""
    unfinished = FlowRunFilterState(type=FlowRunFilterStateType(not_any_=list(TERMINAL_STATES)))
    found: list[UUID] = []
    for start in range(0, len(run_ids), RUNS_PER_REQUEST):
        ids = FlowRunFilterId(any_=run_ids[start : start + RUNS_PER_REQUEST])
        found += [run.id for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids, state=unfinished))]
    return found
