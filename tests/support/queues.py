"""What is in a queue, and transactions that a test holds open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import tocsin
from tests.support import PATIENCE, open_connection, query, until_query
from tocsin.driver import TrioConnection


@asynccontextmanager
async def open_transaction(dsn: str) -> AsyncIterator[TrioConnection[Any]]:
    """A connection with a transaction that the test ends itself."""
    async with open_connection(dsn) as connection:
        await connection.execute("begin")
        yield connection


async def until_waiting(dsn: str, fragment: str) -> None:
    """Return when a statement with this text waits for other sessions."""
    waiting = (
        "select 1 from pg_stat_activity where datname = current_database() and query like '%%' ||"
        " %s || '%%' and (wait_event_type = 'Lock' or wait_event = 'PgSleep')"
    )
    await until_query(dsn, waiting, fragment)


async def dequeue_into(got: list[tocsin.Message], consumer: tocsin.Consumer) -> None:
    got += await consumer.dequeue(wait=PATIENCE)


TABLES = "messages", "dead_letters", "archive", "workers", "queues"


async def contents(dsn: str) -> dict[str, int]:
    """How many rows there are."""
    return {t: (await query(dsn, f"select count(*)::int from tocsin.{t}"))[0][0] for t in TABLES}


async def everything(dsn: str) -> list[Any]:
    return [await query(dsn, f"select x::text from tocsin.{t} x order by 1") for t in TABLES]


async def fill(store: tocsin.Store, queue: str = "q") -> None:
    """Two ready messages, three delayed, four archived, and a dead letter."""
    await store.queues.ensure(queue)
    async with store.producer(queue) as producer, store.consumer(queue) as consumer:
        await producer.enqueue_many([1, 2, 3, 4], priority=-1)
        await consumer.archive_many(await consumer.dequeue(4))
        await producer.enqueue("poison", max_deliveries=1, priority=-1)
        (poison,) = await consumer.dequeue()
        await poison.release()
        await producer.enqueue_many(["ready"] * 2)
        await producer.enqueue_many(["delayed"] * 3, delay=3600)
