"""Tocsin's statements on the caller's connection, in the caller's transaction.

A program calls them with blocking psycopg, or with async psycopg on any event loop. A
task of trio's has `fetch_value`: it drives Tocsin's own connections itself, and uses a
blocking one in a thread. The connection stays as it is: its cursor and row factories do
not count, and the caller commits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import tuple_row

from tocsin.driver import TrioConnection
from tocsin.errors import SchemaMissing

from .blocking_connection import run_blocking
from .client import Connection
from .error_mapping import is_read_only, translate
from .schema import Schema

Blocking: TypeAlias = psycopg.Connection[Any]
Async: TypeAlias = psycopg.AsyncConnection[Any]
AnyConnection: TypeAlias = Connection | Blocking
"""What a statement can be run on in the caller's transaction."""


async def fetch_value(
    connection: AnyConnection, schema: Schema, statement: str, parameters: Sequence[object]
) -> Any:
    """Run a statement that gives one value, and return the value.

    Args:
        connection: The caller's connection, in a transaction or not.
        schema: The schema that takes the place of ``tocsin`` in the statement.
        statement: The statement, written for the schema ``tocsin``.
        parameters: The values of its placeholders.

    Raises:
        TocsinError: The database refuses the statement, or is not available.
        TypeError: trio cannot drive the connection.

    Cancellation:
        Atomic.
    """
    if isinstance(connection, psycopg.Connection):
        return await run_blocking(
            connection, partial(call, connection, schema, statement, parameters)
        )
    return await call_async(check_driven_by_trio(connection), schema, statement, parameters)


def check_connection(connection: AnyConnection) -> None:
    """Check that a connection can be used from trio.

    Raises:
        TypeError: It cannot.
    """
    if not isinstance(connection, psycopg.Connection):
        check_driven_by_trio(connection)


def check_driven_by_trio(connection: Connection) -> Connection:
    """Return the connection if trio can drive it.

    Raises:
        TypeError: trio cannot drive it.
    """
    if not isinstance(connection, TrioConnection):
        raise TypeError(
            "connection must be one of Tocsin's (Store.transaction, tocsin.driver) or a blocking"
            f" psycopg.Connection, not {type(connection).__name__}"
        )
    return connection


def call(connection: Blocking, schema: Schema, statement: str, parameters: Sequence[object]) -> Any:
    """Run a statement that gives one value, and return the value.

    The statement is written for the schema ``tocsin``.

    Raises:
        TocsinError: The database refuses the statement, or is not available.
    """
    with raising_ours(connection, schema):
        return fetch(connection, schema.render(statement), parameters)


async def call_async(
    connection: Async, schema: Schema, statement: str, parameters: Sequence[object]
) -> Any:
    """Run a statement as `call` does, on a connection that trio drives.

    Cancellation:
        Atomic.
    """
    with raising_ours(connection, schema):
        return await fetch_async(connection, schema.render(statement), parameters)


def fetch(connection: Blocking, statement: str, parameters: Sequence[object]) -> Any:
    """Run a statement that gives one value, and return the value.

    Raises:
        psycopg.Error: The statement has failed.
    """
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    (value,) = cursor.execute(*_in_any_encoding(connection, statement, parameters)).fetchone() or (
        None,
    )
    return value


async def fetch_async(connection: Async, statement: str, parameters: Sequence[object]) -> Any:
    """Run a statement as `fetch` does, on a connection that trio drives.

    Cancellation:
        Atomic.
    """
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    (value,) = await (
        await cursor.execute(*_in_any_encoding(connection, statement, parameters))
    ).fetchone() or (None,)
    return value


def call_rows(
    connection: Blocking, schema: Schema, statement: str, parameters: Sequence[object]
) -> list[tuple[Any, ...]]:
    """Run a statement, and return its rows.

    The statement is written for the schema ``tocsin``.

    Raises:
        TocsinError: The database refuses the statement, or is not available.
    """
    with raising_ours(connection, schema):
        cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        return cursor.execute(schema.render(statement).encode(), parameters).fetchall()


async def call_rows_async(
    connection: Async, schema: Schema, statement: str, parameters: Sequence[object]
) -> list[tuple[Any, ...]]:
    """Run a statement as `call_rows` does, on an async connection.

    Cancellation:
        Atomic.
    """
    with raising_ours(connection, schema):
        cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        await cursor.execute(schema.render(statement).encode(), parameters)
        return await cursor.fetchall()


def _in_any_encoding(
    connection: Blocking | Async, statement: str, parameters: Sequence[object]
) -> tuple[bytes, Sequence[object]]:
    """Return a statement and parameters for the encoding of the caller's connection.

    An encoding other than UTF-8 may lack the characters of a parameter, or the server
    may read different ones. So the statement carries the parameter's UTF-8 in
    hexadecimal, and the server turns it into a text of the database's encoding.
    """
    foreign = [isinstance(p, str) and not p.isascii() for p in parameters]
    if connection.info.encoding == "utf-8" or not any(foreign):
        return statement.encode(), parameters
    first, *rest = statement.split("%s")
    written = "".join(
        [
            first,
            *((_HEXADECIMAL if f else "%s") + part for f, part in zip(foreign, rest, strict=True)),
        ]
    )
    return written.encode(), [
        p.encode().hex() if isinstance(p, str) and f else p
        for f, p in zip(foreign, parameters, strict=True)
    ]


_HEXADECIMAL = "pg_catalog.convert_from(pg_catalog.decode(%s, 'hex'), 'UTF8')"


@contextmanager
def raising_ours(connection: Blocking | Async, schema: Schema) -> Iterator[None]:
    """Raise Tocsin's errors instead of psycopg's."""
    try:
        yield
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction) as error:
        if error.diag.context is not None:  # the error comes from within a function
            raise
        raise SchemaMissing(schema.name) from error
    except psycopg.Error as error:
        translated = translate(error, _address(connection), own=is_read_only(error, connection))
        if translated is error:
            raise
        raise translated from error


def _address(connection: Blocking | Async) -> str:
    try:
        return f"{connection.info.host}:{connection.info.port}"
    except psycopg.OperationalError:
        return "an unknown address, because the connection is closed"
