"""Where a task's progress goes: the run's log, a progress artifact, and whoever watches from the same process.

An artifact costs a request (about 66 ms), so it is updated every few seconds, however fast the steps are.
"""

import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from tasks.progress import describe, watcher
from yivl_core.progress import Progress

LOG_EVERY_S = 10.0
UPDATE_EVERY_S = 3.0


class ProgressRelay:
    """An `on_progress` for the body of a Prefect task."""

    def __init__(self, stage: str) -> None:
        """Start without an artifact: it is made when it is known how much there is to do.

        Args:
            stage: lower-case letters and dashes, names the artifact.
        """
        self._logger = get_run_logger()
        self._key = f"{stage}-progress"
        self._artifact_id: UUID | None = None
        self._last_stage = self._last_message = ""
        self._logged_at = self._updated_at = 0.0

    def __call__(self, progress: Progress) -> None:
        """Pass one step on."""
        watcher.get()(progress)
        now = time.monotonic()
        has_news = bool(progress.message) and progress.message != self._last_message
        is_turn = progress.stage != self._last_stage or progress.done == progress.total
        self._last_stage, self._last_message = progress.stage, progress.message
        if is_turn or has_news or now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            self._logger.info(describe(progress))
        if is_turn or now - self._updated_at >= UPDATE_EVERY_S:
            self._updated_at = now
            self._update(progress)

    def _update(self, progress: Progress) -> None:
        if not progress.total:
            return
        percent = 100.0 * progress.done / progress.total
        try:
            if self._artifact_id is None:
                artifact_id = create_progress_artifact(percent, key=self._key, description=describe(progress))
                assert isinstance(artifact_id, UUID)
                self._artifact_id = artifact_id
            else:
                update_progress_artifact(self._artifact_id, percent, description=describe(progress))
        except Exception as error:  # a server that hiccups must not end hours of training
            self._logger.warning("The progress artifact could not be updated: %s", error)
