"""Producing: putting messages into a queue."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial

import psycopg

from tocsin._database.blocking_connection import run_blocking
from tocsin._database.caller_connection import AnyConnection, check_driven_by_trio
from tocsin._database.client import Database
from tocsin._durations import Duration
from tocsin._queue.process.process import Process
from tocsin._queue.workers.registration import Registered, Registration

from . import transactional
from .batcher import EnqueueBatcher
from .enqueue_request import Batch, EnqueueRequest, MessageOptions, build_request
from .rate_limit import Limiter, RateLimit


class EnqueueOptions(MessageOptions, total=False):
    """The options of `Producer.enqueue`, where they are passed on."""

    connection: AnyConnection | None


class Enqueuer:
    """Enqueues to one queue, in nobody's name: `Store.produce`."""

    def __init__(self, database: Database, batcher: EnqueueBatcher, queue: str) -> None:
        self._database = database
        self._batcher = batcher
        self.queue = queue
        """Name of its queue."""

        self._limiter: Limiter | None = None

    @property
    def _producer_id(self) -> int | None:
        return None

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
        connection: AnyConnection | None = None,
    ) -> int:
        """Enqueue one message and return its id.

        ``payload`` and ``headers`` are any JSON values (a tuple comes back as a list).
        ``delay`` (seconds) or ``at`` (a time with its zone) say when it is due, by the
        server's clock. Smaller ``priority`` numbers are delivered first. With a ``key``
        there is at most one unfinished message of that key: a second enqueue returns
        the first one's id. A message that is not delivered ``expires_in`` seconds from
        now becomes a dead letter. ``max_deliveries`` goes before the queue's. On a
        ``connection`` of the caller's (of `Store.transaction`, or a blocking
        ``psycopg.Connection``, which is used in a thread, and by nobody else
        meanwhile), the message is enqueued when the caller's transaction commits; see
        also `tocsin.enqueue`.

        Returns when the message is on disk. Without a ``key``, a consumer that slept
        may have it already by then; if the server crashes before, this raises
        `ConnectionLost`, and the message may be gone, like all that its handler has
        done to this database (see ``ring_early.sql``).

        Calls that come while others are under way from this process to the same queue
        share a statement (those with a ``key`` or a ``connection`` do not), which makes
        many at a time cheap. Those that share get ids in the order of the calls.

        Raises `PayloadInvalid`, `PayloadTooLarge`, `QueueNotFound`, `PermissionDenied`
        for a queue that was not granted, `StateTransitionError` when this worker is
        suspended, `WorkerStopped`, `RateLimited`, `ConnectionLost`, `ValueError`, and
        `TocsinError` when the store is closed meanwhile. Cancelled, the message is
        enqueued or not; with a key, enqueueing it again is safe.
        """
        request = build_request(
            payload,
            delay=delay,
            at=at,
            priority=priority,
            headers=headers,
            key=key,
            expires_in=expires_in,
            max_deliveries=max_deliveries,
            worker_id=self._producer_id,
        )
        if self._limiter is not None:
            await self._limiter.admit(1)
        if connection is None:
            return await self._batcher.enqueue(self.queue, request)
        return await self._enqueue_on(connection, request)

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
        connection: AnyConnection | None = None,
    ) -> list[int]:
        """Enqueue all of the payloads or, on any refusal, none; return their ids in
        order.

        The options are those of `enqueue` (``delay`` and ``expires_in`` in seconds),
        and hold for each payload.

        The payloads are taken from the iterable as they are sent, a few thousand at a
        time, so that a generator may give any number of them. It must not block, for it
        is run within the transaction (and with a blocking ``connection``, in its
        thread).

        Raises what `enqueue` raises; `PayloadInvalid` and `PayloadTooLarge` tell the
        index. Cancelled, all are enqueued or none.
        """
        batch = Batch(
            self.queue,
            payloads,
            worker_id=self._producer_id,
            delay=delay,
            at=at,
            priority=priority,
            headers=headers,
            expires_in=expires_in,
            max_deliveries=max_deliveries,
        )
        if self._limiter is None:
            return await self._send(batch, connection)
        admitted = batch.count
        await self._limiter.admit(admitted)
        try:
            return await self._send(batch, connection)
        finally:
            self._limiter.borrow(batch.count - admitted)

    async def _enqueue_on(self, connection: AnyConnection, request: EnqueueRequest) -> int:
        schema = self._database.schema
        if isinstance(connection, psycopg.Connection):
            return await run_blocking(
                connection, partial(transactional.send, connection, schema, self.queue, request)
            )
        return await transactional.send_async(
            check_driven_by_trio(connection), schema, self.queue, request
        )

    async def _send(self, batch: Batch, connection: AnyConnection | None) -> list[int]:
        schema = self._database.schema
        if isinstance(connection, psycopg.Connection):
            return await run_blocking(
                connection, partial(transactional.send_batch, connection, schema, batch)
            )
        if connection is not None:
            return await transactional.send_batch_async(
                check_driven_by_trio(connection), schema, batch
            )
        async with self._database.connection() as own:
            return await transactional.send_batch_async(own, schema, batch)


class Producer(Registered, Enqueuer):
    """Enqueues messages to one queue; made by `Store.producer`."""

    def __init__(
        self,
        database: Database,
        process: Process,
        batcher: EnqueueBatcher,
        queue: str,
        name: str | None,
        rate_limit: RateLimit | None,
    ) -> None:
        super().__init__(database, process, Registration(database, "producer", queue, name))
        self._batcher = batcher
        self._limiter = None if rate_limit is None else Limiter(rate_limit)

    @property
    def _producer_id(self) -> int:
        return self.worker_id
