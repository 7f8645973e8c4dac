"""What several test files need: a store to test, a clock that moves, queries of the
tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from inspect import isawaitable
from time import monotonic
from typing import Any

import psycopg
import trio
import trio.testing
from psycopg import pq, sql

import tocsin
from tocsin._database.schema import functions
from tocsin._queue.consuming.failure import Failure
from tocsin.driver import TrioConnection
from tocsin.telemetry.events import EventT, Subscription

PATIENCE = 30
"""Seconds after which a test that waits for something gives up: a net, not an
expectation."""

ENDS_WITHIN = 90
"""The same for a process that is to end: on a busy machine Python starts slowly."""


@asynccontextmanager
async def open_connection(dsn: str) -> AsyncIterator[TrioConnection[Any]]:
    """A connection of the test's own."""
    connection: TrioConnection[Any] = await TrioConnection.connect(dsn, autocommit=True)
    try:
        yield connection
    finally:
        await connection.close()


async def query(dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own."""
    async with open_connection(dsn) as connection:
        cursor = await connection.execute(statement.encode(), parameters or None)
        result = cursor.pgresult
        # also the rows of a query without columns, which has no description
        has_rows = result is not None and result.status == pq.ExecStatus.TUPLES_OK
        return await cursor.fetchall() if has_rows else []


async def until(condition: Callable[[], object]) -> None:
    """Ask until the answer is true; a condition may be a coroutine function."""
    with trio.fail_after(PATIENCE):
        while True:
            answer = condition()
            if await answer if isawaitable(answer) else answer:
                return
            await trio.lowlevel.checkpoint()


async def until_query(
    dsn: str,
    statement: str,
    *parameters: object,
    gives: list[tuple[Any, ...]] | None = None,
    patience: float = PATIENCE,
) -> list[tuple[Any, ...]]:
    """Run one statement over one connection until it gives these rows, or any row;
    return them.

    The pause is the server's, so that it is short under a test's clock as well, and
    leaves the processor to what is waited for.
    """
    deadline = monotonic() + patience
    async with open_connection(dsn) as connection:
        while True:
            rows = await (
                await connection.execute(statement.encode(), parameters or None)
            ).fetchall()
            if rows if gives is None else rows == gives:
                return rows
            assert monotonic() < deadline, f"{statement} still gives {rows}"
            await connection.execute(b"select pg_catalog.pg_sleep(0.005)")


async def until_true(dsn: str, condition: str, *parameters: object) -> None:
    """Run ``select condition`` until it gives true."""
    await until_query(dsn, f"select {condition}", *parameters, gives=[(True,)])


async def until_blocked(dsn: str, statement: str = "") -> None:
    """Return when a statement with this text waits for a lock."""
    await until_query(
        dsn,
        "select 1 from pg_stat_activity where datname = current_database() and wait_event_type ="
        " 'Lock' and query like '%%' || %s || '%%'",
        statement,
    )


async def next_event(
    events: Subscription[EventT], where: Callable[[EventT], object] = lambda _: True
) -> EventT:
    """Wait for the next event for which this holds."""
    with trio.fail_after(PATIENCE):
        async for event in events:
            if where(event):
                return event
    raise AssertionError("the store was closed before the event")


async def move_clock(dsn: str, seconds: float) -> None:
    """Move the schema's clock, and ring for each queue, so that consumers claim."""
    async with open_connection(dsn) as connection:
        await connection.execute(
            sql.SQL(
                "create or replace function tocsin._clock() returns timestamptz language sql"
                " volatile parallel safe as $$ select pg_catalog.clock_timestamp() + interval '{}"
                " seconds' $$"
            ).format(sql.Literal(seconds))
        )
        await connection.execute("select tocsin._ring(id) from tocsin.queues")


assert "tocsin._clock()" in functions()


def failed_with(text: str) -> Failure:
    """Return what Tocsin makes of a handler's error with this text."""
    return Failure(Exception(text), "handler_failed", None, text, "a traceback", printable=True)


class Handled:
    """A handler that notes what it gets, and lets a test wait for it."""

    def __init__(self, then: Callable[[tocsin.Message], Awaitable[object]] | None = None) -> None:
        self.messages: list[tocsin.Message] = []
        self._then = then
        self._changed = trio.Event()

    async def __call__(self, message: tocsin.Message) -> None:
        self.messages.append(message)
        self._changed.set()
        self._changed = trio.Event()
        if self._then is not None:
            await self._then(message)

    @property
    def payloads(self) -> list[Any]:
        return [m.payload for m in self.messages]

    async def wait(self, count: int) -> None:
        with trio.fail_after(PATIENCE):
            while len(self.messages) < count:
                await self._changed.wait()


def connect_blocking(dsn: str) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(dsn, autocommit=True)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a plan that the fixture `plans` gives."""
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


async def until_idle(*stores: tocsin.Store) -> None:
    """Return when these stores do nothing but wait for a notification, a known time or
    the next heartbeat.

    A task that waits for the server's answer is blocked as well, but it holds a
    connection of the pool, or a waiter lock is not confirmed yet.
    """
    with trio.fail_after(PATIENCE):
        while True:
            await trio.testing.wait_all_tasks_blocked(0.02)
            if not any(
                s.statistics().pool.in_use
                or (s.statistics().listening and s._process.bell.queues_without_lock())
                for s in stores
            ):
                return


_STATEMENTS = (
    "select query, sum(calls)::int from pg_stat_statements s join pg_database d on d.oid = s.dbid"
    " where d.datname = current_database() and query not like '%%pg_stat_statements%%' group by"
    " query"
)


async def statements(dsn: str) -> dict[str, int]:
    """How often each statement has been run in this database (the fixture
    `dsn_of_quiet_store`)."""
    return dict(await query(dsn, _STATEMENTS))


def since(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """Return how often each statement was run between two such counts."""
    return {
        text: calls - before.get(text, 0)
        for text, calls in now.items()
        if calls != before.get(text, 0)
    }
