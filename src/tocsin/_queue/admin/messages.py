"""Looking at messages, whatever has become of them, and changing those that wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, get_args

import attrs

from tocsin._arguments import check_count, check_id, check_key, check_priority, check_queue
from tocsin._database.caller_connection import AnyConnection, fetch_value
from tocsin._database.client import Database
from tocsin._durations import Duration, write_due
from tocsin._queue.payload import decode
from tocsin.errors import MessageNotFound

MessageState = Literal["ready", "delayed", "leased", "dead", "archived"]
"""Where a message is: it can be claimed, is due later, is with a consumer, is a dead
letter, is finished and kept."""


@attrs.frozen
class Delivery:
    """A delivery that failed, in a message's history. One that was taken back (by an
    interruption, say) is not in it."""

    delivery: int
    """Which delivery it was, counted from 1 since the message was enqueued or last
    replayed."""
    worker_id: int | None
    """Id of the consumer that had it."""
    worker: str | None
    """Name of that consumer."""
    dequeued_at: datetime
    """When it began, by the server's clock."""
    ended_at: datetime
    """When it ended."""
    outcome: str
    """How, as a code: ``handler_failed``, ``rejected`` (by the handler),
    ``lease_expired``, ``worker_died`` or ``released``."""
    error: str | None
    """What the handler raised, the beginning of it if it is long; None when it was not
    that."""


def _read_history(text: str | None) -> tuple[Delivery, ...]:
    return tuple(map(_read_delivery, decode(text) if text is not None else ()))


def _read_delivery(entry: Mapping[str, Any]) -> Delivery:
    times = {name: datetime.fromisoformat(entry[name]) for name in ("dequeued_at", "ended_at")}
    return Delivery(**{**entry, **times})


@attrs.frozen(slots=False)
class Record:
    """What is known of every message, in the order of the columns that the database
    shows it with."""

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
    """Id of the producer that enqueued it; None when it was enqueued by SQL or
    `Store.produce`."""
    consumer_worker_id: int | None
    """Id of the consumer that has it or had it last."""
    history: tuple[Delivery, ...] = attrs.field(converter=_read_history)
    """Its deliveries that failed, the oldest first; the last twenty of them."""

    @cached_property
    def payload(self) -> Any:
        """The payload as it was enqueued; decoded when first asked for, which raises
        `PayloadUnreadable` for what Python cannot hold."""
        return decode(self.payload_text)

    @cached_property
    def headers(self) -> Any:
        """The headers as they were enqueued; None without. Asking for them raises what
        `payload` does."""
        return None if self.headers_text is None else decode(self.headers_text)


@attrs.frozen(slots=False)
class MessageInfo(Record):
    """A message, as it was at the moment when it was looked at."""

    state: MessageState
    """Where it is."""
    due: datetime | None
    """Its place in the queue among equal priorities: when it was or will be due. None
    when it is dead or archived."""
    vt: datetime | None
    """When it can be claimed (again): the end of its lease while it is leased. None
    when it is dead or archived."""
    expires_at: datetime | None
    """When it becomes a dead letter unless it has been delivered; None: never."""
    archived_at: datetime | None
    """When it was archived; None when it was not."""
    died_at: datetime | None
    """When it became a dead letter; None when it is none."""
    reason: str | None
    """Why it became a dead letter; None when it is none."""
    last_error: str | None
    """What the last failed delivery said."""


class Messages:
    """The messages of a store: `Store.messages`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, message_id: int) -> MessageInfo:
        """Return a message.

        Raises:
            MessageNotFound: There is no message of this id.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        rows = await self._database.fetch(
            "select * from tocsin.get_message(%s)", [check_id(message_id, "message_id")]
        )
        if not rows:
            raise MessageNotFound(f"message {message_id} does not exist", message_id=message_id)
        return MessageInfo(*rows[0])

    async def list(
        self,
        queue: str,
        *,
        state: MessageState | None = None,
        worker: int | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> list[MessageInfo]:
        """Return messages of a queue, by id: those in one ``state``, or all unfinished
        ones (ready, delayed and leased).

        Args:
            worker: Return only messages that the consumer of this id holds. They
                include messages whose lease has expired and that no consumer has
                claimed again.
            limit: The most messages to return.
            after: The last id of the page before.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: An argument is out of its range.

        Cancellation:
            Nothing has changed.
        """
        if state is not None and state not in get_args(MessageState):
            raise ValueError(
                f"state must be one of {', '.join(get_args(MessageState))}, not {state!r}"
            )
        if worker is not None and state not in (None, "leased"):
            raise ValueError(f"worker= chooses among leased messages, not {state} ones")
        rows = await self._database.fetch(
            "select * from tocsin.list_messages(%s, %s, %s, %s, %s)",
            [
                check_queue(queue),
                state,
                None if worker is None else check_id(worker, "worker"),
                check_count(limit, "limit"),
                None if after is None else check_id(after, "after"),
            ],
        )
        return [MessageInfo(*row) for row in rows]

    async def cancel(
        self,
        message_id: int | None = None,
        *,
        queue: str | None = None,
        key: str | None = None,
        connection: AnyConnection | None = None,
    ) -> int:
        """Finish a message that waits, so that it is never delivered; return its id.

        Name it by its id, or by ``queue`` and ``key``. It is archived with "cancelled"
        as its last error, where its queue keeps anything, and its key is free.

        Args:
            connection: Cancel it when the transaction of this connection commits; see
                `Producer.enqueue`.

        Raises:
            MessageNotWaiting: A worker holds the message, or it is finished.
            MessageNotFound: There is no such message.
            QueueNotFound: The queue does not exist.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The database did not answer.
            ValueError: The message is not named by its id, or by queue and key.

        Cancellation:
            Atomic: the message is changed or not.
        """
        return await self._change(
            "tocsin.cancel(%s, %s, %s)", [], message_id, queue, key, connection
        )

    async def reschedule(
        self,
        message_id: int | None = None,
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
        queue: str | None = None,
        key: str | None = None,
        connection: AnyConnection | None = None,
    ) -> int:
        """Have a message that waits delivered ``delay`` seconds from now, or from the
        time ``at`` on; return its id.

        That may be earlier or later than before; with a delay of 0 it is due now. Its
        place among equal priorities is that of the new time; an expiry stays. A message
        whose last lease has expired gets one more delivery. It is named, and a
        ``connection`` used, as in `cancel`.

        Raises:
            TocsinError: What `cancel` raises.
            ValueError: Neither ``delay`` nor ``at`` is given, or both are.

        Cancellation:
            Atomic: the message is changed or not.
        """
        due_in, due_at = write_due(delay, at)
        if due_in is None and due_at is None:
            raise ValueError("give delay= or at=")
        return await self._change(
            "tocsin.reschedule(%s, %s, %s, %s, %s)",
            [due_in, due_at],
            message_id,
            queue,
            key,
            connection,
        )

    async def reprioritise(
        self,
        message_id: int | None = None,
        *,
        priority: int,
        queue: str | None = None,
        key: str | None = None,
        connection: AnyConnection | None = None,
    ) -> int:
        """Give a message that waits another ``priority`` (smaller numbers are delivered
        first); return its id.

        It is named, and a ``connection`` used, as in `cancel`.

        Raises:
            TocsinError: What `cancel` raises.
            ValueError: The priority is out of its range.

        Cancellation:
            Atomic: the message is changed or not.
        """
        wanted = str(check_priority(priority))
        return await self._change(
            "tocsin.reprioritise(%s, %s, %s, %s)", [wanted], message_id, queue, key, connection
        )

    async def _change(
        self,
        call: str,
        to: Sequence[str | None],
        message_id: int | None,
        queue: str | None,
        key: str | None,
        connection: AnyConnection | None,
    ) -> int:
        if (message_id is None) == (key is None) or (queue is None) != (key is None):
            raise ValueError("name a message by its id, or by queue= and key=")
        parameters = [
            None if message_id is None else str(check_id(message_id, "message_id")),
            *to,
            None if queue is None else check_queue(queue),
            check_key(key),
        ]
        if connection is not None:
            return int(
                await fetch_value(connection, self._database.schema, f"select {call}", parameters)
            )
        (changed,) = await self._database.fetch_one(f"select {call}", parameters)
        return int(changed)
