"""Wait for the outcomes of jobs, which the LISTEN connection tells.

``sql/functions/jobs/outcomes.sql`` has the protocol, and the reason why no outcome is
missed. The process's loop takes its steps (`OutcomeWaits.update`). A waiting task looks
for the outcome each time it is woken: when its wait is safe, when its job is announced,
with each heartbeat, and when the connection is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import attrs
import trio

from tocsin._database.client import Connection, Database

from .membership import Membership
from .recheck import Recheck

ANNOUNCED = "job "
"""Beginning of the notification that a job is finished; the job's id follows."""

MOST_DIGITS = 19
"""The most digits of an id."""


@attrs.define(eq=False)
class OutcomeWait:
    """A task that waits for the outcome of a job."""

    _woken: trio.Event = attrs.Factory(trio.Event)

    def wake(self) -> None:
        """Have the task look for the outcome."""
        self._woken.set()

    async def woken(self) -> None:
        """Return when the job may be finished, at once if it may be already.

        Cancellation:
            Nothing has changed.
        """
        await self._woken.wait()
        self._woken = trio.Event()


class OutcomeWaits:
    """The tasks of this process that wait for outcomes."""

    def __init__(
        self, database: Database, membership: Membership, on_change: Callable[[], None]
    ) -> None:
        """Begin without a wait.

        Args:
            database: Where the jobs are.
            membership: Registers this process.
            on_change: Called when the loop has something to do.
        """
        self.recheck: Recheck = Recheck()
        """When to ask again whether waits are safe."""
        self._database = database
        self._membership = membership
        self._on_change = on_change
        self._waits: dict[int, list[OutcomeWait]] = {}
        # Jobs with a row in `awaited`; those whose wait is not safe yet, by queue.
        self._registered: set[int] = set()
        self._unsafe: dict[int, int] = {}
        # Whether rows of a connection that was lost may be left.
        self._rows_left = False
        # Queues with the lock `awaited`.
        self._locked: set[int] = set()

    @property
    def wanted(self) -> bool:
        """Whether a task waits, so that there should be a LISTEN connection."""
        return bool(self._waits)

    @property
    def safe(self) -> bool:
        """Whether each job that a task waits for will be announced."""
        return self._waits.keys() <= self._registered and not self._unsafe

    @asynccontextmanager
    async def waiting(self, job_id: int) -> AsyncIterator[OutcomeWait]:
        """Wait for the outcome of a job, for as long as the block lasts.

        Raises:
            TocsinError: The process cannot be registered.

        Cancellation:
            The process may be registered.
        """
        await self._membership.ensure_process()
        wait = OutcomeWait()
        if job_id in self._registered and job_id not in self._unsafe:
            wait.wake()
        self._waits.setdefault(job_id, []).append(wait)
        self._on_change()
        try:
            yield wait
        finally:
            self._waits[job_id].remove(wait)
            if not self._waits[job_id]:
                del self._waits[job_id]
                self._on_change()

    def hear(self, payload: str) -> bool:
        """Return whether a notification announces a job, and wake its waiting tasks."""
        job_id = payload.removeprefix(ANNOUNCED)
        # Any role that may connect may notify anything.
        if job_id == payload or not job_id.isdecimal() or len(job_id) > MOST_DIGITS:
            return False
        self._wake([int(job_id)])
        return True

    def wake_all(self) -> None:
        """Have every waiting task look for its outcome."""
        self._wake(self._waits)

    async def update(self, connection: Connection) -> None:
        """Register new waits, confirm those that are due, and end the others.

        Cancellation:
            The connection may hold more locks than this object knows of, so it is to be
            closed.
        """
        if new := self._waits.keys() - self._registered:
            rows = await self._database.fetch(
                "select job_id, queue_id from tocsin.await_jobs(%s::bigint[], %s, %s)",
                [list(new), self._membership.process.id, self._rows_left],
                on=connection,
            )
            self._rows_left = False
            self._registered |= new
            self._unsafe |= {int(job_id): int(queue_id) for job_id, queue_id in rows}
            self._wake(new - self._unsafe.keys())
            self.recheck.begin()
        if self._unsafe and self.recheck.due:
            await self._confirm(connection)
        if gone := self._registered - self._waits.keys():
            await self._database.fetch(
                "select tocsin.leave_jobs(%s::bigint[], %s)",
                [list(gone), self._membership.process.id],
                on=connection,
            )
            self._registered -= gone
            self._unsafe = {j: q for j, q in self._unsafe.items() if j not in gone}
        if not self._unsafe:
            self.recheck.stop()
        if self._locked and not self._waits:
            await self._database.fetch(
                "select tocsin.end_awaiting(%s)", [list(self._locked)], on=connection
            )
            self._locked.clear()

    async def _confirm(self, connection: Connection) -> None:
        """Ask which waits are safe now, and have all of these tasks look."""
        asked = dict(self._unsafe)
        missing = set(asked.values()) - self._locked
        locked = set(asked.values()) & self._locked
        self._locked |= missing
        untold = await self._ask("begin_awaiting", missing, connection)
        untold |= await self._ask("untold_outcomes", locked, connection)
        for job_id, queue_id in asked.items():
            if queue_id not in untold:
                del self._unsafe[job_id]
        # Also those that are not safe: a transaction may have ended since the last
        # question.
        self._wake(asked)
        self.recheck.asked(again=bool(self._unsafe))

    async def _ask(self, function: str, queue_ids: set[int], connection: Connection) -> set[int]:
        if not queue_ids:
            return set()
        (untold,) = await self._database.fetch_one(
            f"select tocsin.{function}(%s)", [list(queue_ids)], on=connection
        )
        return set(untold)

    def _wake(self, job_ids: Iterable[int]) -> None:
        for job_id in job_ids:
            for wait in self._waits.get(job_id, ()):
                wait.wake()

    def lost(self) -> None:
        """Note that the connection and its locks are gone."""
        self._rows_left = self._rows_left or bool(self._registered)
        self._registered.clear()
        self._locked.clear()
        self._unsafe.clear()
        self.recheck.stop()
        self.wake_all()
