"""The state and the outcome of a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import attrs

from tocsin._queue.payload import decode
from tocsin.errors import JobCancelled, JobFailed, JobTimedOut

from .progress import Progress, read_progress

JobState: TypeAlias = Literal["waiting", "running", "succeeded", "failed", "cancelled"]
"""The state of a job."""


@attrs.frozen
class JobInfo:
    """The state of a job at the time of the call."""

    id: int
    """Id of the job."""
    task: str
    """Name of its task."""
    state: JobState
    """Its state."""
    attempts: int
    """How many attempts have begun."""
    result: Any
    """What its function returned, as a JSON value; None unless it has succeeded."""
    reason: str | None
    """Why it has failed, as a code: see `DeadLetter.reason`; None unless it has."""
    error: str | None
    """The error of the last attempt that had one, or why it was cancelled."""
    traceback: str | None
    """The traceback of the last attempt; None unless the job has failed."""

    progress: Progress | None
    """What its function has reported; None: nothing, or the job does not run."""

    @property
    def finished(self) -> bool:
        """Whether the job is finished."""
        return self.state in ("succeeded", "failed", "cancelled")


def read_row(row: Sequence[Any]) -> JobInfo:
    """Return the state of a job from a row of ``tocsin.job_outcomes``."""
    id_, task, state, attempts, result, reason, error, traceback, progress = row
    value = None if result is None else decode(result)
    return JobInfo(
        id_, task, state, attempts, value, reason, error, traceback, read_progress(progress)
    )


def read_outcome(info: JobInfo) -> Any:
    """Return the result of a finished job as a JSON value.

    Raises:
        JobFailed: It has failed.
        JobTimedOut: It has failed, and its last attempt has taken too long.
        JobCancelled: It was cancelled.
    """
    if info.state == "cancelled":
        raise JobCancelled(info.id, task=info.task, reason=info.error or "cancelled")
    if info.state == "failed":
        kind = JobTimedOut if info.reason == "timed_out" else JobFailed
        raise kind(
            info.id,
            task=info.task,
            reason=info.reason or "",
            attempts=info.attempts,
            error=info.error or info.reason or "",
            traceback=info.traceback or "",
        )
    return info.result
