"""Leases that a worker may hold without knowing of them.

A claim that is not answered, or wins the race with its cancellation, may have leased
messages all the same.
"""

from __future__ import annotations

from tocsin._database.client import Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin._queue.message import settle_arguments
from tocsin._queue.workers.registration import Registration

from .leases import Leases


class UnknownLeases:
    """The leases of one consumer that it may not know of."""

    def __init__(self, database: Database, registration: Registration, leases: Leases) -> None:
        self.possible = False
        """Whether there may be any."""
        self._database = database
        self._registration = registration
        self._leases = leases

    async def release(self) -> None:
        """Release them; without an answer from the database, they stay possible.

        Cancellation:
            Atomic.
        """
        try:
            # Otherwise the server may execute an outstanding claim after this.
            await self._database.terminate_abandoned()
            worker, known = self._registration, settle_arguments(self._leases.messages())
            await self._database.fetch(
                "select tocsin.release_others(%s, %s, %s, %s)",
                [worker.worker_id, worker.token, *known],
            )
        except TRANSIENT:
            return
        self.possible = False
