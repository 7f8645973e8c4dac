"""What the LISTEN connection holds for the waiting tasks of this process."""

from __future__ import annotations

import attrs

from tocsin._database.client import Connection

from .outcome_waits import OutcomeWaits
from .waiter_locks import WaiterLocks


@attrs.frozen(eq=False)
class Waits:
    """The waits for messages and for outcomes of jobs."""

    locks: WaiterLocks
    """The locks of queues on which consumers wait."""
    outcomes: OutcomeWaits
    """The tasks that wait for outcomes of jobs."""

    @property
    def recheck_at(self) -> float:
        """When to call `update` again at the latest (`trio.current_time`)."""
        return min(self.locks.recheck.at, self.outcomes.recheck.at)

    async def update(self, connection: Connection) -> None:
        """Bring the locks and registrations up to date.

        Cancellation:
            The connection may hold more locks than this object knows of, so it is to be
            closed.
        """
        await self.locks.update(connection)
        await self.outcomes.update(connection)

    def lost(self) -> None:
        """Note that the connection and its locks are gone."""
        self.locks.lost()
        self.outcomes.lost()
