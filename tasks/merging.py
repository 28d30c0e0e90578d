"""The task around `merge_adapter`."""

from pathlib import Path

from prefect import task

from tasks.caching import CACHED_TASK, content_key, run_cached
from tasks.process import run_in_child
from tasks.relay import ProgressRelay
from yivl_core.export.configuration import MergeConfig, MergeSummary, find_base
from yivl_core.model.files import adapter_digest, checkpoint_digest, has_held_out_rows_of, read_about


def merge_key(config: MergeConfig) -> str:
    """The content key of a merged checkpoint; `config.output` does not count.

    Raises:
        CheckpointError: a folder is not what it should be.
    """
    return content_key(
        adapter=adapter_digest(config.adapter),
        model=checkpoint_digest(find_base(config)),
        settings=config.model_dump(include={"layout", "max_shard_bytes"}),
    )


def merge(config: MergeConfig, deadline_s: float | None = None) -> MergeSummary:
    """Merge an adapter into its base, unless the very same merge is there."""
    key = merge_key(config)
    return run_cached(
        _merge,
        config,
        key=key,
        output=config.output,
        is_intact=lambda summary: _is_intact(summary, Path(config.adapter)),
        deadline_s=deadline_s,
    )


@task(name="merge", **CACHED_TASK)
def _merge(config: MergeConfig, deadline_s: float | None, cache_key: str) -> MergeSummary:
    summary: MergeSummary = run_in_child("merge", config, ProgressRelay("merge"), deadline_s)
    return summary


def _is_intact(summary: MergeSummary, adapter: Path) -> bool:
    if not has_held_out_rows_of(adapter, Path(summary.output)):
        return False
    stated = read_about(Path(summary.output)).get("digest")
    return stated == summary.digest == checkpoint_digest(summary.output)
