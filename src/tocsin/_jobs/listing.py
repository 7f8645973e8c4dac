"""The jobs of a store in lists and counts, and their deletion."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, get_args

import attrs

from tocsin._arguments import check_count, check_id, check_key, check_queue, check_text
from tocsin._database.client import Database
from tocsin._durations import Duration, to_timedelta
from tocsin._queue.payload import decode
from tocsin.errors import JobNotFound

from .job_info import JobState
from .progress import Progress, read_progress

_LIST = (
    "select * from tocsin.list_jobs(task => %s, queue => %s, state => %s, since => %s,"
    " until => %s, key => %s, newest_first => %s, max_jobs => %s, after => %s)"
)


_GET = "select * from tocsin.list_jobs(job_id => %s)"


@attrs.frozen(slots=False)
class ListedJob:
    """A job as `Jobs.list` shows it."""

    id: int
    """Id of the job."""
    task: str
    """Name of its task."""
    queue: str
    """Name of its queue."""
    state: JobState
    """Its state."""
    priority: int
    """Smaller numbers are run first."""
    key: str | None
    """Its key."""
    attempts: int
    """How many attempts have begun."""
    max_attempts: int | None
    """After how many attempts a job that fails becomes a dead letter; None: it has
    succeeded or was cancelled."""
    submitted_at: datetime
    """When it was submitted."""
    due: datetime | None
    """When it is due; None: it is finished."""
    began_at: datetime | None
    """When its last attempt began; None: none has."""
    ended_at: datetime | None
    """When it was finished; None: it is not."""
    worker_id: int | None
    """Id of the consumer of its last attempt."""
    arguments_text: str | None = attrs.field(repr=False)
    """Its arguments as JSON text; None: the role may not read them."""
    result_text: str | None = attrs.field(repr=False)
    """Its result as JSON text; None unless it has succeeded."""
    reason: str | None
    """Why it has failed, as a code: see `DeadLetter.reason`."""
    error: str | None
    """The error of the last attempt that had one, or why it was cancelled."""
    progress: Progress | None = attrs.field(converter=read_progress)
    """What its function has reported; None: nothing, or the job does not run."""

    @cached_property
    def arguments(self) -> Any:
        """Its arguments, as a JSON value; None: the role may not read them."""
        return None if self.arguments_text is None else decode(self.arguments_text)

    @cached_property
    def result(self) -> Any:
        """What its function returned, as a JSON value; None unless it has succeeded."""
        return None if self.result_text is None else decode(self.result_text)


@attrs.frozen
class JobCount:
    """The number of jobs of a task in a state."""

    task: str
    """Name of the task."""
    state: JobState
    """The state of these jobs."""
    count: int
    """How many there are."""
    exact: bool
    """Whether the number is exact; a large one is an estimate."""


@attrs.frozen
class TaskMetrics:
    """The load of a task."""

    task: str
    """Name of the task."""
    waiting: int
    """How many of its jobs wait."""
    running: int
    """How many run."""
    failed: int
    """How many are dead letters."""
    success_rate: float
    """How many have succeeded per second, in the last minute."""
    exact: bool
    """Whether the numbers are exact; large ones are estimates."""


class JobLists:
    """The jobs of a store in lists and counts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        state: JobState | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        key: str | None = None,
        newest_first: bool = False,
        limit: int = 100,
        after: int | None = None,
    ) -> Sequence[ListedJob]:
        """Return a page of jobs in the order in which they were submitted.

        Jobs that wait are read in the order of ids, and so are those that a filter
        leaves out. Finished jobs are found by task and state. A role sees the jobs of
        the queues that were granted to it, or those of all queues if it may consume.

        Args:
            task: The name of a task.
            queue: The name of a queue.
            state: The state of jobs.
            since: Only jobs that were submitted then or later.
            until: Only jobs that were submitted before.
            key: The key of jobs.
            newest_first: Begin with the last job.
            limit: The most jobs to return.
            after: The last id of the page before.

        Raises:
            QueueNotFound: The queue does not exist.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The database did not answer.
            ValueError: An argument is out of its range.

        Cancellation:
            Changes nothing.
        """
        rows = await self._database.fetch(
            _LIST,
            [
                None if task is None else check_text(task, "task"),
                None if queue is None else check_queue(queue),
                None if state is None else _check_state(state),
                since,
                until,
                check_key(key),
                newest_first,
                check_count(limit, "limit"),
                None if after is None else check_id(after, "after"),
            ],
        )
        return [ListedJob(*row) for row in rows]

    async def get_listed(self, job_id: int) -> ListedJob:
        """Return a job as `list` shows it, with its queue, its times and its arguments.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        rows = await self._database.fetch(_GET, [check_id(job_id, "job_id")])
        if not rows:
            raise JobNotFound(job_id)
        return ListedJob(*rows[0])

    async def stats(self) -> Sequence[JobCount]:
        """Return how many jobs there are of each task in each state, by task.

        Raises:
            PermissionDenied: The role is no administrator.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        rows = await self._database.fetch(
            "select * from tocsin.job_stats() order by task_name, job_state"
        )
        return [JobCount(*row) for row in rows]

    async def metrics(self) -> Sequence[TaskMetrics]:
        """Return the load of each task, by name.

        The call costs the same whatever waits or is archived, so it can be repeated;
        `stats` counts more.

        Raises:
            PermissionDenied: The role is no administrator.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        rows = await self._database.fetch("select * from tocsin.task_metrics()")
        return [TaskMetrics(*row) for row in rows]

    async def clear(
        self,
        *,
        states: Collection[JobState] = ("succeeded", "cancelled"),
        task: str | None = None,
        older_than: Duration | None = None,
        dry_run: bool = False,
    ) -> int:
        """Delete finished jobs, and return how many.

        Args:
            states: Which finished jobs.
            task: The name of a task.
            older_than: Only jobs that were finished longer than these seconds ago.
            dry_run: Delete nothing, and return how many jobs would be deleted.

        Raises:
            PermissionDenied: The role is no administrator.
            ConnectionLost: The database did not answer.
            ValueError: An argument is out of its range.

        Cancellation:
            Atomic.
        """
        (cleared,) = await self._database.fetch_one(
            "select tocsin.clear_jobs(%s::text[], %s, %s, %s)",
            [
                [_check_state(state) for state in states],
                None if task is None else check_text(task, "task"),
                None if older_than is None else to_timedelta(older_than, "older_than", zero=True),
                dry_run,
            ],
        )
        return int(cleared)


def _check_state(state: JobState) -> str:
    if state not in get_args(JobState):
        raise ValueError(f"state must be one of {', '.join(get_args(JobState))}, not {state!r}")
    return state
