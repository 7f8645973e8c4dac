"""Queues: creating, finding, pausing."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
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
    max_string: int
    """Most characters of a string in a payload; 0: any number."""
    max_depth: int
    """Most levels of arrays and objects in a payload; 0: any number."""
    required_keys: tuple[str, ...]
    """Keys that a payload must have, which is an object then."""
    forbidden_keys: tuple[str, ...]
    """Keys that no object in a payload may have."""
    retention: float
    """How many seconds what is archived is kept; 0: not at all; infinity: for ever."""
    dead_letter_retention: float
    """How many seconds dead letters are kept; infinity: for ever."""
    notify: Notify
    """When its channel is notified of messages."""
    paused_at: datetime | None
    """Since when consumers get nothing from it; None while they do."""
    created_at: datetime
    """When it was created, by the server's clock."""
    channel: str
    """The channel of its notifications, for those who LISTEN by hand (see `notify`)."""


_FOR_EVER = timedelta(days=365_000)
"""A retention of this length or longer stands for ever."""


def _read(row: Row) -> Queue:
    return Queue(*map(_read_value, row))


def _read_value(value: Any) -> Any:
    if isinstance(value, timedelta):
        return math.inf if value >= _FOR_EVER else value.total_seconds()
    return tuple(value) if isinstance(value, list) else value


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
    max_string: int | None
    """Most characters of a string in a payload (0: any number)."""
    max_depth: int | None
    """Most levels of arrays and objects in a payload (0: any number)."""
    required_keys: Collection[str] | None
    """Keys that a payload must have, which must be an object then (none)."""
    forbidden_keys: Collection[str] | None
    """Keys that no object in a payload may have (none)."""
    retention: Duration | None
    """How many seconds what is archived is kept (30 days); 0: not at all; ``math.inf``: for ever. A change counts for what is archived from
    then on."""
    dead_letter_retention: Duration | None
    """How many seconds dead letters are kept (``math.inf``: for ever)."""
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
        return await self._set("create_queue", name, settings)

    async def ensure(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Create a queue or, when it exists, change the `QueueSettings` that are given. Raises `ValueError`. Cancelled, done or not."""
        return await self._set("ensure_queue", name, settings)

    async def update(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Change the `QueueSettings` that are given; they count from then on, in every process.

        Raises `QueueNotFound`, `ValueError`. Cancelled, they are changed or not.
        """
        return await self._set("update_queue", name, settings)

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

    async def grant(self, name: str, role: str) -> None:
        """Let a database role, and those that inherit from it, enqueue to the queue; doing it again changes nothing.

        The role, or one that it is a member of, must be among those that `Store.install` let in as producers or consumers. Raises
        `QueueNotFound`, `PermissionDenied`, and `ValueError` when there is no such role. Cancelled, it is granted or not.
        """
        await self._database.fetch("select tocsin.grant_queue(%s, %s)", [name, role])

    async def revoke(self, name: str, role: str) -> None:
        """Take back what `grant` gave, for every statement from now on; doing it again changes nothing.

        Raises what `grant` raises. Cancelled, it is taken back or not.
        """
        await self._database.fetch("select tocsin.revoke_queue(%s, %s)", [name, role])

    async def _set(self, function: str, name: str, settings: QueueSettings) -> Queue:
        if not name or len(name.encode()) > 255 or "\0" in name:
            raise ValueError("name must be 1 to 255 bytes of text")
        checked = {setting: _CHECKS[setting](value, setting) for setting, value in _given(settings)}
        arguments = "".join(f", {setting} => %s" for setting in checked)
        return await self._fetch(f"select * from tocsin.{function}(%s{arguments})", [name, *checked.values()])

    async def _fetch(self, statement: str, parameters: Sequence[object]) -> Queue:
        return _read(await self._database.fetch_one(statement, parameters))


def _given(settings: QueueSettings) -> Iterator[tuple[str, Any]]:
    for setting, value in settings.items():
        if setting not in _CHECKS:
            raise TypeError(f"{setting!r} is no setting of a queue; there are {', '.join(_CHECKS)}")
        if value is not None:
            yield setting, value


def _limit(value: int, name: str) -> int:
    return value if value == 0 and type(value) is int else check_count(value, name)


def _retention(value: Duration, name: str) -> timedelta:
    return _FOR_EVER if value == math.inf else to_timedelta(value, name, zero=name == "retention")


def _delay(value: Duration, name: str) -> timedelta:
    return to_timedelta(value, name, zero=True)


def _keys(value: Collection[str], name: str) -> list[str]:
    if isinstance(value, str) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a list of keys, not {value!r}")
    return sorted(set(value))


def _factor(value: float, name: str) -> float:
    if not value >= 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _share(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value}")
    return value


def _notify(value: Notify, name: str) -> Notify:
    if value not in get_args(Notify):
        raise ValueError(f"{name} must be one of {', '.join(get_args(Notify))}, not {value!r}")
    return value


_CHECKS: dict[str, Callable[[Any, str], object]] = {
    "vt": to_timedelta,
    "max_deliveries": check_count,
    "retry_base": _delay,
    "retry_factor": _factor,
    "retry_max": _delay,
    "retry_jitter": _share,
    "max_payload": check_count,
    "max_string": _limit,
    "max_depth": _limit,
    "required_keys": _keys,
    "forbidden_keys": _keys,
    "retention": _retention,
    "dead_letter_retention": _retention,
    "notify": _notify,
}
"""The settings of a queue, and what checks a value and makes it the database's."""
