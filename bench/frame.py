"""Give the scenarios their size and their databases.

Each scenario and each floor has its own database. Up to PostgreSQL 18, a NOTIFY wakes
every listening backend of its database, so an idle consumer in the database of a floor
would affect the floor.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Any, TypeAlias, TypeVar

import attrs
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

import tocsin
from tocsin.driver import TrioConnection

from .results import Result

T = TypeVar("T")

CLEANUP_WITHIN = 10.0
"""Maximum number of seconds for dropping a database after a cancellation."""


class Size(IntEnum):
    """The size of a run."""

    FULL = 0
    """For figures to be recorded."""
    QUICK = 1
    """For a first impression of the figures."""
    SMOKE = 2
    """For a test that the benchmarks work."""


@attrs.frozen
class Bench:
    """The environment of a scenario."""

    dsn: str
    """Connection string of a server whose role may create databases."""
    size: Size
    """How much to measure."""
    note: Callable[[str], None]
    """Tells the user what is left out, and why."""

    def pick(self, full: T, quick: T, smoke: T) -> T:
        """Return the value for this size."""
        return (full, quick, smoke)[self.size]

    @asynccontextmanager
    async def bare_database(self, prepare: bytes = b"") -> AsyncIterator[str]:
        """Yield the connection string of a new database.

        The given statements are run in it first. The database is dropped at the end of
        the block, also after a cancellation.
        """
        name = f"tocsin_bench_{secrets.token_hex(6)}"
        await execute(
            self.dsn, sql.SQL("create database {} template template0").format(sql.Identifier(name))
        )
        try:
            dsn = make_conninfo(self.dsn, dbname=name)
            if prepare:
                await execute(dsn, prepare)
            yield dsn
        finally:
            with trio.move_on_after(CLEANUP_WITHIN, shield=True):
                await execute(
                    self.dsn, sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
                )

    @asynccontextmanager
    async def store_database(self, *queues: str) -> AsyncIterator[str]:
        """Yield the connection string of a new database with Tocsin and these queues.

        The database is dropped at the end of the block.
        """
        async with self.bare_database() as dsn:
            async with tocsin.connect(dsn) as store:
                await store.install()
                for queue in queues:
                    await store.queues.create(queue)
                # Creates the partitions of the archive, which exist after a minute of
                # normal operation.
                await store.maintain()
            yield dsn


Scenario: TypeAlias = Callable[[Bench], Awaitable[list[Result]]]


async def execute(
    dsn: str, statement: bytes | sql.Composed, *parameters: object
) -> list[tuple[Any, ...]]:
    """Run one statement on a new connection, and return its rows.

    Cancellation:
        Atomic.
    """
    connection: TrioConnection[Any] = await TrioConnection.connect(dsn, autocommit=True)
    try:
        cursor = await connection.execute(statement, parameters or None)
        return await cursor.fetchall() if cursor.description else []
    finally:
        await connection.close()
