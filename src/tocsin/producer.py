"""Producing: putting messages into a queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import TypedDict

from .database import Connection, Database
from .durations import Duration, check_count, check_priority, to_timedelta
from .outbox import Draft, Outbox
from .payload import encode
from .process import Process
from .registration import Registered

_ENQUEUE_MANY = "select tocsin.enqueue_many(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
_CHUNK = 2000
"""Most payloads in one statement of a large batch; a batch is one transaction, whatever its size."""
_CHUNK_SIZE = 1 << 24
"""Such a statement takes no further payload when it has this many characters, for PostgreSQL's JSON arrays end at 256 MB."""


class BatchOptions(TypedDict, total=False):
    """The options of `Producer.enqueue_many`, where they are passed on."""

    delay: Duration | None
    at: datetime | None
    priority: int
    headers: object
    expires_in: Duration | None
    max_deliveries: int | None
    connection: Connection | None


class EnqueueOptions(BatchOptions, total=False):
    """The options of `Producer.enqueue`, where they are passed on."""

    key: str | None


class Sender:
    """Enqueues to one queue, in nobody's name: `Store.produce`."""

    def __init__(self, database: Database, outbox: Outbox, queue: str) -> None:
        self._database = database
        self._outbox = outbox
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

        Calls that come while others are under way from this process to the same queue share a statement (those with a ``key`` or a
        ``connection`` do not), which makes many at a time cheap. Those that share get ids in the order of the calls.

        Raises `PayloadInvalid`, `PayloadTooLarge`, `QueueNotFound`, `StateTransitionError` when this worker is suspended, `WorkerStopped`,
        `ConnectionLost`, `ValueError`, and `TocsinError` when the store is closed meanwhile. Cancelled, the message is enqueued or not;
        with a key, enqueueing it again is safe.
        """
        due_in, due_at = _when(delay, at)
        lasts = to_timedelta(expires_in, "expires_in")
        worker_id = self._producer_id
        draft = Draft(
            encode(payload),
            None if due_in is None else _interval(due_in),
            None if due_at is None else due_at.isoformat(),
            str(check_priority(priority)),
            _encode_headers(headers),
            key,
            None if lasts is None else _interval(lasts),
            None if max_deliveries is None else str(check_count(max_deliveries, "max_deliveries")),
            None if worker_id is None else str(worker_id),
        )
        if connection is not None:
            return await self._outbox.enqueue_alone(self.queue, draft, on=connection)
        return await self._outbox.enqueue(self.queue, draft)

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

        The payloads are taken from the iterable as they are sent, a few thousand at a time, so that a generator may give any number of
        them. It must not block, for it is run within the transaction.

        Raises what `enqueue` raises; `PayloadInvalid` and `PayloadTooLarge` tell the index. Cancelled, all are enqueued or none.
        """
        options = [
            *_when(delay, at),
            check_priority(priority),
            _encode_headers(headers),
            to_timedelta(expires_in, "expires_in"),
            None if max_deliveries is None else check_count(max_deliveries, "max_deliveries"),
            self._producer_id,
        ]
        chunks = _encode_chunks(payloads)
        first, second = next(chunks), next(chunks, None)
        if second is not None:
            chunks = chain([second], chunks)
        if connection is not None:
            async with connection.transaction():  # a savepoint in the caller's transaction
                return await self._send(chain([first], chunks), options, connection)
        if second is None:
            return await self._send([first], options, None)
        async with self._database.connection() as own, own.transaction():
            return await self._send(chain([first], chunks), options, own)

    async def _send(self, chunks: Iterable[tuple[int, str]], options: Sequence[object], connection: Connection | None) -> list[int]:
        ids: list[int] = []
        for index, texts in chunks:
            (inserted,) = await self._database.fetch_one(_ENQUEUE_MANY, [self.queue, texts, *options, index], on=connection)
            ids += inserted
        return ids


class Producer(Registered, Sender):
    """Enqueues messages to one queue; made by `Store.producer`."""

    def __init__(self, database: Database, process: Process, outbox: Outbox, queue: str, name: str | None) -> None:
        super().__init__(database, process, queue, name)
        self._outbox = outbox

    @property
    def _producer_id(self) -> int:
        return self.worker_id


def _encode_chunks(payloads: Iterable[object]) -> Iterator[tuple[int, str]]:
    """Yield the payloads as JSON arrays, one for each statement and at least one, each with the index of its first payload."""
    texts: list[str] = []
    start, size = 0, 0
    for index, payload in enumerate(payloads):
        if len(texts) == _CHUNK or size >= _CHUNK_SIZE:
            yield start, f"[{','.join(texts)}]"
            texts.clear()
            start, size = index, 0
        text = encode(payload, index)
        texts.append(text)
        size += len(text)
    yield start, f"[{','.join(texts)}]"


def _when(delay: Duration | None, at: datetime | None) -> tuple[timedelta | None, datetime | None]:
    if delay is not None and at is not None:
        raise ValueError("give delay or at, not both")
    if at is not None and at.tzinfo is None:
        raise ValueError("at must have a time zone, such as datetime.now(UTC)")
    return to_timedelta(delay, "delay", zero=True), at


def _encode_headers(headers: object) -> str | None:
    return None if headers is None else encode(headers)


def _interval(duration: timedelta) -> str:
    return f"{duration.days} days {duration.seconds} s {duration.microseconds} us"
