"""The psycopg connection of what a program submits on.

That is the connection itself, or an object of another library that has one: a
connection or a session of SQLAlchemy, or the connection of Django. They are recognised
by their attributes, so none of these libraries is imported.
"""

from __future__ import annotations

import inspect
from typing import Any, NoReturn, Protocol, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from tocsin._database.caller_connection import Async, Blocking


class SqlalchemyAsyncConnection(Protocol):
    """SQLAlchemy's ``AsyncConnection``."""

    async def get_raw_connection(self) -> Any:
        """Return the pool's connection, which has the driver's."""


class SqlalchemyAsyncSession(Protocol):
    """SQLAlchemy's ``AsyncSession``."""

    async def connection(self) -> Any:
        """Return the connection of its transaction."""


class SqlalchemySession(Protocol):
    """SQLAlchemy's ``Session``."""

    def connection(self) -> Any:
        """Return the connection of its transaction."""


class HasConnection(Protocol):
    """SQLAlchemy's ``Connection``, or Django's."""

    @property
    def connection(self) -> Any:
        """The driver's connection, or the pool's connection, which has it."""


AsyncTarget: TypeAlias = Async | SqlalchemyAsyncConnection | SqlalchemyAsyncSession
"""What has an async psycopg connection."""
BlockingTarget: TypeAlias = Blocking | HasConnection | SqlalchemySession
"""What has a blocking psycopg connection."""


def check_target(target: object) -> None:
    """Check that this may be what a program submits to, by its attributes.

    Raises:
        TypeError: It is something else, such as an argument of the function.
    """
    known = "jobs", "connection", "get_raw_connection", "pgconn"
    if not any(hasattr(target, name) for name in known):
        raise TypeError(
            "the first argument is the store or the connection to which the job is submitted, not"
            f" {type(target).__name__}; the arguments of the function follow it"
        )


async def unwrap_async(target: object) -> Async:
    """Return the async psycopg connection of a target, for a statement.

    SQLAlchemy commits only a transaction that it has begun itself, so it begins one.

    Raises:
        TypeError: It has none.

    Cancellation:
        Nothing has changed.
    """
    found: Any = target
    if not isinstance(found, psycopg.Connection | psycopg.AsyncConnection):
        if not hasattr(type(found), "get_raw_connection") and inspect.iscoroutinefunction(
            getattr(found, "connection", None)
        ):
            found = await found.connection()
        if inspect.iscoroutinefunction(getattr(found, "get_raw_connection", None)):
            if not found.in_transaction():
                await found.begin()
            found = (await found.get_raw_connection()).driver_connection
    if not isinstance(found, psycopg.AsyncConnection):
        _refuse(target, found, "async", "submit_blocking", psycopg.Connection)
    return found


def unwrap_blocking(target: object) -> Blocking:
    """Return the blocking psycopg connection of a target, as `unwrap_async` does.

    Raises:
        TypeError: It has none.
    """
    found: Any = target
    if not isinstance(found, psycopg.Connection | psycopg.AsyncConnection):
        opened = getattr(found, "connection", found)
        if callable(opened) and not inspect.iscoroutinefunction(opened):
            found = opened()
            opened = getattr(found, "connection", None)
        if hasattr(opened, "driver_connection"):
            if not found.in_transaction():
                found.begin()
            opened = opened.driver_connection
        found = opened
    if not isinstance(found, psycopg.Connection):
        _refuse(target, found, "blocking", "submit", psycopg.AsyncConnection)
    return found


def _refuse(target: object, found: object, wanted: str, other: str, of: type[Any]) -> NoReturn:
    kind = type(target).__name__
    if isinstance(found, of):
        raise TypeError(f"{other} takes a {kind}; this call takes {wanted} connections")
    raise TypeError(
        f"this call takes a psycopg connection that is {wanted}, or an object of SQLAlchemy with"
        f" one, not {kind}; with any other driver, call the SQL function tocsin.submit"
    )


def check_idle(connection: Async | Blocking) -> None:
    """Check that a connection is in no transaction, and so sees later commits.

    Raises:
        RuntimeError: It is in a transaction, or has failed.
    """
    status = connection.info.transaction_status
    if status != TransactionStatus.IDLE:
        raise RuntimeError(
            "a wait for a job needs a connection outside of a transaction, and this one is in the"
            f" state {status.name}; commit first, since no worker sees the job before the commit"
        )
