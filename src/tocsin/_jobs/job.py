"""A job that was submitted: how it stands, and what it has come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar, cast

import trio

from tocsin._durations import Duration, to_seconds
from tocsin._queue.process.process import Process
from tocsin.errors import ConnectionLost, JobNotFound

from .definition import Definition
from .job_info import OUTCOMES, JobInfo, read_outcome, read_row

R = TypeVar("R")


class Rows(Protocol):
    """Runs statements that are written for the schema ``tocsin``: a database."""

    async def fetch(
        self, statement: str, parameters: Sequence[object] = ()
    ) -> Sequence[tuple[Any, ...]]:
        """Run a statement, and return its rows."""


async def find_job(database: Rows, job_id: int) -> JobInfo:
    """Return how a job stands.

    Raises:
        JobNotFound: There is no such job.
        ConnectionLost: The database did not answer.

    Cancellation:
        Nothing has changed.
    """
    rows = await database.fetch(OUTCOMES, [[job_id]])
    if not rows:
        raise JobNotFound(job_id)
    return read_row(rows[0])


class Job(Generic[R]):
    """A job that was submitted; made by `Task.submit`."""

    def __init__(
        self, database: Rows, process: Process | None, job_id: int, definition: Definition[R]
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
        assert self._process is not None
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
