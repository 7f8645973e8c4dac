"""Queues: creating, finding, pausing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict, Unpack, get_args

import attrs

from .database import Database, Row
from .durations import Duration, check_count, to_timedelta
from .errors import QueueNotFound

Notify = Literal["asleep", "always"]
"""When a queue's channel is notified of messages: only while a consumer sleeps (``asleep``), which lets many producers commit at the same
time, or with each insert (``always``), for programs that LISTEN by hand."""


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
    """The largest payload in bytes of JSON text."""
    notify: Notify
    """When its channel is notified of messages."""
    paused_at: datetime | None
    """Since when consumers get nothing from it; None while they do."""
    created_at: datetime
    """When it was created, by the server's clock."""
    channel: str
    """The channel of its notifications, for those who LISTEN by hand (see `notify`)."""


def _read(row: Row) -> Queue:
    values: list[Any] = [value.total_seconds() if isinstance(value, timedelta) else value for value in row]
    return Queue(*values)


class QueueSettings(TypedDict, total=False):
    """The settings of a queue that can be given; those that are not have their defaults."""

    vt: Duration | None
    """Visibility timeout in seconds (30)."""
    max_deliveries: int | None
    """After so many deliveries, a message that fails again becomes a dead letter (5)."""
    retry_base: Duration | None
    """Seconds of delay after the first failure (1)."""
    retry_factor: float | None
    """By how much the delay grows with each further failure (2)."""
    retry_max: Duration | None
    """The longest delay in seconds (3600)."""
    retry_jitter: float | None
    """The share, 0 to 1, by which a delay may be longer or shorter by chance (0.2)."""
    max_payload: int | None
    """The largest payload in bytes of JSON text (1 MiB)."""
    notify: Notify | None
    """When its channel is notified of messages ("asleep")."""


class Queues:
    """The queues of a store: `Store.queues`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Create a queue with these `QueueSettings`.

        Raises `QueueAlreadyExists`, `ValueError`. Cancelled, it is created or not.
        """
        return await self._fetch("select * from tocsin.create_queue(%s, %s, %s, %s, %s, %s, %s, %s, %s)", _parameters(name, **settings))

    async def ensure(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Create a queue or, when it exists, change the `QueueSettings` that are given. Raises `ValueError`. Cancelled, done or not."""
        return await self._fetch("select * from tocsin.ensure_queue(%s, %s, %s, %s, %s, %s, %s, %s, %s)", _parameters(name, **settings))

    async def get(self, name: str) -> Queue:
        """Return a queue. Raises `QueueNotFound`. Cancellation leaves nothing behind."""
        return await self._fetch("select * from tocsin.find_queue(%s)", [name])

    async def exists(self, name: str) -> bool:
        """Return whether there is a queue of this name. Cancellation leaves nothing behind."""
        try:
            await self.get(name)
        except QueueNotFound:
            return False
        return True

    async def list(self) -> list[Queue]:
        """Return all queues, by name. Cancellation leaves nothing behind."""
        return [_read(row) for row in await self._database.fetch("select * from tocsin.list_queues()")]

    async def count(self) -> int:
        """Return how many queues there are. Cancellation leaves nothing behind."""
        (number,) = await self._database.fetch_one("select count(*) from tocsin.list_queues()")
        return int(number)

    async def pause(self, name: str) -> Queue:
        """Have consumers, in every process, get nothing from the queue until `resume`; enqueueing goes on.

        Raises `QueueNotFound`. Cancelled, it is paused or not.
        """
        return await self._fetch("select * from tocsin.pause_queue(%s)", [name])

    async def resume(self, name: str) -> Queue:
        """End a pause. Raises `QueueNotFound`. Cancelled, it is resumed or not."""
        return await self._fetch("select * from tocsin.resume_queue(%s)", [name])

    async def _fetch(self, statement: str, parameters: Sequence[object]) -> Queue:
        return _read(await self._database.fetch_one(statement, parameters))


def _parameters(
    name: str,
    *,
    vt: Duration | None = None,
    max_deliveries: int | None = None,
    retry_base: Duration | None = None,
    retry_factor: float | None = None,
    retry_max: Duration | None = None,
    retry_jitter: float | None = None,
    max_payload: int | None = None,
    notify: Notify | None = None,
) -> Sequence[object]:
    if not name or len(name.encode()) > 255 or "\0" in name:
        raise ValueError("name must be 1 to 255 bytes of text")
    if retry_factor is not None and not retry_factor >= 1:
        raise ValueError(f"retry_factor must be at least 1, not {retry_factor}")
    if retry_jitter is not None and not 0 <= retry_jitter <= 1:
        raise ValueError(f"retry_jitter must be between 0 and 1, not {retry_jitter}")
    if notify not in (None, *get_args(Notify)):
        raise ValueError(f"notify must be one of {', '.join(get_args(Notify))}, not {notify!r}")
    return [
        name,
        to_timedelta(vt, "vt"),
        None if max_deliveries is None else check_count(max_deliveries, "max_deliveries"),
        to_timedelta(retry_base, "retry_base", zero=True),
        retry_factor,
        to_timedelta(retry_max, "retry_max", zero=True),
        retry_jitter,
        None if max_payload is None else check_count(max_payload, "max_payload"),
        notify,
    ]
