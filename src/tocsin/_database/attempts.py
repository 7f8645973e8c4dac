"""Attempts at a statement: its parameters, its end, and since when all have failed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import trio

from tocsin.driver import Pool, TrioConnection
from tocsin.errors import ConnectionLost, TocsinError
from tocsin.telemetry.events import ConnectionDown, ConnectionUp, Events

from .error_mapping import is_useless

ENDED_ALONE = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.SerializationFailure,
    psycopg.errors.TransactionTimeout,
)
"""What ends one statement and says nothing of the next: a deadlock, a lock that was not
free in time, a cancellation or a timeout of the statement or its transaction, a
conflict."""


class Outage:
    """A period in which every attempt fails.

    Its begin and its end are events.
    """

    def __init__(self, events: Events) -> None:
        self._since: float | None = None
        self._events = events

    def failed(self, error: Exception, cause: BaseException | None = None) -> None:
        """Record an attempt that failed, if the next one may fail for the same reason.

        Args:
            error: The error of the attempt, as Tocsin raises it.
            cause: The error of the connection; None: there was no connection.
        """
        if not isinstance(error, ConnectionLost) or isinstance(cause, ENDED_ALONE):
            return
        if self._since is None:
            self._since = trio.current_time()
            if self._events.wants(ConnectionDown):
                self._events.emit(ConnectionDown(connection="pool", reason=str(error)))

    def succeeded(self) -> None:
        """Record an attempt that succeeded."""
        if self._since is not None:
            self._since = None
            if self._events.wants(ConnectionUp):
                self._events.emit(ConnectionUp(connection="pool"))

    @property
    def duration(self) -> float | None:
        """Seconds since the first failure; None while attempts succeed."""
        return None if self._since is None else trio.current_time() - self._since


def encode(parameters: Sequence[str | None]) -> list[bytes | None]:
    """Return the parameters of a statement as the server reads them."""
    return [None if p is None else p.encode() for p in parameters]


def store_closed() -> TocsinError:
    """Return the error of a store whose block has been left."""
    return TocsinError(
        "this store is closed: its `async with tocsin.connect(...)` block has been left"
    )


def drop_if_useless(
    pool: Pool[Any], connection: TrioConnection[Any], error: psycopg.Error, *, own: bool = True
) -> None:
    """Close a connection after an error that makes a new one a better one.

    The pool's idle connections that have the same fault are closed, too.

    Args:
        pool: The pool of the connection.
        connection: The connection that the error came from.
        error: The error.
        own: Whether the transaction was Tocsin's. The user may have made another one
            read-only, which is no fault.
    """
    read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
    if is_useless(error) and (own or not read_only):
        connection.finish()
        if read_only:
            pool.drop_idle()


@asynccontextmanager
async def opened(
    connect: Callable[[], Awaitable[TrioConnection[Any]]],
) -> AsyncIterator[TrioConnection[Any]]:
    """Open a connection for the block.

    Cancellation:
        The connection is closed.
    """
    connection = await connect()
    try:
        yield connection
    finally:
        connection.finish()
