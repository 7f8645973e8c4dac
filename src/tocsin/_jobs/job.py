"""A job that was submitted: its state and its outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Generic, TypeVar

import trio

from tocsin._arguments import check_id
from tocsin._durations import Duration, to_seconds
from tocsin._queue.process.outcome_lookup import OUTCOMES
from tocsin._queue.process.process import Process
from tocsin.errors import ConnectionLost, JobNotFound

from .attempts import Attempt, list_attempts
from .control import Rows, cancel_job, edit_job, requeue_job, reschedule_job
from .definition import Definition, make_call
from .job_info import JobInfo, read_outcome, read_row
from .packing import run_packing
from .progress import Progress
from .submitting import pack_all, refuse_links

R = TypeVar("R")


FIRST_LOOK = 5.0
"""Seconds that the first look for an outcome may take, however short the wait is."""


async def find_job(database: Rows, job_id: int) -> JobInfo:
    """Return the state of a job.

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


async def look_up(process: Process, job_id: int) -> JobInfo:
    """Return the state of a job: see `find_job`.

    Tasks that look at a time share a statement.
    """
    row = await process.lookup.find(check_id(job_id, "job_id"))
    if row is None:
        raise JobNotFound(job_id)
    return read_row(row)


async def wait_finished(
    process: Process,
    job_id: int,
    timeout: Duration | None,  # noqa: ASYNC109 - a shorthand
    *,
    just_submitted: bool = False,
) -> JobInfo:
    """Wait until a job is finished, and return its state: see `Jobs.wait`.

    Args:
        process: This process.
        job_id: The job.
        timeout: The longest wait in seconds; None: any time.
        just_submitted: The job is hardly finished yet, so a first look would find
            nothing. A short wait looks in any case.
    """
    limit = math.inf if timeout is None else to_seconds(timeout, "timeout", zero=True)
    began = trio.current_time()
    info: JobInfo | None = None
    if not just_submitted or limit < FIRST_LOOK:
        with trio.fail_after(max(limit, FIRST_LOOK)):
            info = await look_up(process, job_id)
    with trio.move_on_at(began + limit):
        if info is None or not info.finished:
            async with process.outcomes.waiting(job_id) as wait:
                while info is None or not info.finished:
                    await wait.woken()
                    # An outage ends no wait: each connection wakes it again.
                    with suppress(ConnectionLost):
                        info = await look_up(process, job_id)
    if info is None or not info.finished:
        state = "waiting" if info is None else info.state
        raise trio.TooSlowError(f"job {job_id} is not finished yet ({state}); it goes on")
    return info


class Job(Generic[R]):
    """A job that was submitted; made by `Task.submit`."""

    def __init__(
        self,
        database: Rows,
        process: Process | None,
        job_id: int,
        definition: Definition[R],
        *,
        just_submitted: bool = False,
    ) -> None:
        self.id: int = job_id
        """Id of the job, which is that of its message."""
        self._database = database
        self._process = process
        self._definition = definition
        self._just_submitted = just_submitted

    def __repr__(self) -> str:
        return f"<tocsin.Job {self.id} of task {self._definition.name}>"

    async def info(self) -> JobInfo:
        """Return the state of the job.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        if self._process is None:
            return await find_job(self._database, self.id)
        return await look_up(self._process, self.id)

    async def progress(self) -> Progress | None:
        """Return what the function of the job has reported: see `CurrentJob.progress`.

        Returns:
            The last report that was written, or None if there is none or the job does
            not run.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        return (await self.info()).progress

    async def attempts(self) -> Sequence[Attempt]:
        """Return the attempts of the job: see `Jobs.attempts`.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        return await list_attempts(self._database, self.id)

    async def result(self, *, timeout: Duration | None = None) -> R:  # noqa: ASYNC109 - a shorthand
        """Wait until the job is finished, and return what its function returned.

        The transaction that finishes the job notifies this process; nothing polls.

        Args:
            timeout: The longest wait in seconds; None: any time.

        Raises:
            JobFailed: It has failed, and no further attempt follows.
            JobTimedOut: It has failed, and its last attempt has taken too long.
            JobCancelled: It was cancelled.
            JobNotFound: No job has this id, or it was deleted, for example because the
                retention of its queue is over. A wait for a job that is purged ends
                with the next heartbeat.
            ResultInvalid: The result is not what the return annotation says.
            ValueUnreadable: The task's packing cannot return the result.
            ConnectionLost: The database did not answer to begin with; a later outage
                does not end the wait.
            trio.TooSlowError: The time is over. The job goes on. With a ``timeout`` of
                0, the job is not finished.

        Cancellation:
            The job goes on.
        """
        assert self._process is not None
        just_submitted, self._just_submitted = self._just_submitted, False
        info = await wait_finished(self._process, self.id, timeout, just_submitted=just_submitted)
        return await run_packing(self._definition.packing, self.read, info)

    async def cancel(self, reason: str = "cancelled") -> None:
        """Cancel the job: see `Jobs.cancel`.

        Args:
            reason: The reason, which `JobCancelled` has.

        Raises:
            MessageNotWaiting: The job is finished.
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Atomic.
        """
        await cancel_job(self._database, self.id, reason)

    async def requeue(self) -> None:
        """Run the job again: see `Jobs.requeue`.

        Raises:
            TocsinError: What `Jobs.requeue` raises.

        Cancellation:
            Atomic.
        """
        await requeue_job(self._database, self.id)

    async def reschedule(
        self, *, delay: Duration | None = None, at: datetime | None = None
    ) -> None:
        """Have the job run at another time, while it waits: see `Jobs.reschedule`.

        Args:
            delay: Seconds from now.
            at: The time, with its zone.

        Raises:
            TocsinError: What `Jobs.reschedule` raises.
            ValueError: Neither ``delay`` nor ``at`` is given, or both are.

        Cancellation:
            Atomic.
        """
        await reschedule_job(self._database, self.id, delay, at)

    async def edit(
        self, *, priority: int | None = None, arguments: Mapping[str, object] | None = None
    ) -> None:
        """Give the job another priority or other arguments, while it waits.

        Args:
            priority: Smaller numbers are run first.
            arguments: All arguments by name, as the task's function takes them.

        Raises:
            ArgumentsInvalid: The function does not take these arguments.
            TocsinError: What `Jobs.edit` raises.
            ValueError: Nothing is given, the job is of another task, or a value is out
                of its range.

        Cancellation:
            Atomic.
        """
        if arguments is None:
            await edit_job(self._database, self.id, priority, None)
            return
        call = make_call(self._definition, (), arguments)
        refuse_links(call)
        (call,) = await pack_all([call])
        await edit_job(self._database, self.id, priority, call.arguments, call)

    def read(self, info: JobInfo) -> R:
        """Return the result of a finished job as the task's function returned it.

        A payload store of the task may block.

        Raises:
            ValueUnreadable: The task's packing cannot return the result.
            JobFailed: It has failed.
            JobCancelled: It was cancelled.
            ResultInvalid: It is not what the return annotation says.
        """
        return self._definition.read_result(read_outcome(info))
