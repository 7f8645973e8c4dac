"""What the database knows of this process's waits for outcomes, over one connection.

``sql/functions/jobs/outcomes.sql`` has the protocol.
"""

from __future__ import annotations

from collections.abc import Iterable

from tocsin._database.client import Connection, Database

from .membership import Membership
from .recheck import Recheck

_AWAIT = "select tocsin.await_jobs($1, $2, $3)"
_BEGIN = "select job_id, queue_id, again from tocsin.begin_awaiting_jobs($1, $2)"
_LEAVE = "select tocsin.leave_jobs(%s::bigint[], %s)"
_LEAVE_AND_UNLOCK = _LEAVE + ", tocsin.end_awaiting(%s)"


class OutcomeRegistrations:
    """The jobs whose outcomes will be announced to this process, or may be."""

    def __init__(self, database: Database, membership: Membership) -> None:
        self.jobs: set[int] = set()
        """The jobs with a row in ``tocsin.awaited``."""
        self.recheck: Recheck = Recheck()
        """When to ask again whether waits are safe."""
        self._database = database
        self._membership = membership
        # The queues of jobs that an open transaction may have finished unannounced.
        self._unsafe: dict[int, int] = {}
        # Queues with the lock `awaited`.
        self._locked: set[int] = set()
        # Whether rows of a connection that was lost may be left.
        self._rows_left = False

    def is_safe(self, job_id: int) -> bool:
        """Return whether the outcome of a job will be announced."""
        return job_id in self.jobs and job_id not in self._unsafe

    async def begin(self, job_ids: set[int], connection: Connection) -> None:
        """Register waits for jobs. Their tasks look afterwards.

        Cancellation:
            The connection is to be closed.
        """
        ids = _write_array(job_ids)
        alone = "t" if self._rows_left else "f"
        rows = await self._database.run_pipelined_on(
            connection,
            [
                (_AWAIT, [ids, str(self._membership.process.id), alone]),
                (_BEGIN, [ids, _write_array(self._locked)]),
            ],
        )
        self._rows_left = False
        self.jobs |= job_ids
        for job_id, queue_id, again in rows.load(0, len(rows)):
            self._locked.add(queue_id)
            if again:
                self._unsafe[job_id] = queue_id
        if job_ids & self._unsafe.keys():
            self.recheck.begin()
            self.recheck.asked(again=True)

    async def confirm(self, connection: Connection) -> Iterable[int]:
        """Ask which waits are safe now; return the jobs that were not.

        Cancellation:
            The connection is to be closed.
        """
        asked = dict(self._unsafe)
        (unannounced,) = await self._database.fetch_one(
            "select tocsin.unannounced_outcomes(%s)", [list(set(asked.values()))], on=connection
        )
        for job_id, queue_id in asked.items():
            if queue_id not in unannounced:
                del self._unsafe[job_id]
        self.recheck.asked(again=bool(self._unsafe))
        return asked

    async def end(self, job_ids: set[int], connection: Connection) -> None:
        """End waits for jobs, and give up the locks with the last one.

        Cancellation:
            The connection is to be closed.
        """
        locked = self._locked if self.jobs == job_ids else set()
        if not (job_ids or locked):
            return
        parameters: list[object] = [list(job_ids), self._membership.process.id]
        if locked:
            parameters.append(list(locked))
        await self._database.fetch(
            _LEAVE_AND_UNLOCK if locked else _LEAVE, parameters, on=connection
        )
        self.jobs -= job_ids
        self._locked -= locked
        for job_id in job_ids:
            self._unsafe.pop(job_id, None)
        if not self._unsafe:
            self.recheck.stop()

    def lost(self) -> None:
        """Note that the connection and its locks are gone."""
        self._rows_left = self._rows_left or bool(self.jobs)
        self.jobs.clear()
        self._locked.clear()
        self._unsafe.clear()
        self.recheck.stop()


def _write_array(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"
