"""Enqueueing on a connection of the caller's, in the caller's transaction: blocking psycopg, or psycopg with any event loop.

Neither a store nor trio is needed, so this also serves plain scripts, web frameworks and programs on asyncio; a `Producer` that is given
a connection comes here too. The connection stays as it is: its cursor and row factories do not count, and whether and when to commit is
the caller's business.

A single message is one statement, without a savepoint: refused by the database, it leaves the transaction failed, as any statement does.
A batch has a savepoint, since it may be several statements and is enqueued as a whole or not at all; so after a refusal the transaction
can go on. (A savepoint for each message would be two more trips to the server, and from the sixty-fifth on make the transaction dear for
everybody else.)

Each function is there twice, for the two kinds of connections; what is sent comes from ``draft.py`` in either case.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias, Unpack

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from .draft import ENQUEUE, ENQUEUE_MANY, Batch, BatchOptions, Draft, MessageOptions, draft_message
from .errors import SchemaMissing, is_read_only, translate
from .schema import Schema

Blocking: TypeAlias = psycopg.Connection[Any]
Async: TypeAlias = psycopg.AsyncConnection[Any]


def enqueue(connection: Blocking, queue: str, payload: object, *, schema: str = "tocsin", **options: Unpack[MessageOptions]) -> int:
    """Enqueue one message on a blocking psycopg connection, in its transaction, and return the message's id.

    It is delivered when the transaction commits, which is the caller's business (at once, on a connection in autocommit mode).
    ``schema`` is where Tocsin is installed. The options are those of `Producer.enqueue`: ``delay``, ``at``, ``priority``, ``headers``,
    ``key``, ``expires_in``, ``max_deliveries``.

    Raises `PayloadInvalid`, `ValueError` and `TypeError` before anything is sent. Raises `PayloadTooLarge`, `QueueNotFound`,
    `SchemaMissing`, `ConnectionLost` and psycopg's other errors, which leave the transaction failed, as the error of any statement does:
    roll back, or enqueue in a savepoint (``with connection.transaction():``).
    """
    return send(_check(connection, psycopg.Connection), Schema(schema), queue, draft_message(payload, **options))


def enqueue_many(
    connection: Blocking, queue: str, payloads: Iterable[object], *, schema: str = "tocsin", **options: Unpack[BatchOptions]
) -> list[int]:
    """Enqueue all of the payloads or, on any refusal, none, on a blocking psycopg connection; return their ids in order.

    The payloads are taken from the iterable as they are sent, a few thousand at a time. All options but ``key`` are there.

    Raises what `enqueue` raises; `PayloadInvalid` and `PayloadTooLarge` tell the index. The batch has a savepoint of its own, so that
    the caller's transaction can go on after a refusal.
    """
    return send_batch(_check(connection, psycopg.Connection), Schema(schema), Batch(queue, payloads, **options))


async def enqueue_async(
    connection: Async, queue: str, payload: object, *, schema: str = "tocsin", **options: Unpack[MessageOptions]
) -> int:
    """Like `tocsin.enqueue`, on an async psycopg connection, whatever event loop drives it.

    Raises what that raises. Cancelled, the statement has failed or taken effect within the transaction.
    """
    return await send_async(_check(connection, psycopg.AsyncConnection), Schema(schema), queue, draft_message(payload, **options))


async def enqueue_many_async(
    connection: Async, queue: str, payloads: Iterable[object], *, schema: str = "tocsin", **options: Unpack[BatchOptions]
) -> list[int]:
    """Like `tocsin.enqueue_many`, on an async psycopg connection, whatever event loop drives it.

    Raises what that raises. Cancelled, all are enqueued within the transaction, or none.
    """
    return await send_batch_async(_check(connection, psycopg.AsyncConnection), Schema(schema), Batch(queue, payloads, **options))


# What these have in common with a producer


def call(connection: Blocking, schema: Schema, statement: str, parameters: Sequence[object]) -> Any:
    """Run a statement that gives one value, written for the schema ``tocsin``, and return the value."""
    with _errors(connection, schema):
        return _fetch(connection, schema.render(statement), parameters)


async def call_async(connection: Async, schema: Schema, statement: str, parameters: Sequence[object]) -> Any:
    """Like `call`. Cancelled, the statement has failed or taken effect."""
    with _errors(connection, schema):
        return await _fetch_async(connection, schema.render(statement), parameters)


def send(connection: Blocking, schema: Schema, queue: str, draft: Draft) -> int:
    """Enqueue one message."""
    return int(call(connection, schema, ENQUEUE, draft.parameters(queue)))


async def send_async(connection: Async, schema: Schema, queue: str, draft: Draft) -> int:
    """Enqueue one message. Cancelled, the statement has failed or taken effect."""
    return int(await call_async(connection, schema, ENQUEUE, draft.parameters(queue)))


def send_batch(connection: Blocking, schema: Schema, batch: Batch) -> list[int]:
    """Enqueue a batch."""
    ids: list[int] = []
    with _errors(connection, schema), _as_one(connection, batch):
        for parameters in batch.statements():
            ids += _fetch(connection, schema.render(ENQUEUE_MANY), parameters)
    return ids


async def send_batch_async(connection: Async, schema: Schema, batch: Batch) -> list[int]:
    """Enqueue a batch. Cancelled, all or none are enqueued."""
    ids: list[int] = []
    with _errors(connection, schema):
        async with _as_one_async(connection, batch):
            for parameters in batch.statements():
                ids += await _fetch_async(connection, schema.render(ENQUEUE_MANY), parameters)
    return ids


def _fetch(connection: Blocking, statement: str, parameters: Sequence[object]) -> Any:
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    (value,) = cursor.execute(*_in_any_encoding(connection, statement, parameters)).fetchone() or (None,)
    return value


async def _fetch_async(connection: Async, statement: str, parameters: Sequence[object]) -> Any:
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    (value,) = await (await cursor.execute(*_in_any_encoding(connection, statement, parameters))).fetchone() or (None,)
    return value


def _in_any_encoding(connection: Blocking | Async, statement: str, parameters: Sequence[object]) -> tuple[bytes, Sequence[object]]:
    """Return the statement and its parameters as they can be sent in the encoding of the caller's connection.

    In another than UTF-8 the characters of a parameter may be missing, or the server may take them for others. So the server is sent the
    parameter's UTF-8 in hexadecimal, and told to make a text of it in the database's own encoding.
    """
    foreign = [isinstance(p, str) and not p.isascii() for p in parameters]
    if connection.info.encoding == "utf-8" or not any(foreign):
        return statement.encode(), parameters
    first, *rest = statement.split("%s")
    written = "".join([first, *((_HEXADECIMAL if f else "%s") + part for f, part in zip(foreign, rest, strict=True))])
    return written.encode(), [p.encode().hex() if isinstance(p, str) and f else p for f, p in zip(foreign, parameters, strict=True)]


_HEXADECIMAL = "pg_catalog.convert_from(pg_catalog.decode(%s, 'hex'), 'UTF8')"


@contextmanager
def _as_one(connection: Blocking, batch: Batch) -> Iterator[None]:
    if _commits_by_itself(connection, batch):
        yield
        return
    if _is_about_to_begin(connection):
        connection.execute("select")  # with the BEGIN that psycopg puts before it
    with connection.transaction():
        yield


@asynccontextmanager
async def _as_one_async(connection: Async, batch: Batch) -> AsyncIterator[None]:
    if _commits_by_itself(connection, batch):
        yield
        return
    if _is_about_to_begin(connection):
        await connection.execute("select")
    async with connection.transaction():
        yield


def _commits_by_itself(connection: Blocking | Async, batch: Batch) -> bool:
    return batch.one_statement and connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


def _is_about_to_begin(connection: Blocking | Async) -> bool:
    """Whether the caller's transaction begins with the next statement; psycopg's transaction() would make it its own, and commit it."""
    return not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


@contextmanager
def _errors(connection: Blocking | Async, schema: Schema) -> Iterator[None]:
    """Raise Tocsin's errors instead of psycopg's."""
    try:
        yield
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction) as error:
        if error.diag.context is not None:  # it comes from within a function, so there is one
            raise
        raise SchemaMissing(schema.name) from error
    except psycopg.Error as error:
        raise translate(error, _address(connection), own=is_read_only(error, connection)) from error


def _address(connection: Blocking | Async) -> str:
    try:
        return f"{connection.info.host}:{connection.info.port}"
    except psycopg.OperationalError:
        return "an address unknown, for the connection is closed"


def _check(connection: Any, kind: type[Any]) -> Any:
    if not isinstance(connection, kind):
        other = "enqueue" if isinstance(connection, psycopg.Connection) else "enqueue_async"
        advice = f"; use tocsin.{other} and its like" if isinstance(connection, (psycopg.Connection, psycopg.AsyncConnection)) else ""
        raise TypeError(f"connection must be a psycopg.{kind.__name__}, not a {type(connection).__name__}{advice}")
    return connection
