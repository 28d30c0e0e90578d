"""What the tasks have in common: the content key that a result is cached under, its check, and when to try again.

Prefect's cache saves the work of finding out that a stage is done. The truth is what lies in the output folder, so a cached
result counts only while that is unharmed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from pydantic import BaseModel

from yivl_core.child import LASTING_ERRORS
from yivl_core.digests import digest_json
from yivl_core.errors import StorageError, YivlError
from yivl_core.outputs.manifest import code_digest
from yivl_core.storage import is_local

Config = TypeVar("Config", bound=BaseModel)
Summary = TypeVar("Summary")

RETRY_DELAYS_S: list[float] = [5, 30]


def content_key(**content: Any) -> str:
    """sha256 (hex) that names the result of a stage: the same for the same content, settings and code, wherever they lie.

    Args:
        content: digests and settings that decide the result, as JSON values by name.
    """
    return digest_json({**content, "code": code_digest()})


def run_cached(
    run: Task[[Config, float | None, str], Summary],
    config: Config,
    *,
    key: str,
    output: str,
    is_intact: Callable[[Summary], bool],
    deadline_s: float | None = None,
) -> Summary:
    """Run a stage, or take the result of an earlier run if what that left is unharmed.

    Args:
        run: the stage's task, of settings, deadline and cache key.
        config: the settings.
        key: content key of the result.
        output: where it goes; the same content at another place is another result.
        is_intact: whether the files that a summary tells of are there, with the content that it tells of.
        deadline_s: after which the work is stopped; None: no limit.
    """
    place = str(Path(output).resolve()) if is_local(output) else output
    cache_key = f"{run.name}-{digest_json([key, place])}"
    state = run(config, deadline_s, cache_key, return_state=True)
    summary: Summary = state.result()
    if state.name == "Cached" and not _holds(is_intact, summary):
        get_run_logger().warning("%s: what an earlier run left in %s is gone or changed, so it is done again", run.name, output)
        summary = run.with_options(refresh_cache=True)(config, deadline_s, cache_key)
    return summary


def _holds(is_intact: Callable[[Summary], bool], summary: Summary) -> bool:
    try:
        return is_intact(summary)
    except YivlError:  # a file is missing, or is not what it was
        return False


def may_pass(error: BaseException) -> bool:
    """Whether trying again can help: storage failed, and not because of the state of a disk or a path."""
    cause = error.__cause__
    return isinstance(error, StorageError) and not (isinstance(cause, OSError) and cause.errno in LASTING_ERRORS)


def retry_if_it_may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Prefect's `retry_condition_fn`."""
    error = state.result(raise_on_failure=False)
    if not isinstance(error, BaseException) or not may_pass(error):
        return False
    get_run_logger().warning("%s; trying again soon", error)
    return True


def _given_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    return str(parameters["cache_key"])


class CoreTaskOptions(TypedDict):
    """What every task around a core function is made with."""

    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: Callable[[Task[..., Any], TaskRun, State[Any]], bool]


class CachedTaskOptions(CoreTaskOptions):
    """What a task is made with whose result is kept."""

    cache_key_fn: Callable[[TaskRunContext, dict[str, Any]], str]
    persist_result: bool
    result_serializer: str


CORE_TASK = CoreTaskOptions(
    retries=len(RETRY_DELAYS_S), retry_delay_seconds=RETRY_DELAYS_S, retry_condition_fn=retry_if_it_may_pass
)
CACHED_TASK = CachedTaskOptions(**CORE_TASK, cache_key_fn=_given_key, persist_result=True, result_serializer="json")
