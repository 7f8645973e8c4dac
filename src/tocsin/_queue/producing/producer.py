"""Producers of a queue, registered or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from tocsin._database.caller_connection import AnyConnection
from tocsin._database.client import Database
from tocsin._durations import Duration
from tocsin._queue.process.process import Process
from tocsin._queue.workers.registration import Registered, Registration
from tocsin.telemetry.instruments import EnqueueCall, Telemetry

from .batcher import EnqueueBatcher
from .enqueue_request import (
    BatchOptions,
    MessageOptions,
)
from .rate_limit import Limiter, RateLimit
from .sending import QueueSender


class EnqueueOptions(MessageOptions, total=False):
    """The options of `Producer.enqueue`, where they are passed on."""

    connection: AnyConnection | None


class Enqueuer(QueueSender):
    """Enqueueing to one queue without a registered producer: `Store.produce`."""

    async def enqueue(
        self,
        payload: object,
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
        priority: int = 0,
        headers: object = None,
        key: str | None = None,
        expires_in: Duration | None = None,
        max_deliveries: int | None = None,
        ordered_by: str | None = None,
        connection: AnyConnection | None = None,
    ) -> int:
        """Enqueue one message and return its id.

        ``payload`` and ``headers`` are any JSON values (a tuple comes back as a list).
        ``delay`` (seconds) or ``at`` (a time with its zone) say when it is due, by the
        server's clock. Smaller ``priority`` numbers are delivered first. With a ``key``
        there is at most one unfinished message of that key: a second enqueue returns
        the first one's id. A message that is not delivered ``expires_in`` seconds from
        now becomes a dead letter. ``max_deliveries`` goes before the queue's. Messages
        that are ``ordered_by`` the same text are delivered one at a time, in the order
        of enqueueing: a failed message holds up those behind it until it is archived or
        is a dead letter. On
        the caller's ``connection`` (of `Store.transaction`, or a blocking
        ``psycopg.Connection``, which is used in a thread, and must not be used by
        another one during the call), the message is enqueued when the caller's
        transaction commits; see also `tocsin.enqueue`.

        Returns when the message is durable. Without a ``key``, an idle consumer may
        have it before; if the server crashes before the flush, this raises
        `ConnectionLost`, and the message may be gone, with all that its handler has
        done to this database (see ``ring_early.sql``).

        Concurrent calls of this process to one queue share a statement, unless they
        have a ``key`` or a ``connection``. They get ids in the order of the calls.

        Raises:
            PayloadInvalid: The payload or the headers are not JSON values.
            PayloadTooLarge: The payload exceeds the queue's limit.
            QueueNotFound: The queue does not exist.
            PermissionDenied: The queue was not granted.
            StateTransitionError: This worker is suspended.
            WorkerStopped: This worker is stopped.
            RateLimited: The rate limit is reached, and does not say to wait.
            ConnectionLost: The outcome is unknown.
            ValueError: An option is out of its range.
            TocsinError: The store was closed during the call.

        Cancellation:
            Atomic. With a key, enqueueing the message again is safe.
        """
        options: MessageOptions = {
            "delay": delay,
            "at": at,
            "priority": priority,
            "headers": headers,
            "key": key,
            "expires_in": expires_in,
            "max_deliveries": max_deliveries,
            "ordered_by": ordered_by,
        }
        if not self._telemetry.instruments:
            return await self._enqueue(payload, options, connection)
        call = EnqueueCall(self.queue, [payload], headers, self._producer_id)
        with self._telemetry.instruments.enqueueing(call):
            options["headers"] = call.headers
            message_id = await self._enqueue(payload, options, connection)
            call.ids = [message_id]
        return message_id

    async def enqueue_many(
        self,
        payloads: Iterable[object],
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
        priority: int = 0,
        headers: object = None,
        expires_in: Duration | None = None,
        max_deliveries: int | None = None,
        ordered_by: str | None = None,
        connection: AnyConnection | None = None,
    ) -> list[int]:
        """Enqueue all payloads or, on any refusal, none; return their ids in order.

        The options are those of `enqueue` (``delay`` and ``expires_in`` in seconds),
        and hold for each payload.

        The payloads are taken from the iterable as they are sent, a few thousand at a
        time, so a generator may yield any number of them. It must not block, because it
        runs within the transaction (and with a blocking ``connection``, in its thread).

        Raises:
            TocsinError: What `enqueue` raises; `PayloadInvalid` and `PayloadTooLarge`
                have the index of the payload.
            ValueError: An option is out of its range.

        Cancellation:
            Atomic.
        """
        options: BatchOptions = {
            "delay": delay,
            "at": at,
            "priority": priority,
            "headers": headers,
            "expires_in": expires_in,
            "max_deliveries": max_deliveries,
            "ordered_by": ordered_by,
        }
        if not self._telemetry.instruments:
            return await self._enqueue_many(payloads, options, connection)
        readable = payloads if isinstance(payloads, Sequence) else None
        call = EnqueueCall(self.queue, readable, headers, self._producer_id)
        with self._telemetry.instruments.enqueueing(call):
            options["headers"] = call.headers
            ids = await self._enqueue_many(payloads, options, connection)
            call.ids = ids
        return ids


class Producer(Registered, Enqueuer):
    """A producer of one queue, made by `Store.producer`."""

    def __init__(
        self,
        database: Database,
        process: Process,
        batcher: EnqueueBatcher,
        queue: str,
        name: str | None,
        rate_limit: RateLimit | None,
        telemetry: Telemetry,
    ) -> None:
        super().__init__(database, process, Registration(database, "producer", queue, name))
        self._batcher = batcher
        self._telemetry = telemetry
        self._limiter = None if rate_limit is None else Limiter(rate_limit)

    @property
    def _producer_id(self) -> int:
        return self.worker_id
