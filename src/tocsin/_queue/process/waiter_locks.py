"""The locks that tell the database on which queues this process's consumers wait.

A *waiter lock* is an advisory lock of the LISTEN connection: while it is held,
producers ring for its queue. ``sql/functions/queue/ring.sql`` has the protocol, and
``bell.py`` says when a queue needs its lock.
"""

from __future__ import annotations

from tocsin._database.client import Connection, Database

from .bell import Bell
from .recheck import Recheck


class WaiterLocks:
    """The waiter locks that the LISTEN connection holds."""

    def __init__(self, database: Database, bell: Bell) -> None:
        self.recheck: Recheck = Recheck()
        """When to ask again about the unconfirmed locks."""
        self._database = database
        self._bell = bell
        self._held: set[int] = set()
        # Locks that are held while a transaction that has not seen them may add
        # messages.
        self._unconfirmed: set[int] = set()

    def queues_to_report(self) -> list[int]:
        """Return the queues whose next due time the heartbeat asks for.

        Those include queues whose lock is held though no consumer waits there at
        present. A consumer that begins to wait relies on a claim that may not have seen
        what the heartbeat itself requeues, and no session rings for itself.
        """
        return list(self._held.union(self._bell.queues_waiting()))

    async def update(self, connection: Connection) -> None:
        """Take missing locks, release idle ones, and confirm those that are due.

        Cancellation:
            The connection may hold more locks than this object knows of, so it is to be
            closed.
        """
        if idle := self._bell.release_idle_locks():
            await self._database.fetch("select tocsin.end_waiting(%s)", [idle], on=connection)
            self._held.difference_update(idle)
        if missing := self._bell.queues_without_lock() - self._held:
            self._held |= missing
            self._unconfirmed |= missing
            self.recheck.begin()
            await self._confirm("select tocsin.begin_waiting(%s)", missing, connection)
        elif self._unconfirmed and self.recheck.due:
            await self._confirm(
                "select tocsin.unrung_transactions(%s)", set(self._unconfirmed), connection
            )

    async def _confirm(self, statement: str, queue_ids: set[int], connection: Connection) -> None:
        (unrung,) = await self._database.fetch_one(statement, [list(queue_ids)], on=connection)
        for queue_id in queue_ids:
            if queue_id in unrung:
                # Another such transaction may have ended since the last check.
                self._bell.ring(queue_id)
            else:
                self._unconfirmed.discard(queue_id)
                self._bell.lock_confirmed(queue_id)
        self.recheck.asked(again=bool(self._unconfirmed))

    def lost(self) -> None:
        """Record that the connection and its locks are gone."""
        self._bell.locks_lost()
        self._held.clear()
        self._unconfirmed.clear()
        self.recheck.stop()
