"""Locks that a test holds, and handlers that hang."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from tests.support import move_clock, open_connection, query
from tocsin.driver import TrioConnection

SOON = 5
"""Seconds for what should happen at once: a net for tests that show that something
never happens."""


@asynccontextmanager
async def holding(
    dsn: str, statement: str, *parameters: object
) -> AsyncIterator[TrioConnection[Any]]:
    """Hold the locks that a statement takes for as long as the block lasts."""
    async with open_connection(dsn) as connection, connection.transaction():
        await connection.execute(statement.encode(), parameters or None)
        yield connection


async def hang(_: object) -> None:
    await trio.sleep_forever()


async def die_holding(dsn: str, payload: str) -> None:
    """Make a process that died long ago while it held a message of the queue q.

    The server has been up since."""
    await query(dsn, "insert into tocsin.uptime (since) values (now() - interval '1 day')")
    await move_clock(dsn, 3600)
    await query(
        dsn,
        "insert into tocsin.processes (hostname, pid, version, every, lifeline, started_at,"
        " heartbeat_at) values ('h', 1, 'v', '1 s', nextval('tocsin.lifelines'), now(), now())",
    )
    await query(
        dsn,
        "select tocsin.register_worker('q', 'consumer', 'dead', (select max(id) from"
        " tocsin.processes), 'h', 1, 'v')",
    )
    await query(dsn, "select tocsin.enqueue('q', %s)", payload)
    await query(dsn, "select tocsin.claim(id, registration, 1) from tocsin.workers")
