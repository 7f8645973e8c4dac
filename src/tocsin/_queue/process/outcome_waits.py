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
from .outcome_registrations import OutcomeRegistrations
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
        self._registrations = OutcomeRegistrations(database, membership)
        self._membership = membership
        self._on_change = on_change
        self._waits: dict[int, list[OutcomeWait]] = {}

    @property
    def wanted(self) -> bool:
        """Whether a task waits, so that there should be a LISTEN connection."""
        return bool(self._waits)

    @property
    def safe(self) -> bool:
        """Whether each job that a task waits for will be announced."""
        return all(map(self._registrations.is_safe, self._waits))

    @property
    def recheck(self) -> Recheck:
        """When to ask again whether waits are safe."""
        return self._registrations.recheck

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
        if self._registrations.is_safe(job_id):
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
        registrations = self._registrations
        if new := self._waits.keys() - registrations.jobs:
            await registrations.begin(new, connection)
            self._wake(new)
        if registrations.recheck.due:
            # Also those that are not safe: a transaction may have ended since the last
            # question.
            self._wake(await registrations.confirm(connection))
        await registrations.end(registrations.jobs - self._waits.keys(), connection)

    def _wake(self, job_ids: Iterable[int]) -> None:
        for job_id in job_ids:
            for wait in self._waits.get(job_id, ()):
                wait.wake()

    def lost(self) -> None:
        """Note that the connection and its locks are gone."""
        self._registrations.lost()
        self.wake_all()
