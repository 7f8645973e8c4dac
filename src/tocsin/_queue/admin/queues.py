"""Queues: creating, finding, pausing, measuring, purging, deleting."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeAlias, Unpack, overload

import attrs

from tocsin._arguments import check_queue, check_text
from tocsin._database.client import Database, Row
from tocsin._durations import Duration, to_timedelta
from tocsin.errors import QueueNotFound

from .queue_settings import NO_END, QueueSettings, check_settings
from .queue_values import DeleteResult, PurgeResult, Queue, QueueMetrics

_COLUMNS = ", ".join(field.name for field in attrs.fields(Queue))


def _read(row: Row) -> Queue:
    return Queue(*map(_read_value, row))


def _read_value(value: Any) -> Any:
    if isinstance(value, timedelta):
        return math.inf if value >= NO_END else value.total_seconds()
    return tuple(value) if isinstance(value, list) else value


class Queues:
    """The queues of a store: `Store.queues`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Create a queue with these `QueueSettings`.

        Raises:
            QueueAlreadyExists: There is a queue of this name.
            ValueError: A setting is out of its range.

        Cancellation:
            The queue is created or not.
        """
        return await self._set("create_queue", _check_name(name), settings)

    async def ensure(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Create a queue or, when it exists, change the `QueueSettings` that are given.

        Raises:
            ValueError: A setting is out of its range.

        Cancellation:
            Atomic: it has happened or not.
        """
        return await self._set("ensure_queue", _check_name(name), settings)

    async def update(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Change the `QueueSettings` that are given; they apply from then on, in every
        process.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: A setting is out of its range.

        Cancellation:
            Atomic: all are changed, or none.
        """
        return await self._set("update_queue", name, settings)

    async def get(self, name: str) -> Queue:
        """Return a queue.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            Nothing has changed.
        """
        return await self._fetch("find_queue", name)

    async def exists(self, name: str) -> bool:
        """Return whether there is a queue of this name.

        Raises:
            SchemaMissing: Tocsin is not installed.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        try:
            await self.get(name)
        except QueueNotFound:
            return False
        return True

    async def list(self) -> list[Queue]:
        """Return all queues, by name.

        Raises:
            SchemaMissing: Tocsin is not installed.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        return [
            _read(row)
            for row in await self._database.fetch(f"select {_COLUMNS} from tocsin.list_queues()")
        ]

    async def count(self) -> int:
        """Return how many queues there are.

        Raises:
            SchemaMissing: Tocsin is not installed.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        (number,) = await self._database.fetch_one("select count(*) from tocsin.list_queues()")
        return int(number)

    async def pause(self, name: str) -> Queue:
        """Have consumers, in every process, get nothing from the queue until `resume`;
        enqueueing goes on.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            The queue is paused or not.
        """
        return await self._fetch("pause_queue", name)

    async def resume(self, name: str) -> Queue:
        """End a pause.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            The pause has ended or not.
        """
        return await self._fetch("resume_queue", name)

    async def purge(
        self,
        name: str,
        *,
        ready: bool = False,
        delayed: bool = False,
        archived: bool = False,
        dead: bool = False,
        older_than: Duration | None = None,
        dry_run: bool = False,
    ) -> PurgeResult:
        """Remove messages of the kinds that are given. Leased messages and workers
        stay.

        Args:
            older_than: Remove only messages that were enqueued, archived or died at
                least this many seconds ago.
            dry_run: Remove nothing, and return the counts.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: No kind is given.

        Cancellation:
            Atomic: all of it has happened or nothing.
        """
        age = to_timedelta(older_than, "older_than", zero=True)
        row = await self._ask("purge_queue", name, ready, delayed, archived, dead, age, dry_run)
        ready_count, delayed_count, archived_count, dead_count = row
        return PurgeResult(
            ready=ready_count, delayed=delayed_count, archived=archived_count, dead=dead_count
        )

    async def delete(
        self, name: str, *, force: bool = False, dry_run: bool = False
    ) -> DeleteResult:
        """Delete a queue, with its archive, its dead letters and its stopped workers.

        It waits up to ten seconds for transactions that have put messages into the
        queue, or have some of its messages locked.

        Args:
            force: Delete unfinished messages, leased ones too, and all workers; runs on
                the queue end with `Suspended`.
            dry_run: Delete nothing, and return the counts.

        Raises:
            QueueNotEmpty: The queue has other workers or unfinished messages, and
                ``force`` is not given.
            QueueBusy: A transaction that uses the queue has not ended.
            QueueNotFound: The queue does not exist.

        Cancellation:
            Atomic: all of it has happened or nothing.
        """
        return DeleteResult(*await self._ask("delete_queue", name, force, dry_run))

    @overload
    async def metrics(self) -> _AllMetrics: ...
    @overload
    async def metrics(self, name: str) -> QueueMetrics: ...
    async def metrics(self, name: str | None = None) -> _AllMetrics | QueueMetrics:
        """Return what is in a queue and how fast it moves; without a name, of all
        queues, by name.

        It takes a millisecond for a small queue, and up to ten more for each kind of
        messages of which there are more than 100,000: the benchmark ``python -m bench
        --only metrics`` measures it.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            Nothing has changed.
        """
        if name is not None:
            return QueueMetrics(*await self._ask("queue_metrics", name))
        return [
            QueueMetrics(*row)
            for row in await self._database.fetch("select * from tocsin.queue_metrics()")
        ]

    async def grant(self, name: str, role: str) -> None:
        """Let a database role, and those that inherit from it, enqueue to the queue;
        idempotent.

        The role, or one that it is a member of, must be among those that
        `Store.install` let in as producers or consumers.

        Raises:
            QueueNotFound: The queue does not exist.
            RoleNotFound: There is no such role.
            PermissionDenied: This role is no administrator of Tocsin.

        Cancellation:
            It is granted or not.
        """
        await self._database.fetch(
            "select tocsin.grant_queue(%s, %s)", [check_queue(name), check_text(role, "role")]
        )

    async def revoke(self, name: str, role: str) -> None:
        """Take back what `grant` gave, for every statement from now on; idempotent.

        Raises:
            QueueNotFound: The queue does not exist.
            RoleNotFound: There is no such role.
            PermissionDenied: This role is no administrator of Tocsin.

        Cancellation:
            It is taken back or not.
        """
        await self._database.fetch(
            "select tocsin.revoke_queue(%s, %s)", [check_queue(name), check_text(role, "role")]
        )

    async def _set(self, function: str, name: str, settings: QueueSettings) -> Queue:
        checked = check_settings(settings)
        arguments = "".join(f", {setting} => %s" for setting in checked)
        return await self._fetch(function, name, arguments, checked.values())

    async def _fetch(
        self, function: str, name: str, arguments: str = "", values: Iterable[object] = ()
    ) -> Queue:
        statement = f"select {_COLUMNS} from tocsin.{function}(%s{arguments})"
        return _read(await self._database.fetch_one(statement, [check_queue(name), *values]))

    async def _ask(self, function: str, name: str, *arguments: object) -> Row:
        placeholders = ", ".join(["%s"] * (1 + len(arguments)))
        return await self._database.fetch_one(
            f"select * from tocsin.{function}({placeholders})", [check_queue(name), *arguments]
        )


_AllMetrics: TypeAlias = list[QueueMetrics]
"""`Queues.list` hides the type in the class."""


def _check_name(name: str) -> str:
    if not 0 < len(check_text(name, "name").encode()) <= 255:
        raise ValueError("name must be 1 to 255 bytes of text")
    return name
