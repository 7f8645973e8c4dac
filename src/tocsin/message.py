"""A message as a consumer sees it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import attrs

from .durations import Duration
from .payload import decode


class Settler(Protocol):
    """What settles a message: the consumer that claimed it."""

    async def archive(self, message: Message) -> None: ...
    async def delete(self, message: Message) -> None: ...
    async def release(self, message: Message, *, delay: Duration = 0) -> None: ...
    async def extend(self, message: Message, seconds: Duration) -> None: ...


@attrs.frozen
class Message:
    """One delivery of a message. What it says is how things stood when it was claimed."""

    id: int
    """Unique among all queues of the schema; grows with the order of enqueueing."""
    queue: str
    """Name of its queue."""
    queue_id: int
    """Id of its queue."""
    priority: int
    """Smaller numbers are delivered first."""
    enqueued_at: datetime
    """When it was enqueued, by the server's clock."""
    vt: datetime
    """When this delivery's lease ends unless it is extended (visibility timeout), by the server's clock."""
    read_ct: int
    """How many deliveries there have been, this one included."""
    dequeued_at: datetime
    """When this delivery was claimed, by the server's clock."""
    lease: int
    """Token of this delivery. Later deliveries have larger ones, so it can fence writes to other systems too."""
    producer_worker_id: int | None
    """Id of the producer that enqueued it; None when it was enqueued by SQL or `Store.produce`."""
    consumer_worker_id: int
    """Id of the consumer that claimed it."""
    last_error: str | None
    """What the last failed delivery said."""
    _payload: str = attrs.field(repr=False)
    _headers: str | None = attrs.field(repr=False)
    _settler: Settler = attrs.field(repr=False, eq=False)

    @cached_property
    def payload(self) -> Any:
        """The payload as it was enqueued; decoded when first asked for."""
        return decode(self._payload)

    @cached_property
    def headers(self) -> Any:
        """The headers as they were enqueued; None without."""
        return None if self._headers is None else decode(self._headers)

    async def archive(self) -> None:
        """Finish the message and keep it in the archive.

        Raises `LeaseLost` when the lease is gone. Cancelled, it has happened or it has not.
        """
        await self._settler.archive(self)

    async def delete(self) -> None:
        """Finish the message and keep nothing.

        Raises `LeaseLost` when the lease is gone. Cancelled, it has happened or it has not.
        """
        await self._settler.delete(self)

    async def release(self, *, delay: Duration = 0) -> None:
        """Give the message back to its queue, for another delivery after ``delay`` seconds; after the last one it becomes a dead letter.

        Raises `LeaseLost` when the lease is gone. Cancelled, it has happened or it has not.
        """
        await self._settler.release(self, delay=delay)

    async def extend(self, seconds: Duration) -> None:
        """Make the lease end this many seconds from now, by the server's clock. `vt` keeps saying what it said.

        Raises `LeaseLost` when the lease is gone. Cancelled, it has happened or it has not.
        """
        await self._settler.extend(self, seconds)


def read_messages(rows: Sequence[Sequence[Any]], queue: str, queue_id: int, worker_id: int, settler: Settler) -> list[Message]:
    """Return the messages of rows as ``tocsin.claim`` returns them."""
    return [
        Message(
            message_id, queue, queue_id, priority, enqueued_at, vt, read_ct, dequeued_at, lease, producer, worker_id, error, payload,
            headers, settler,
        )
        for message_id, lease, priority, read_ct, enqueued_at, vt, dequeued_at, producer, headers, error, payload, _ in rows
    ]  # fmt: skip
