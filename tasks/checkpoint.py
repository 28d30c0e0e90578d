"""The task around `write_random_checkpoint`."""

from prefect import task

from tasks.caching import CACHED_TASK, content_key, run_cached
from tasks.process import run_in_child
from yivl_core.doors import RandomCheckpointConfig, RandomCheckpointSummary
from yivl_core.model.files import checkpoint_digest


def write_random_checkpoint(config: RandomCheckpointConfig) -> RandomCheckpointSummary:
    """Write a small checkpoint with random weights, unless the very same is there."""
    return run_cached(_write, config, key=content_key(seed=config.seed), output=config.output, is_intact=_is_intact)


@task(name="random-checkpoint", **CACHED_TASK)
def _write(config: RandomCheckpointConfig, deadline_s: float | None, cache_key: str) -> RandomCheckpointSummary:
    summary: RandomCheckpointSummary = run_in_child("random-checkpoint", config, deadline_s=deadline_s)
    return summary


def _is_intact(summary: RandomCheckpointSummary) -> bool:
    return checkpoint_digest(summary.output) == summary.digest
