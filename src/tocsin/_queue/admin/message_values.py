"""Messages as values, in whichever state they are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import attrs

from tocsin._queue.payload import decode

MessageState = Literal["ready", "delayed", "held", "leased", "dead", "archived"]
"""The state of a message.

In this order: it can be claimed, it is due later, it waits for other messages, a
consumer holds it, it is a dead letter, it is finished and kept.
"""


@attrs.frozen
class Delivery:
    """A delivery that failed or was cancelled, in a message's history.

    A delivery that was taken back (by an interruption, say) is not in the history.
    """

    delivery: int
    """Its number, counted from 1 since the message was enqueued or last replayed."""
    worker_id: int | None
    """Id of the consumer that had it."""
    worker: str | None
    """Name of that consumer."""
    dequeued_at: datetime
    """When it began, by the server's clock."""
    ended_at: datetime
    """When it ended."""
    outcome: str
    """Its outcome, as a code.

    ``handler_failed``, ``timed_out``, ``rejected`` (by the handler),
    ``lease_expired``, ``worker_died`` or ``released``; ``cancelled`` for a job that was
    cancelled while it ran.
    """
    error: str | None
    """The beginning of the handler's error; None when the handler raised none."""


def _read_history(text: str | None) -> tuple[Delivery, ...]:
    return tuple(map(_read_delivery, decode(text) if text is not None else ()))


def _read_delivery(entry: Mapping[str, Any]) -> Delivery:
    times = {name: datetime.fromisoformat(entry[name]) for name in ("dequeued_at", "ended_at")}
    return Delivery(**{**entry, **times})


@attrs.frozen(slots=False)
class Record:
    """The fields of every message, in the order of the database's columns."""

    id: int
    """Its id, which it keeps in whichever state it is."""
    queue: str
    """Name of its queue."""
    queue_id: int
    """Id of its queue."""
    payload_text: str = attrs.field(repr=False)
    """The payload as JSON text."""
    headers_text: str | None = attrs.field(repr=False)
    """The headers as JSON text; None without."""
    priority: int
    """Smaller numbers are delivered first."""
    key: str | None
    """Its unique key."""
    enqueued_at: datetime
    """When it was enqueued, by the server's clock."""
    dequeued_at: datetime | None
    """When its last delivery began; None when there was none."""
    read_ct: int
    """How many deliveries there have been."""
    max_deliveries: int | None
    """Its own maximum of deliveries; None: its queue's counted, or it is archived."""
    producer_worker_id: int | None
    """Id of the producer that enqueued it.

    None when it was enqueued by SQL or `Store.produce`.
    """
    consumer_worker_id: int | None
    """Id of the consumer that has it or had it last."""
    history: tuple[Delivery, ...] = attrs.field(converter=_read_history)
    """Its deliveries that failed, the oldest first; the last twenty of them."""

    @cached_property
    def payload(self) -> Any:
        """The payload as it was enqueued, decoded when it is first read.

        Reading it raises `PayloadUnreadable` for what Python cannot hold.
        """
        return decode(self.payload_text)

    @cached_property
    def headers(self) -> Any:
        """The headers as they were enqueued; None without.

        Reading them raises what `payload` raises.
        """
        return None if self.headers_text is None else decode(self.headers_text)


@attrs.frozen(slots=False)
class MessageInfo(Record):
    """A message as it was when it was read."""

    state: MessageState
    """Its state."""
    due: datetime | None
    """When it was or will be due: its place in the queue among equal priorities.

    None when it is dead or archived.
    """
    vt: datetime | None
    """When it can be claimed, or claimed again.

    That is the end of its lease while it is leased. None when it is dead or archived.
    """
    expires_at: datetime | None
    """When it becomes a dead letter unless it has been delivered; None: never."""
    archived_at: datetime | None
    """When it was archived; None when it was not."""
    died_at: datetime | None
    """When it became a dead letter; None when it is none."""
    reason: str | None
    """The reason for which it became a dead letter; None when it is none."""
    last_error: str | None
    """The error of its last delivery that failed."""
