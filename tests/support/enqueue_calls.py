"""Concurrent calls of `enqueue`, and a gate before which their statements stand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
import trio.testing

import tocsin
from tests.support import open_connection, query, until, until_query

BACKENDS = (
    "select pid from pg_stat_activity where datname = current_database() and wait_event_type ="
    " 'Lock' and query like '%%' || %s || '%%'"
)


class Gate:
    """Keeps every session from inserting, until it is opened."""

    def __init__(self, dsn: str, opened: trio.Event) -> None:
        self._dsn = dsn
        self._opened = opened

    async def wait_for(self, fragment: str) -> int:
        """Wait until a statement stands before the gate, and return its session."""
        rows = await until_query(self._dsn, BACKENDS, fragment)
        ((pid,),) = rows
        return int(pid)

    async def kill(self, fragment: str) -> None:
        """End the session of the statement that stands before the gate."""
        pid = await self.wait_for(fragment)
        await query(self._dsn, "select pg_terminate_backend(%s)", pid)

    def open(self) -> None:
        self._opened.set()


@asynccontextmanager
async def closed_gate(dsn: str) -> AsyncIterator[Gate]:
    async def hold(task_status: trio.TaskStatus[None]) -> None:
        async with open_connection(dsn) as connection, connection.transaction():
            await connection.execute("lock table tocsin.messages in share mode")
            task_status.started()
            await opened.wait()

    opened = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        yield Gate(dsn, opened)
        opened.set()


class Calls:
    """Calls of `enqueue`, made one after the other without waiting for any, and what
    became of each."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.results: dict[Any, int | Exception] = {}
        self.scopes: dict[Any, trio.CancelScope] = {}

    async def call(self, name: Any, enqueue: Callable[[], Awaitable[int]]) -> None:
        async def run() -> None:
            with trio.CancelScope() as self.scopes[name]:
                try:
                    self.results[name] = await enqueue()
                except Exception as error:
                    self.results[name] = error

        self._nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()

    async def produce(self, store: tocsin.Store, *payloads: Any, **options: Any) -> None:
        for payload in payloads:
            await self.call(payload, partial(store.produce, "q", payload, **options))

    async def wait_for(self, *names: Any) -> list[int | Exception]:
        await until(lambda: self.results.keys() >= set(names))
        return [self.results[name] for name in names]
