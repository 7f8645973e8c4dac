"""Messages to enqueue, checked and written as PostgreSQL reads them.

Every way of enqueueing comes here before anything is sent: one message or a batch, on
any connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain, count, islice
from typing import Final, NamedTuple, Protocol, TypeAlias, TypedDict, Unpack

from tocsin._arguments import check_count, check_key, check_order, check_priority, check_queue
from tocsin._durations import Duration, to_timedelta, write_due, write_interval
from tocsin._queue.payload import encode

ENQUEUE_CALL = (
    "tocsin.enqueue(%s, %s::jsonb, %s, %s, %s, %s::jsonb, %s, %s, %s, %s, %s, %s, %s::jsonb)"
)
"""One message; takes `EnqueueRequest.parameters`."""
ENQUEUE = f"select {ENQUEUE_CALL}"
ENQUEUE_MANY = (
    "select tocsin.enqueue_many(%s, %s::jsonb, %s, %s, %s, %s::jsonb, %s, %s, %s, %s, %s)"
)
"""A part of a batch; takes what `Batch.statements` gives."""
CHUNK = 2000
"""Most payloads in one statement of a large batch.

A batch is one transaction, whatever its size.
"""
CHUNK_SIZE = 1 << 24
"""Characters from which on such a statement takes no further payload.

PostgreSQL's JSON arrays end at 256 MB.
"""


def number_parameters(statement: str) -> str:
    """Return a statement with placeholders as a prepared statement has them."""
    numbers = count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", statement)


Parameters: TypeAlias = list[str | None]


class BatchOptions(TypedDict, total=False):
    """The options that all payloads of a batch share.

    `tocsin.Producer.enqueue` says what they mean.
    """

    delay: Duration | None
    at: datetime | None
    priority: int
    headers: object
    expires_in: Duration | None
    max_deliveries: int | None
    ordered_by: str | None


class MessageOptions(BatchOptions, total=False):
    """The options of one message; `tocsin.Producer.enqueue` says what they mean."""

    key: str | None


class EnqueueRequest(NamedTuple):  # made as fast as a class that is not frozen
    """A message to enqueue, as PostgreSQL reads it.

    The fields are the arguments of ``tocsin.enqueue`` after the queue.
    """

    payload: str
    """JSON."""
    delay: str | None
    """Interval from now until it is due."""
    at: str | None
    """Time at which it is due."""
    priority: str
    """Integer; smaller ones first."""
    headers: str | None
    """JSON."""
    key: str | None
    """At most one unfinished message has it."""
    expires_in: str | None
    """Interval from now until it must have been delivered."""
    max_deliveries: str | None
    """Integer; goes before the queue's."""
    ordered_by: str | None
    """Messages of the same text are delivered one at a time, in order."""
    worker_id: str | None
    """Integer; the producer's."""
    task: str | None = None
    """Of a job: the name of its task."""
    options: str | None = None
    """Of a job: JSON; what the call has chosen apart from the task's options."""

    def parameters(self, queue: str) -> Parameters:
        """Return the arguments of ``tocsin.enqueue``."""
        return [check_queue(queue), *self]

    def to_json(self) -> str:
        """Return it as a JSON object for ``tocsin.enqueue_each``, without the key."""
        parts = ['{"payload":', self.payload, ',"priority":', self.priority]
        if self.delay is not None:
            parts += ',"delay":"', self.delay, '"'
        if self.at is not None:
            parts += ',"at":"', self.at, '"'
        if self.headers is not None:
            parts += ',"headers":', self.headers
        if self.expires_in is not None:
            parts += ',"expires_in":"', self.expires_in, '"'
        if self.max_deliveries is not None:
            parts += ',"max_deliveries":', self.max_deliveries
        if self.ordered_by is not None:
            parts += ',"ordered_by":', encode(self.ordered_by)
        if self.worker_id is not None:
            parts += ',"worker_id":', self.worker_id
        if self.task is not None:
            parts += ',"task":', encode(self.task)
        if self.options is not None:
            parts += ',"options":', self.options
        parts.append("}")
        return "".join(parts)


def build_request(
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
    worker_id: int | None = None,
) -> EnqueueRequest:
    """Write a message as PostgreSQL reads it.

    Raises:
        PayloadInvalid: The payload or the headers are not JSON values.
        ValueError: An option is out of its range.
        TypeError: An option has a wrong type.
    """
    due_in, due_at = write_due(delay, at)
    lasts = to_timedelta(expires_in, "expires_in")
    return EnqueueRequest(
        encode(payload),
        due_in,
        due_at,
        str(check_priority(priority)),
        None if headers is None else encode(headers),
        check_key(key),
        None if lasts is None else write_interval(lasts),
        None if max_deliveries is None else str(check_count(max_deliveries, "max_deliveries")),
        None if ordered_by is None else check_order(ordered_by),
        None if worker_id is None else str(worker_id),
    )


class BatchStatements(Protocol):
    """What is enqueued all or none, in one statement or more."""

    @property
    def statement(self) -> str:
        """What each part is sent with; it gives the ids."""

    @property
    def one_statement(self) -> bool:
        """Whether one statement takes it all."""

    def statements(self) -> Iterator[Parameters]:
        """Yield the parameters of each statement; there is at least one."""


class Batch:
    """Payloads that are enqueued all or none, with the same options.

    A batch takes one statement or more, and can be sent once. The payloads of the first
    two statements are written at once, further ones when their statement is sent.

    Raises:
        PayloadInvalid: A payload is not a JSON value; the error has its index.
        ValueError: An option is out of its range.
        TypeError: An option has a wrong type, or is none of a batch.
    """

    statement: Final = ENQUEUE_MANY
    """What each part is sent with."""

    def __init__(
        self,
        queue: str,
        payloads: Iterable[object],
        *,
        worker_id: int | None = None,
        **options: Unpack[BatchOptions],
    ) -> None:
        if unknown := options.keys() - BatchOptions.__annotations__.keys():
            raise TypeError(f"a batch has no option {', '.join(sorted(unknown))}")
        self._queue = check_queue(queue)
        self._model = build_request(None, worker_id=worker_id, **options)
        self.count = 0
        """How many payloads have been written by now."""
        chunks = self._write_chunks(payloads)
        written = list(islice(chunks, 2))
        self.one_statement = len(written) == 1
        """Whether one statement takes it all."""
        self._chunks = chain(written, chunks)

    def statements(self) -> Iterator[Parameters]:
        """Yield the arguments of ``tocsin.enqueue_many`` for each statement.

        There is at least one statement.
        """
        m = self._model
        for start, texts in self._chunks:
            yield [
                self._queue,
                texts,
                m.delay,
                m.at,
                m.priority,
                m.headers,
                m.expires_in,
                m.max_deliveries,
                m.ordered_by,
                m.worker_id,
                str(start),
            ]

    def _write_chunks(self, payloads: Iterable[object]) -> Iterator[tuple[int, str]]:
        """Yield the payloads as JSON arrays, one for each statement.

        Each comes with the index of its first payload.
        """
        texts: list[str] = []
        start, size = 0, 0
        for index, payload in enumerate(payloads):
            if len(texts) == CHUNK or size >= CHUNK_SIZE:
                yield start, f"[{','.join(texts)}]"
                texts.clear()
                start, size = index, 0
            text = encode(payload, index)
            texts.append(text)
            self.count = index + 1
            size += len(text)
        yield start, f"[{','.join(texts)}]"
