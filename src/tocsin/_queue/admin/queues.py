"""Queues: creating, finding, pausing, measuring, purging, deleting."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypeAlias, Unpack, overload

import attrs

from tocsin._arguments import check_queue, check_text
from tocsin._database.client import Database, Row
from tocsin._durations import Duration, to_timedelta
from tocsin.errors import QueueNotFound

from .queue_settings import NO_END, Notify, QueueSettings, check_settings


@attrs.frozen
class Queue:
    """A queue and its settings."""

    id: int
    """Its id."""
    name: str
    """Its name."""
    vt: float
    """Visibility timeout in seconds: how long a lease lasts unless it is extended."""
    max_deliveries: int
    """After this many deliveries, a message that fails again becomes a dead letter."""
    retry_base: float
    """Seconds of delay after the first failure."""
    retry_factor: float
    """By how much the delay grows with each further failure."""
    retry_max: float
    """The longest delay in seconds."""
    retry_jitter: float
    """The share, 0 to 1, by which a delay may be longer or shorter by chance."""
    max_payload: int
    """The largest payload in bytes of JSON text; headers may be as large again."""
    max_string: int
    """Most characters of a string in a payload; 0: any number."""
    max_depth: int
    """Most levels of arrays and objects in a payload; 0: any number."""
    required_keys: tuple[str, ...]
    """Keys that a payload must have, which is an object then."""
    forbidden_keys: tuple[str, ...]
    """Keys that no object in a payload may have."""
    retention: float
    """Seconds for which archived messages are kept (0: not at all; infinity: no limit).
    """
    dead_letter_retention: float
    """Seconds for which dead letters are kept; infinity: no limit."""
    notify: Notify
    """When its channel is notified of messages."""
    paused_at: datetime | None
    """Since when consumers get nothing from it; None while they do."""
    created_at: datetime
    """When it was created, by the server's clock."""
    channel: str
    """The channel of its notifications, for programs that LISTEN (see `notify`)."""


_COLUMNS = ", ".join(field.name for field in attrs.fields(Queue))


@attrs.frozen
class QueueMetrics:
    """What is in a queue, and how fast it moves."""

    queue: str
    """Name of the queue."""
    paused: bool
    """Whether consumers get nothing from it."""
    ready: int
    """Messages that can be claimed."""
    delayed: int
    """Messages that are due later."""
    leased: int
    """Messages that are being handled."""
    dead: int
    """Dead letters."""
    archived: int
    """Messages in the archive."""
    oldest_ready_age: float | None
    """For how many seconds the oldest ready message has been ready; None when none is.
    """
    enqueue_rate: float
    """Messages enqueued per second in the last minute. Of more than 2,000 it is a
    sample, the newest and the time since the first of them: for a steady stream that is
    its rate, after a larger batch at one moment it is too low. What was deleted, or is
    not archived, does not count."""
    settle_rate: float
    """Messages archived per second, over the last minute, also where the queue's
    retention keeps none of them."""
    consumers: int
    """Consumers that take messages: ready or polling."""
    exact: bool
    """Whether the counts are exact; beyond 100,000 of a kind the planner's estimate
    takes their place. `archived` is always exact."""


@attrs.frozen
class PurgeResult:
    """How many `Queues.purge` has removed, or would."""

    ready: int
    """Messages that could be claimed."""
    delayed: int
    """Messages that were due later."""
    archived: int
    """Messages in the archive."""
    dead: int
    """Dead letters."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.ready + self.delayed + self.archived + self.dead


@attrs.frozen
class DeleteResult:
    """What has gone with a queue, or would."""

    workers: int
    """Workers, stopped ones too."""
    messages: int
    """Unfinished messages: ready, delayed or leased."""
    archived: int
    """Messages in the archive."""
    dead_letters: int
    """Dead letters."""


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

        Raises `QueueAlreadyExists`, `ValueError`. Cancelled, it is created or not.
        """
        return await self._set("create_queue", _check_name(name), settings)

    async def ensure(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Create a queue or, when it exists, change the `QueueSettings` that are given.
        Raises `ValueError`. Cancelled, done or not."""
        return await self._set("ensure_queue", _check_name(name), settings)

    async def update(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Change the `QueueSettings` that are given; they count from then on, in every
        process.

        Raises `QueueNotFound`, `ValueError`. Cancelled, they are changed or not.
        """
        return await self._set("update_queue", name, settings)

    async def get(self, name: str) -> Queue:
        """Return a queue. Raises `QueueNotFound`. Cancellation leaves nothing behind."""
        return await self._fetch("find_queue", name)

    async def exists(self, name: str) -> bool:
        """Return whether there is a queue of this name. Raises `SchemaMissing`,
        `ConnectionLost`. Cancellation leaves nothing behind."""
        try:
            await self.get(name)
        except QueueNotFound:
            return False
        return True

    async def list(self) -> list[Queue]:
        """Return all queues, by name. Raises `SchemaMissing`, `ConnectionLost`.
        Cancellation leaves nothing behind."""
        return [
            _read(row)
            for row in await self._database.fetch(f"select {_COLUMNS} from tocsin.list_queues()")
        ]

    async def count(self) -> int:
        """Return how many queues there are. Raises `SchemaMissing`, `ConnectionLost`.
        Cancellation leaves nothing behind."""
        (number,) = await self._database.fetch_one("select count(*) from tocsin.list_queues()")
        return int(number)

    async def pause(self, name: str) -> Queue:
        """Have consumers, in every process, get nothing from the queue until `resume`;
        enqueueing goes on.

        Raises `QueueNotFound`. Cancelled, it is paused or not.
        """
        return await self._fetch("pause_queue", name)

    async def resume(self, name: str) -> Queue:
        """End a pause. Raises `QueueNotFound`. Cancelled, it is resumed or not."""
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
        """Remove messages of the kinds that are given.

        ``older_than``: only messages that were enqueued, archived or died at least this
        many seconds ago. Leased messages and workers stay. With ``dry_run``
        nothing is removed. Raises `QueueNotFound`, and `ValueError` when nothing is
        asked for. Cancelled, all has happened or nothing.
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

        Refused with `QueueNotEmpty` while it has other workers or unfinished messages,
        unless by ``force``: then these go too, leased messages as well, and runs on the
        queue end with `Suspended`. It waits for transactions that have put messages
        into the queue, or have some of its messages locked, for ten seconds; then it is
        refused with `QueueBusy`. With ``dry_run`` nothing is removed. Raises
        `QueueNotFound`. Cancelled, all has happened or nothing.
        """
        return DeleteResult(*await self._ask("delete_queue", name, force, dry_run))

    @overload
    async def metrics(self) -> _AllMetrics: ...
    @overload
    async def metrics(self, name: str) -> QueueMetrics: ...
    async def metrics(self, name: str | None = None) -> _AllMetrics | QueueMetrics:
        """Return what is in a queue and how fast it moves; without a name, of all
        queues, by name.

        Takes a millisecond for a small queue, and up to ten more for each kind of
        messages of which there are more than 100,000, however many: the benchmark
        ``python -m bench --only metrics`` measures it. Raises `QueueNotFound`.
        Cancellation leaves nothing behind.
        """
        if name is not None:
            return QueueMetrics(*await self._ask("queue_metrics", name))
        return [
            QueueMetrics(*row)
            for row in await self._database.fetch("select * from tocsin.queue_metrics()")
        ]

    async def grant(self, name: str, role: str) -> None:
        """Let a database role, and those that inherit from it, enqueue to the queue;
        doing it again changes nothing.

        The role, or one that it is a member of, must be among those that
        `Store.install` let in as producers or consumers. Raises `QueueNotFound`,
        `RoleNotFound`, `PermissionDenied`. Cancelled, it is granted or not.
        """
        await self._database.fetch(
            "select tocsin.grant_queue(%s, %s)", [check_queue(name), check_text(role, "role")]
        )

    async def revoke(self, name: str, role: str) -> None:
        """Take back what `grant` gave, for every statement from now on; doing it again
        changes nothing.

        Raises what `grant` raises. Cancelled, it is taken back or not.
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
