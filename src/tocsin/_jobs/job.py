"""A job that was submitted: how it stands, and what it has come to."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import attrs
import trio

from tocsin._database.client import Database
from tocsin._durations import Duration, to_seconds
from tocsin._queue.payload import decode
from tocsin._queue.process.process import Process
from tocsin.errors import ConnectionLost, JobCancelled, JobFailed, JobNotFound, JobTimedOut

from .definition import Definition

R = TypeVar("R")

JobState: TypeAlias = Literal["waiting", "running", "succeeded", "failed", "cancelled"]
"""How a job stands."""

_OUTCOMES = (
    "select id, task, state, attempts, result, reason, error, traceback"
    " from tocsin.job_outcomes(%s::bigint[])"
)


@attrs.frozen
class JobInfo:
    """How a job stood when it was asked for."""

    id: int
    """Id of the job."""
    task: str
    """Name of its task."""
    state: JobState
    """How it stands."""
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

    @property
    def finished(self) -> bool:
        """Whether the job has come to an end."""
        return self.state in ("succeeded", "failed", "cancelled")


async def find_job(database: Database, job_id: int) -> JobInfo:
    """Return how a job stands.

    Raises:
        JobNotFound: There is no such job.
        ConnectionLost: The database did not answer.

    Cancellation:
        Nothing has changed.
    """
    rows = await database.fetch(_OUTCOMES, [[job_id]])
    if not rows:
        raise JobNotFound(job_id)
    (found,) = rows
    id_, task, state, attempts, result, reason, error, traceback = found
    value = None if result is None else decode(result)
    return JobInfo(id_, task, state, attempts, value, reason, error, traceback)


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


class Job(Generic[R]):
    """A job that was submitted; made by `Task.submit`."""

    def __init__(
        self, database: Database, process: Process, job_id: int, definition: Definition[R]
    ) -> None:
        self.id: int = job_id
        """Id of the job, which is that of its message."""
        self._database = database
        self._process = process
        self._definition = definition

    def __repr__(self) -> str:
        return f"<tocsin.Job {self.id} of task {self._definition.name}>"

    async def info(self) -> JobInfo:
        """Return how the job stands.

        Raises:
            JobNotFound: There is no such job, or no longer.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        return await find_job(self._database, self.id)

    async def result(self, *, timeout: Duration | None = None) -> R:  # noqa: ASYNC109 - a shorthand
        """Wait until the job is finished, and return what its function returned.

        The transaction that finishes the job notifies this process; nothing polls.

        Args:
            timeout: The longest wait in seconds; None: any time.

        Raises:
            JobFailed: It has failed for good.
            JobTimedOut: It has failed for good; its last attempt has taken too long.
            JobCancelled: It was cancelled.
            JobNotFound: There is no such job, or no longer: its queue keeps what is
                finished for a shorter time.
            ResultInvalid: The result is not what the return annotation says.
            ConnectionLost: The database did not answer to begin with; a later outage
                does not end the wait.
            trio.TooSlowError: The time is over. The job goes on.

        Cancellation:
            The job goes on.
        """
        limit = math.inf if timeout is None else to_seconds(timeout, "timeout", zero=True)
        with trio.fail_after(limit):
            info = await self.info()
            if not info.finished:
                async with self._process.outcomes.waiting(self.id) as wait:
                    while not info.finished:
                        await wait.woken()
                        # An outage ends no wait: each connection wakes it again.
                        with suppress(ConnectionLost):
                            info = await self.info()
        return self.read(info)

    async def cancel(self) -> None:
        """Cancel the job.

        Raises:
            MessageNotWaiting: The job is running or has finished.
            MessageNotFound: There is no such job, or no longer.
            ConnectionLost: The database did not answer.

        Cancellation:
            Atomic: the job is cancelled or nothing has changed.
        """
        await self._database.fetch("select tocsin.cancel(%s)", [self.id])

    def read(self, info: JobInfo) -> R:
        """Return the result of a finished job as the task's function returned it.

        Raises:
            JobFailed: It has failed.
            JobCancelled: It was cancelled.
            ResultInvalid: It is not what the return annotation says.
        """
        return cast(R, self._definition.signature.read_result(read_outcome(info)))
