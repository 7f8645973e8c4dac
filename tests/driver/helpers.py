"""What several of the driver's tests need."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeAlias, TypeVar

import trio
from psycopg import pq

from tocsin.driver import TrioConnection

Connection: TypeAlias = TrioConnection[Any]

SAFETY_NET = 30
"""Seconds after which a test that hangs is failed."""


T = TypeVar("T")


def closing(rows: AsyncIterator[T]) -> AbstractAsyncContextManager[AsyncIterator[T]]:
    """Close psycopg's iterator at the end of the block.

    It is a generator, though its type does not say so.
    """
    assert isinstance(rows, AsyncGenerator)
    return aclosing(rows)


async def value(connection: Connection, query: str, parameters: tuple[object, ...] = ()) -> Any:
    """Run a query and return the one value it gives."""
    row = await (await connection.execute(query.encode(), parameters)).fetchone()
    assert row is not None
    return row[0]


async def until(connection: Connection, query: str, parameters: tuple[object, ...] = ()) -> None:
    """Ask until the answer is true."""
    with trio.fail_after(SAFETY_NET):
        while not await value(connection, query, parameters):
            pass


async def until_alone(observer: Connection) -> None:
    """Wait until the observer's session is the only one in this database."""
    await until(
        observer,
        "select count(*) = 1 from pg_stat_activity where datname = current_database() and"
        " backend_type = 'client backend'",
    )


async def until_running(observer: Connection, fragment: str) -> None:
    """Wait until another session runs a statement that contains `fragment`."""
    await until(
        observer,
        "select exists (select from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and state = 'active' and query like %s)",
        (f"%{fragment}%",),
    )


WAIT = "select pg_advisory_xact_lock(1)::text"
"""A statement that runs from `hold` until `let_go`, however slow the machine is."""


async def hold(observer: Connection) -> None:
    """Have `WAIT` wait for the observer."""
    await value(observer, "select pg_advisory_lock(1)::text")


async def let_go(observer: Connection) -> None:
    """Let `WAIT` end."""
    assert await value(observer, "select pg_advisory_unlock(1)")


async def is_idle(connection: Connection) -> bool:
    """Whether nothing is in flight and the connection does what it is told."""
    return (
        not connection.lock.locked()
        and connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
        and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        and await value(connection, "select 1") == 1
    )


def open_files() -> int:
    """How many file descriptors this process has open; 0 where that cannot be told."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
