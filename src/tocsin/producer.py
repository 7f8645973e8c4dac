"""Producing: putting messages into a queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypedDict

from .database import Connection, Database
from .durations import Duration, check_count, check_priority, to_timedelta
from .payload import encode
from .registration import Registered

_ENQUEUE = "select tocsin.enqueue(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
_ENQUEUE_MANY = "select tocsin.enqueue_many(%s, %s::text[]::jsonb[], %s, %s, %s, %s, %s, %s, %s)"
_CHUNK = 5000
"""Payloads in one statement of a large batch; a batch is one transaction, whatever its size."""


class EnqueueOptions(TypedDict, total=False):
    """The options of `Producer.enqueue`, where they are passed on."""

    delay: Duration | None
    at: datetime | None
    priority: int
    headers: object
    key: str | None
    expires_in: Duration | None
    max_deliveries: int | None
    connection: Connection | None


class Sender:
    """Enqueues to one queue, in nobody's name: `Store.produce`."""

    def __init__(self, database: Database, queue: str) -> None:
        self._database = database
        self.queue = queue
        """Name of its queue."""

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
        connection: Connection | None = None,
    ) -> int:
        """Enqueue one message and return its id.

        ``payload`` and ``headers`` are any JSON values (a tuple comes back as a list). ``delay`` (seconds) or ``at`` (a time with its zone)
        say when it is due, by the server's clock. Smaller ``priority`` numbers are delivered first. With a ``key`` there is at most one
        unfinished message of that key: a second enqueue returns the first one's id. A message that is not delivered ``expires_in`` seconds
        from now becomes a dead letter. ``max_deliveries`` goes before the queue's. On a ``connection`` of the caller's
        (`Store.transaction`), the message is enqueued when the caller's transaction commits.

        Raises `PayloadInvalid`, `PayloadTooLarge`, `QueueNotFound`, `StateTransitionError` when this worker is suspended, `WorkerStopped`,
        `ConnectionLost`, `ValueError`. Cancelled, the message is enqueued or not; with a key, enqueueing it again is safe.
        """
        parameters = [
            self.queue,
            encode(payload),
            *_when(delay, at),
            check_priority(priority),
            _encode_headers(headers),
            key,
            to_timedelta(expires_in, "expires_in"),
            None if max_deliveries is None else check_count(max_deliveries, "max_deliveries"),
            self._producer_id,
        ]
        (message_id,) = await self._database.fetch_one(_ENQUEUE, parameters, on=connection)
        return int(message_id)

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
        connection: Connection | None = None,
    ) -> list[int]:
        """Enqueue all of the payloads or, on any refusal, none; return their ids in order. The options are those of `enqueue`.

        Raises what `enqueue` raises; `PayloadInvalid` and `PayloadTooLarge` tell the index. Cancelled, all are enqueued or none.
        """
        texts = [encode(payload, index) for index, payload in enumerate(payloads)]
        options = [
            *_when(delay, at),
            check_priority(priority),
            _encode_headers(headers),
            to_timedelta(expires_in, "expires_in"),
            None if max_deliveries is None else check_count(max_deliveries, "max_deliveries"),
            self._producer_id,
        ]
        if connection is not None:
            async with connection.transaction():  # a savepoint in the caller's transaction
                return await self._enqueue_chunks(texts, options, connection)
        if len(texts) <= _CHUNK:
            return await self._enqueue_chunks(texts, options, None)
        async with self._database.connection() as own, own.transaction():
            return await self._enqueue_chunks(texts, options, own)

    async def _enqueue_chunks(self, texts: list[str], options: Sequence[object], connection: Connection | None) -> list[int]:
        ids: list[int] = []
        for start in range(0, max(len(texts), 1), _CHUNK):
            parameters = [self.queue, texts[start : start + _CHUNK], *options]
            (inserted,) = await self._database.fetch_one(_ENQUEUE_MANY, parameters, on=connection)
            ids += inserted
        return ids


class Producer(Registered, Sender):
    """Enqueues messages to one queue; made by `Store.producer`."""

    @property
    def _producer_id(self) -> int:
        return self.worker_id


def _when(delay: Duration | None, at: datetime | None) -> tuple[timedelta | None, datetime | None]:
    if delay is not None and at is not None:
        raise ValueError("give delay or at, not both")
    if at is not None and at.tzinfo is None:
        raise ValueError("at must have a time zone, such as datetime.now(UTC)")
    return to_timedelta(delay, "delay", zero=True), at


def _encode_headers(headers: object) -> str | None:
    return None if headers is None else encode(headers)
