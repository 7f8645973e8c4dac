"""A database whose default isolation level is another: Tocsin's own connections are at
READ COMMITTED all the same."""

from __future__ import annotations

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import tocsin
from tests.support import open_connection, query, until_blocked


@pytest.fixture(params=["repeatable read", "serializable"])
async def strict_dsn(request: pytest.FixtureRequest, store_dsn: str) -> str:
    """A database at this level, unless a session says otherwise."""
    name = str(conninfo_to_dict(store_dsn)["dbname"])
    async with open_connection(store_dsn) as connection:
        statement = sql.SQL("alter database {} set default_transaction_isolation = {}")
        await connection.execute(statement.format(sql.Identifier(name), sql.Literal(request.param)))
    assert await query(store_dsn, "show transaction_isolation") == [(request.param,)]
    return store_dsn


async def test_own_connections_are_at_read_committed(strict_dsn: str) -> None:
    async with tocsin.connect(strict_dsn) as store:
        await store.queues.ensure("q")
        async with store.consumer("q"), store.transaction() as connection:
            assert await (await connection.execute("show transaction_isolation")).fetchone() == (
                "read committed",
            )
        async with store.transaction() as connection:
            # the test that wants it can have it
            await connection.execute("set transaction isolation level repeatable read")
            assert await (await connection.execute("show transaction_isolation")).fetchone() == (
                "repeatable read",
            )


async def test_a_key_that_another_takes_at_the_same_moment_gives_its_message(
    strict_dsn: str,
) -> None:
    ids = list[int]()

    async def produce() -> None:
        ids.append(await store.produce("q", 2, key="k"))

    async with tocsin.connect(strict_dsn) as store, open_connection(strict_dsn) as other:
        await store.queues.ensure("q")
        await other.execute("begin")
        await other.execute("select tocsin.enqueue('q', '1', key => 'k')")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            await until_blocked(strict_dsn)
            await other.execute("commit")
        assert [m.id for m in await store.messages.list("q")] == ids


async def test_a_callers_transaction_at_another_level_gets_a_serialization_failure(
    strict_dsn: str,
) -> None:
    """The guide for producers says so."""
    async with tocsin.connect(strict_dsn) as store, open_connection(strict_dsn) as own:
        await store.queues.ensure("q")
        await own.execute("begin")
        await own.execute("select 1 from tocsin.queues")
        await store.produce("q", 1, key="k")
        await tocsin.enqueue_async(own, "q", 2)
        with pytest.raises(psycopg.errors.SerializationFailure):
            await tocsin.enqueue_async(own, "q", 2, key="k")
        await own.execute("rollback")
        assert [m.payload for m in await store.messages.list("q")] == [1]


async def test_many_consumers_and_producers_meet_no_serialization_failure(strict_dsn: str) -> None:
    handled = list[int]()

    async def handle(message: tocsin.Message) -> None:
        handled.append(message.payload)
        await trio.lowlevel.checkpoint()

    async def consume(store: tocsin.Store) -> None:
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended):
                await consumer.handle(handle, once=True)

    async with tocsin.connect(strict_dsn) as store:
        await store.queues.ensure("q")
        await store.produce_many("q", range(300))
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(consume, store)
    assert sorted(handled) == list(range(300))


async def test_a_queue_is_deleted_at_read_committed_only(strict_dsn: str) -> None:
    """Another snapshot would overlook what came after it."""
    async with tocsin.connect(strict_dsn) as store, open_connection(strict_dsn) as own:
        await store.queues.ensure("q")
        await own.execute("begin")
        await own.execute("select 1 from tocsin.queues")
        await store.produce("q", 1)
        with pytest.raises(
            psycopg.Error, match="cannot be deleted at the isolation level"
        ) as refused:
            await own.execute("select tocsin.delete_queue('q')")
        assert refused.value.sqlstate == "TC022"
        await own.execute("rollback")
        await own.execute("begin isolation level read committed")
        await own.execute("select tocsin.delete_queue('q', force => true)")
        await own.execute("commit")
        assert await store.queues.list() == []
