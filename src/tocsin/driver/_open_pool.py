"""The block that a pool is open for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
from psycopg.rows import Row

from tocsin._concurrency.nursery import open_nursery_bare

from ._connection import TrioConnection
from ._member import Reset
from ._pool import Pool

__all__ = ["open_pool"]


@asynccontextmanager
async def open_pool(
    connect: Callable[[], Awaitable[TrioConnection[Row]]],
    *,
    min_size: int = 1,
    max_size: int = 8,
    max_idle: float = 10.0,
    max_lifetime: float = 3600.0,
    timeout: float = 30.0,  # noqa: ASYNC109 (for each checkout, not for this call)
    reconnect_timeout: float = 30.0,
    reconnect_on: type[Exception] = psycopg.OperationalError,
    reset: Reset[Row] | None = TrioConnection.reset_session,
) -> AsyncIterator[Pool[Row]]:
    """Make a pool of connections for the block.

    When the block ends, all connections are closed; those that are checked out are
    closed when they are returned.

    Args:
        connect: Opens a connection.
        min_size: Connections that are opened at the start, at the same time, and kept.
        max_size: The most connections; more than ``min_size`` are opened when they are
            needed.
        max_idle: Seconds without use after which a connection above ``min_size`` is
            closed.
        max_lifetime: Seconds after which a connection is replaced when it is checked
            out
            or returned; up to a twentieth less, so that not all go at once.
        timeout: Seconds that a task waits at most.
        reconnect_timeout: Seconds for which a pool without any connection tries again
            to open one, with growing pauses, before the task gets the error.
        reconnect_on: Class of the errors after which it tries again. While other
            connections are checked out, the task waits for one of those.
        reset: Resets the session of a connection that was checked out; None leaves it
            as it
            is.

    Raises:
        ValueError: ``min_size`` and ``max_size`` do not fit together.
        Exception: What ``connect`` raises when no connection can be opened at the
            start.

    Cancellation:
        Nothing is left open.
    """
    pool = Pool(
        connect,
        min_size=min_size,
        max_size=max_size,
        max_idle=max_idle,
        max_lifetime=max_lifetime,
        timeout=timeout,
        reconnect_timeout=reconnect_timeout,
        reconnect_on=reconnect_on,
        reset=reset,
    )
    try:
        await pool._fill()
        async with open_nursery_bare() as nursery:
            nursery.start_soon(pool._keep_house)
            yield pool
            nursery.cancel_scope.cancel()
    finally:
        pool._close()
