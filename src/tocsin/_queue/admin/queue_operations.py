"""Queues at work: pausing, measuring and purging them, and letting roles use them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import overload

from tocsin._arguments import check_queue, check_text
from tocsin._database.client import Database, Row
from tocsin._durations import Duration, to_timedelta

from .queue_values import COLUMNS, PurgeResult, Queue, QueueMetrics, read_queue


class QueueOperations:
    """The operation of queues that exist."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pause(self, name: str) -> Queue:
        """Have consumers get nothing from the queue until `resume`, in every process.

        Enqueueing goes on.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            Atomic.
        """
        return await self._fetch("pause_queue", name)

    async def resume(self, name: str) -> Queue:
        """End a pause.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            Atomic.
        """
        return await self._fetch("resume_queue", name)

    async def purge(
        self,
        name: str,
        *,
        ready: bool = False,
        delayed: bool = False,
        held: bool = False,
        archived: bool = False,
        dead: bool = False,
        older_than: Duration | None = None,
        dry_run: bool = False,
    ) -> PurgeResult:
        """Remove messages of the kinds that are given.

        Leased messages and workers stay.

        Args:
            older_than: Remove only messages that were enqueued, archived or died at
                least this many seconds ago.
            dry_run: Remove nothing, and return the counts.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: No kind is given.

        Cancellation:
            Atomic.
        """
        age = to_timedelta(older_than, "older_than", zero=True)
        kinds = (ready, delayed, held, archived, dead)
        return PurgeResult(*await self._call("purge_queue", name, *kinds, age, dry_run))

    @overload
    async def metrics(self) -> list[QueueMetrics]: ...
    @overload
    async def metrics(self, name: str) -> QueueMetrics: ...
    async def metrics(self, name: str | None = None) -> list[QueueMetrics] | QueueMetrics:
        """Return what is in a queue and how fast it moves.

        Without a name, it returns that of all queues, by name. It takes a millisecond
        for a small queue, and up to ten more for each kind of messages of which there
        are more than 100,000: the benchmark ``python -m bench --only metrics`` measures
        it.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            Changes nothing.
        """
        if name is not None:
            return QueueMetrics(*await self._call("queue_metrics", name))
        return [
            QueueMetrics(*row)
            for row in await self._database.fetch("select * from tocsin.queue_metrics()")
        ]

    async def grant(self, name: str, role: str) -> None:
        """Let a database role, and those that inherit from it, enqueue to the queue.

        This is idempotent. The role, or one that it is a member of, must be among those
        that `Store.install` let in as producers or consumers.

        Raises:
            QueueNotFound: The queue does not exist.
            RoleNotFound: There is no such role.
            PermissionDenied: This role is not an administrator of Tocsin.

        Cancellation:
            Atomic.
        """
        await self._call("grant_queue", name, check_text(role, "role"))

    async def revoke(self, name: str, role: str) -> None:
        """Revoke what `grant` gave; it applies to every later statement.

        This is idempotent.

        Raises:
            QueueNotFound: The queue does not exist.
            RoleNotFound: There is no such role.
            PermissionDenied: This role is not an administrator of Tocsin.

        Cancellation:
            Atomic.
        """
        await self._call("revoke_queue", name, check_text(role, "role"))

    async def _fetch(
        self, function: str, name: str, arguments: str = "", values: Iterable[object] = ()
    ) -> Queue:
        statement = f"select {COLUMNS} from tocsin.{function}(%s{arguments})"
        return read_queue(await self._database.fetch_one(statement, [check_queue(name), *values]))

    async def _call(self, function: str, name: str, *arguments: object) -> Row:
        placeholders = ", ".join(["%s"] * (1 + len(arguments)))
        return await self._database.fetch_one(
            f"select * from tocsin.{function}({placeholders})", [check_queue(name), *arguments]
        )
