"""The tasks around `infer_shards`: all shards in one child, or some of them for a worker."""

from itertools import islice

from prefect import runtime, task
from prefect.artifacts import create_table_artifact

from tasks.artifacts import prediction_rows
from tasks.caching import CACHED_TASK, CORE_TASK, content_key, run_cached
from tasks.process import run_in_child
from tasks.relay import ProgressRelay
from yivl_core.data.inputs import InputSource, input_digest
from yivl_core.data.network.url_settings import UNDECIDING_URL_SETTINGS
from yivl_core.doors import ShardedInferenceConfig
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary, find_input
from yivl_core.model.files import adapter_digest, checkpoint_digest
from yivl_core.outputs.manifest import MANIFEST_NAME, read_manifest
from yivl_core.outputs.predictions import content_digest, read_predictions
from yivl_core.outputs.shards import read_plan, shards_to_do
from yivl_core.settings import narrow
from yivl_core.storage import join

NUM_SAMPLE_PREDICTIONS = 20
_NOT_CONTENT = UNDECIDING_URL_SETTINGS | {
    "model", "adapter", "output", "resume", "as_planned", "shard", "max_failures", "contact_sheet",
}  # fmt: skip


def inference_key(config: InferenceConfig, data: str | None = None) -> str:
    """The content key of predictions; `config.output` and `config.resume` do not count.

    Args:
        config: what to infer.
        data: digest of what the records and their images hold, where the caller knows it; default: of the input as it is named.

    Raises:
        CheckpointError, DatasetError: a folder or file is not what it should be.
    """
    names = set(InferenceConfig.model_fields) - set(InputSource.model_fields) - _NOT_CONTENT
    return content_key(
        settings=config.model_dump(include=names),
        model=checkpoint_digest(config.model),
        adapter=adapter_digest(config.adapter) if config.adapter else None,
        data=[data, input_digest(find_input(config))],
    )


def infer_once(config: InferenceConfig, data: str | None = None, deadline_s: float | None = None) -> InferenceSummary:
    """Infer all missing shards, unless `config.resume` allows to take the predictions that are there for the same content.

    Args:
        config: what to infer.
        data: see `inference_key`.
        deadline_s: after which it is stopped; None: no limit.
    """
    run = _infer if config.resume else _infer.with_options(refresh_cache=True)
    key = inference_key(config, data)
    summary = run_cached(run, config, key=key, output=config.output, is_intact=_is_intact, deadline_s=deadline_s)
    show_samples(summary.output)
    return summary


@task(name="infer", **CORE_TASK)
def infer(config: InferenceConfig, deadline_s: float | None = None) -> InferenceSummary:
    """Infer all missing shards. Not cached: the published parts are the marks of what is done, and a key would need a look at the
    whole input, which may be a million files.
    """
    summary = _infer_all(config, deadline_s)
    if summary.num_shards_done == summary.num_shards:
        show_samples(summary.output)
    return summary


@task(name="infer", **CACHED_TASK)
def _infer(config: InferenceConfig, deadline_s: float | None, cache_key: str) -> InferenceSummary:
    return _infer_all(config, deadline_s)


def _is_retry() -> bool:
    """Whether this is a later attempt of the task, which goes on with what the first has published."""
    return bool(runtime.task_run.run_count > 1)


def _infer_all(config: InferenceConfig, deadline_s: float | None) -> InferenceSummary:
    settings = narrow(config, ShardedInferenceConfig, resume=config.resume or _is_retry())
    summary: InferenceSummary = run_in_child("infer", settings, ProgressRelay("infer"), deadline_s)
    return summary


@task(name="infer-shard", **CORE_TASK)
def infer_shards(config: InferenceConfig, shard_indices: tuple[int, ...], deadline_s: float | None = None) -> InferenceSummary:
    """Infer some shards of the plan in the output folder. Not cached: a published part is the mark that it is done."""
    changes = {"shard_indices": shard_indices, "resume": True, "as_planned": True, "shard": None, "contact_sheet": None}
    settings = narrow(config, ShardedInferenceConfig, **changes)
    summary: InferenceSummary = run_in_child("infer", settings, ProgressRelay("infer-shard"), deadline_s)
    return summary


@task(name="plan-shards", **CORE_TASK)
def plan_shards(config: InferenceConfig) -> list[int]:
    """Publish the split of the input in the output folder, or take up the one that is there; returns the shards to do."""
    settings = narrow(config, ShardedInferenceConfig, shard_indices=(), resume=config.resume or _is_retry())
    run_in_child("infer", settings, ProgressRelay("plan-shards"))
    return missing(config.output)


def missing(output: str) -> list[int]:
    """The shards of the plan in an output folder that are not published, or damaged."""
    return [shard.index for shard in shards_to_do(read_plan(output))[0]]


def show_samples(output: str) -> None:
    """Make an artifact of the first predictions."""
    rows = prediction_rows(islice(read_predictions(output), NUM_SAMPLE_PREDICTIONS))
    create_table_artifact(key="sample-predictions", table=rows, description=f"The first of {output}")


def _is_intact(summary: InferenceSummary) -> bool:
    read_plan(summary.output)  # an error if it is lost: nobody could tell then whether parts are missing
    manifest = read_manifest(join(summary.output, MANIFEST_NAME))
    stated = manifest.get("content_digest") if manifest else None
    return stated == summary.content_digest == content_digest(summary.output)
