"""A message as a consumer sees it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import attrs

from tocsin._database.caller_connection import AnyConnection
from tocsin._durations import Duration

from .payload import decode

Row: TypeAlias = tuple[
    int,
    int,
    int,
    int,
    datetime,
    datetime,
    datetime,
    datetime,
    int | None,
    str | None,
    str | None,
    int,
    str | None,
    str,
    None,
]
"""A message as ``tocsin.claim`` returns it."""


def settle_arguments(messages: Iterable[Message]) -> tuple[str, str]:
    """Return the ids and the leases of messages as arrays in PostgreSQL's notation,
    which psycopg would take ten times as long to write."""
    rows = [m._row for m in messages]
    return (
        "{" + ",".join([str(row[0]) for row in rows]) + "}",
        "{" + ",".join([str(row[1]) for row in rows]) + "}",
    )


class Settler(Protocol):
    """What settles a message: the consumer that claimed it."""

    async def archive(
        self, message: Message, *, connection: AnyConnection | None = None
    ) -> None: ...
    async def delete(
        self, message: Message, *, connection: AnyConnection | None = None
    ) -> None: ...
    async def release(
        self, message: Message, *, delay: Duration = 0, connection: AnyConnection | None = None
    ) -> None: ...
    async def extend(self, message: Message, seconds: Duration) -> None: ...


@attrs.frozen
class Source:
    """Where the messages of one consumer come from."""

    queue: str
    queue_id: int
    worker_id: int
    settler: Settler = attrs.field(eq=False)


@attrs.frozen(repr=False, slots=False)
class Message:
    """One delivery of a message. What it says is how things stood when it was claimed.

    It keeps the row that the claim brought, and reads from it what it is asked for:
    most handlers ask for the payload and nothing else.
    """

    _row: Row
    _source: Source

    @property
    def id(self) -> int:
        """Unique among all queues of the schema; grows with the order of enqueueing."""
        return self._row[0]

    @property
    def lease_token(self) -> int:
        """Token of this delivery. Later deliveries have larger ones, so it can fence
        writes to other systems too."""
        return self._row[1]

    @property
    def queue(self) -> str:
        """Name of its queue."""
        return self._source.queue

    @property
    def queue_id(self) -> int:
        """Id of its queue."""
        return self._source.queue_id

    @property
    def priority(self) -> int:
        """Smaller numbers are delivered first."""
        return self._row[2]

    @property
    def read_ct(self) -> int:
        """How many deliveries there have been, this one included."""
        return self._row[3]

    @property
    def enqueued_at(self) -> datetime:
        """When it was enqueued, by the server's clock."""
        return self._row[5]

    @property
    def vt(self) -> datetime:
        """When this delivery's lease ends unless it is extended (visibility timeout),
        by the server's clock."""
        return self._row[6]

    @property
    def dequeued_at(self) -> datetime:
        """When this delivery was claimed, by the server's clock."""
        return self._row[7]

    @property
    def producer_worker_id(self) -> int | None:
        """Id of the producer that enqueued it; None when it was enqueued by SQL or
        `Store.produce`."""
        return self._row[8]

    @property
    def consumer_worker_id(self) -> int:
        """Id of the consumer that claimed it."""
        return self._source.worker_id

    @property
    def last_error(self) -> str | None:
        """What the last failed delivery said."""
        return self._row[10]

    @property
    def max_deliveries(self) -> int:
        """The message's own maximum of deliveries, or its queue's. A delivery whose
        `read_ct` is as large is the last one."""
        return self._row[11]

    @property
    def key(self) -> str | None:
        """Its unique key; None without."""
        return self._row[12]

    @cached_property
    def payload(self) -> Any:
        """The payload as it was enqueued; decoded when first asked for, which raises
        `PayloadUnreadable` for what Python cannot hold."""
        return decode(self._row[13])

    @cached_property
    def headers(self) -> Any:
        """The headers as they were enqueued; None without. Asking for them raises what
        `payload` does."""
        text = self._row[9]
        return None if text is None else decode(text)

    def __repr__(self) -> str:
        return f"<Message {self.id} of {self.queue!r}, delivery {self.read_ct}>"

    async def archive(self, *, connection: AnyConnection | None = None) -> None:
        """Finish the message and keep it in the archive; with a ``connection``, in the
        caller's transaction.

        On a connection (of `Store.transaction`, or a blocking ``psycopg.Connection``,
        which is used in a thread) it is archived when the caller's transaction commits,
        together with the caller's own rows. Until then the lease is kept as before.
        After a rollback the message is still this consumer's: settle it in another way,
        or let the handler raise. A handler that returns has failed then.

        Raises `LeaseLost` when the lease is gone; on a connection also what that
        raises, and `TypeError` for one that cannot be used. Cancelled, it has happened
        or it has not.
        """
        await self._source.settler.archive(self, connection=connection)

    async def delete(self, *, connection: AnyConnection | None = None) -> None:
        """Finish the message and keep nothing; with a ``connection``, in the caller's
        transaction, as `archive` does.

        Raises `LeaseLost` when the lease is gone. Cancelled, it has happened or it has
        not.
        """
        await self._source.settler.delete(self, connection=connection)

    async def release(
        self, *, delay: Duration = 0, connection: AnyConnection | None = None
    ) -> None:
        """Give the message back to its queue, for another delivery after ``delay``
        seconds; after the last one it becomes a dead letter.

        With a ``connection``, in the caller's transaction, as `archive` does. Raises
        `LeaseLost` when the lease is gone. Cancelled, it has happened or it has not.
        """
        await self._source.settler.release(self, delay=delay, connection=connection)

    async def extend(self, seconds: Duration) -> None:
        """Make the lease end this many seconds from now, by the server's clock. `vt`
        keeps saying what it said.

        Raises `LeaseLost` when the lease is gone. Cancelled, it has happened or it has
        not.
        """
        await self._source.settler.extend(self, seconds)
