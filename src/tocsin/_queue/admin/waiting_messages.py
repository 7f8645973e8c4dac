"""Messages that wait: cancelling them, and changing when they are delivered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tocsin._arguments import check_id, check_key, check_priority, check_queue
from tocsin._database.caller_connection import AnyConnection, fetch_value
from tocsin._database.client import Database
from tocsin._durations import Duration, write_due


class WaitingMessages:
    """The messages that no worker holds and that are not finished."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        as its last error, where its queue keeps anything, and its key is free. A job
        that runs is cancelled, too: see `Jobs.cancel`.

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
            Atomic.
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
        """Have a message that waits delivered at another time; return its id.

        It is due ``delay`` seconds from now, or at the time ``at``. That may be earlier
        or later than before; with a delay of 0 it is due now. Its place among equal
        priorities is that of the new time; an expiry stays. A message whose last lease
        has expired gets one more delivery. The message is named, and a ``connection``
        used, as in `cancel`.

        Raises:
            TocsinError: What `cancel` raises.
            ValueError: Neither ``delay`` nor ``at`` is given, or both are.

        Cancellation:
            Atomic.
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
        """Give a message that waits another ``priority``; return its id.

        Smaller numbers are delivered first. The message is named, and a ``connection``
        used, as in `cancel`.

        Raises:
            TocsinError: What `cancel` raises.
            ValueError: The priority is out of its range.

        Cancellation:
            Atomic.
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
