"""Enqueueing on a connection, in the transaction of that connection.

The connection is one of psycopg's: blocking, or async with any event loop. Neither a
store nor trio is needed, so this also serves plain scripts, web frameworks and programs
on asyncio. A `Producer` that is given a connection comes here too, and so does each of
its batches without one, on a connection of the pool. The connection stays as it is: its
cursor and row factories do not count, and the caller decides whether and when to
commit. A connection of the pool commits by itself.

A single message is one statement, without a savepoint: refused by the database, it
leaves the transaction failed, as any statement does. A batch has a savepoint, because
it may be several statements and is enqueued as a whole or not at all; so the
transaction can go on after a refusal. (A savepoint for each message would be two more
round trips, and from the sixty-fifth on would slow down every snapshot of the server.)

Each function is there twice, for the two kinds of connections; ``enqueue_request.py``
writes what both send.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Unpack

import psycopg
from psycopg.pq import TransactionStatus

from tocsin._database.caller_connection import (
    Async,
    Blocking,
    call,
    call_async,
    fetch,
    fetch_async,
    raising_ours,
)
from tocsin._database.schema import Schema

from .enqueue_request import (
    ENQUEUE,
    Batch,
    BatchOptions,
    BatchStatements,
    EnqueueRequest,
    MessageOptions,
    build_request,
)


def enqueue(
    connection: Blocking,
    queue: str,
    payload: object,
    *,
    schema: str = "tocsin",
    **options: Unpack[MessageOptions],
) -> int:
    """Enqueue one message on a blocking psycopg connection, and return its id.

    The message is enqueued in the connection's transaction, and is delivered when that
    commits. The caller commits; a connection in autocommit mode does so at once.
    ``schema`` is where Tocsin is installed. The options are those of
    `Producer.enqueue`: ``delay``, ``at``, ``priority``, ``headers``, ``key``,
    ``expires_in``, ``max_deliveries``, ``ordered_by``.

    An error of the database leaves the transaction failed, as that of any statement
    does: roll back, or enqueue in a savepoint (``with connection.transaction():``).

    Raises:
        PayloadInvalid: The payload is not a JSON value; nothing was sent.
        ValueError: An option is out of its range; nothing was sent.
        TypeError: An option has a wrong type; nothing was sent.
        PayloadTooLarge: The payload exceeds the queue's limit.
        QueueNotFound: The queue does not exist.
        SchemaMissing: The schema is not installed.
        ConnectionLost: The connection is lost, and the transaction with it.
        psycopg.Error: Any other error of the database.
    """
    return send(
        _check(connection, psycopg.Connection),
        Schema(schema),
        queue,
        build_request(payload, **options),
    )


def enqueue_many(
    connection: Blocking,
    queue: str,
    payloads: Iterable[object],
    *,
    schema: str = "tocsin",
    **options: Unpack[BatchOptions],
) -> list[int]:
    """Enqueue all payloads or, on any refusal, none; return their ids in order.

    The connection is a blocking psycopg connection. The payloads are taken from the
    iterable as they are sent, a few thousand at a time. The options are those of
    `enqueue`, without ``key``.

    The batch has a savepoint of its own, so the caller's transaction can go on after a
    refusal.

    Raises:
        Exception: What `enqueue` raises. `PayloadInvalid` and `PayloadTooLarge` have
            the index of the payload.
    """
    return send_batch(
        _check(connection, psycopg.Connection), Schema(schema), Batch(queue, payloads, **options)
    )


async def enqueue_async(
    connection: Async,
    queue: str,
    payload: object,
    *,
    schema: str = "tocsin",
    **options: Unpack[MessageOptions],
) -> int:
    """Enqueue one message on an async psycopg connection, and return its id.

    Any event loop may drive the connection. Otherwise this does what `tocsin.enqueue`
    does.

    Raises:
        Exception: What `tocsin.enqueue` raises.

    Cancellation:
        Atomic.
    """
    return await send_async(
        _check(connection, psycopg.AsyncConnection),
        Schema(schema),
        queue,
        build_request(payload, **options),
    )


async def enqueue_many_async(
    connection: Async,
    queue: str,
    payloads: Iterable[object],
    *,
    schema: str = "tocsin",
    **options: Unpack[BatchOptions],
) -> list[int]:
    """Enqueue all payloads or, on any refusal, none; return their ids in order.

    The connection is an async psycopg connection, driven by any event loop. Otherwise
    this does what `tocsin.enqueue_many` does.

    Raises:
        Exception: What `tocsin.enqueue_many` raises.

    Cancellation:
        Atomic.
    """
    return await send_batch_async(
        _check(connection, psycopg.AsyncConnection),
        Schema(schema),
        Batch(queue, payloads, **options),
    )


# Common parts with a producer


def send(connection: Blocking, schema: Schema, queue: str, request: EnqueueRequest) -> int:
    """Enqueue one message."""
    return int(call(connection, schema, ENQUEUE, request.parameters(queue)))


async def send_async(connection: Async, schema: Schema, queue: str, request: EnqueueRequest) -> int:
    """Enqueue one message.

    Cancellation:
        Atomic.
    """
    return int(await call_async(connection, schema, ENQUEUE, request.parameters(queue)))


def send_batch(connection: Blocking, schema: Schema, batch: BatchStatements) -> list[int]:
    """Enqueue a batch."""
    ids: list[int] = []
    with raising_ours(connection, schema), _as_one(connection, batch):
        for parameters in batch.statements():
            ids += fetch(connection, schema.render(batch.statement), parameters)
    return ids


async def send_batch_async(connection: Async, schema: Schema, batch: BatchStatements) -> list[int]:
    """Enqueue a batch.

    Cancellation:
        Atomic.
    """
    ids: list[int] = []
    with raising_ours(connection, schema):
        async with _as_one_async(connection, batch):
            for parameters in batch.statements():
                ids += await fetch_async(connection, schema.render(batch.statement), parameters)
    return ids


@contextmanager
def _as_one(connection: Blocking, batch: BatchStatements) -> Iterator[None]:
    if _commits_by_itself(connection, batch):
        yield
        return
    if _is_about_to_begin(connection):
        connection.execute("select")  # with the BEGIN that psycopg puts before it
    with connection.transaction():
        yield


@asynccontextmanager
async def _as_one_async(connection: Async, batch: BatchStatements) -> AsyncIterator[None]:
    if _commits_by_itself(connection, batch):
        yield
        return
    if _is_about_to_begin(connection):
        await connection.execute("select")
    async with connection.transaction():
        yield


def _commits_by_itself(connection: Blocking | Async, batch: BatchStatements) -> bool:
    return (
        batch.one_statement
        and connection.autocommit
        and connection.info.transaction_status == TransactionStatus.IDLE
    )


def _is_about_to_begin(connection: Blocking | Async) -> bool:
    """Return whether the caller's transaction begins with the next statement.

    psycopg's transaction() would make it its own, and commit it.
    """
    return (
        not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE
    )


def _check(connection: Any, kind: type[Any]) -> Any:
    if not isinstance(connection, kind):
        other = "enqueue" if isinstance(connection, psycopg.Connection) else "enqueue_async"
        advice = (
            f"; use tocsin.{other} and its like"
            if isinstance(connection, (psycopg.Connection, psycopg.AsyncConnection))
            else ""
        )
        raise TypeError(
            f"connection must be a psycopg.{kind.__name__}, not a"
            f" {type(connection).__name__}{advice}"
        )
    return connection
