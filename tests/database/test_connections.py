"""What a store does with its connections: it hands them out, has fewer than it needs,
and takes them back in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

import tocsin
from tests.support import PATIENCE, Handled, open_connection, query, servers, until
from tocsin.driver import TrioConnection


@pytest.fixture
async def limited_dsn(new_role: Callable[..., str], dsn: str) -> str:
    """A database for a role that may have three connections: one that listens, two of
    the pool."""
    role = new_role("limited", options="login connection limit 3")
    name = str(conninfo_to_dict(dsn)["dbname"])
    async with open_connection(dsn) as connection:
        await connection.execute(
            sql.SQL("alter database {} owner to {}").format(
                sql.Identifier(name), sql.Identifier(role)
            )
        )
    return make_conninfo(dsn, user=role, password=servers.PASSWORD)


async def test_handlers_enqueue_with_fewer_connections_than_the_pool_may_have(
    limited_dsn: str,
) -> None:
    async def handle(message: tocsin.Message) -> None:
        await store.produce("out", message.payload, key=str(message.payload))

    handled = Handled(handle)
    async with tocsin.connect(limited_dsn) as store:
        await store.install()
        await store.queues.ensure("q", max_deliveries=1)
        await store.queues.ensure("out")
        await store.produce_many("q", range(40))
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
                await consumer.handle(handled, concurrency=20, once=True)
        assert await store.dead_letters.list("q") == []
        assert len(await store.messages.list("out", limit=100)) == 40
        assert store.statistics().pool.size == 2


async def test_a_connection_is_left_apart_from_the_transactions(limited_dsn: str) -> None:
    """Of the two that the pool can have, only one is for transactions, in which a
    handler enqueues by the other."""

    async def handle(message: tocsin.Message) -> None:
        async with store.transaction() as connection:
            await connection.execute("select pg_sleep(0.01)")
            await store.produce("out", message.payload)

    handled = Handled(handle)
    async with tocsin.connect(limited_dsn) as store:
        await store.install()
        await store.queues.ensure("q", max_deliveries=1)
        await store.queues.ensure("out")
        await store.produce_many("q", range(20))
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
                await consumer.handle(handled, concurrency=20, once=True)
        assert await store.dead_letters.list("q") == []
        assert len(await store.messages.list("out", limit=100)) == 20


async def test_as_many_transactions_as_the_pool_has_connections_but_one(store_dsn: str) -> None:
    running = most = 0

    async def transact() -> None:
        nonlocal running, most
        async with store.transaction():
            running += 1
            most = max(most, running)
            await store.produce("q", 1)
            await go_on.wait()
            running -= 1

    async def three_are_enqueued() -> bool:
        return (await store.queues.metrics("q")).ready >= 3

    go_on = trio.Event()
    async with tocsin.connect(store_dsn, pool_size=4) as store:
        await store.queues.ensure("q")
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(transact)
                await until(three_are_enqueued)
                go_on.set()
        assert most == 3
        assert (await store.queues.metrics("q")).ready == 10


async def test_a_transaction_that_waits_can_be_cancelled(store_dsn: str) -> None:
    async def transact() -> None:
        with scope:
            async with store.transaction():
                pytest.fail("there is no connection for it")

    scope = trio.CancelScope()
    async with tocsin.connect(store_dsn, pool_size=2) as store, trio.open_nursery() as nursery:
        async with store.transaction():
            nursery.start_soon(transact)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        async with store.transaction() as connection:
            assert await (await connection.execute("select 1")).fetchone() == (1,)


async def test_a_transaction_of_a_closed_store(store_dsn: str) -> None:
    async with AsyncExitStack() as stack:
        async with tocsin.connect(store_dsn) as store:
            await stack.enter_async_context(store.transaction())
        with pytest.raises(tocsin.TocsinError, match="closed"):
            async with store.transaction():
                pytest.fail("it is closed")


async def test_without_any_connection_callers_are_told(
    limited_dsn: str, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 30  # they wait for half a minute
    async with tocsin.connect(limited_dsn, pool_size=2) as store:
        await store.install()
        await store.queues.ensure("q")
        async with store.transaction() as connection:
            connection.finish()  # its own fault
            others = [await TrioConnection.connect(limited_dsn) for _ in range(3)]
            with pytest.raises(tocsin.ConnectionLost):
                await store.produce("q", 1)
            for other in others:
                other.finish()


async def test_a_connection_that_was_just_closed_is_replaced_at_the_limit(limited_dsn: str) -> None:
    """Its session counts until the server has ended it."""
    async with tocsin.connect(limited_dsn, pool_size=2) as store:
        await store.install()
        await store.queues.ensure("q")
        others = [await TrioConnection.connect(limited_dsn) for _ in range(2)]
        for n in range(20):
            async with store.transaction() as connection:
                await connection.close()
            await store.produce("q", n)
        for other in others:
            other.finish()


async def set_role(connection: TrioConnection[Any], role: str) -> None:
    await connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))


async def set_read_only(connection: TrioConnection[Any], role: str) -> None:
    await connection.execute("set session characteristics as transaction read only")


async def set_a_timeout(connection: TrioConnection[Any], role: str) -> None:
    await connection.execute("set statement_timeout = '1min'")


async def set_the_isolation_level(connection: TrioConnection[Any], role: str) -> None:
    await connection.execute("set default_transaction_isolation = serializable")


async def set_the_search_path(connection: TrioConnection[Any], role: str) -> None:
    await connection.execute("create temporary table pages (n int)")
    await connection.execute("set search_path = pg_temp")


async def set_attributes(connection: TrioConnection[Any], role: str) -> None:
    connection.row_factory = dict_row
    connection.cursor_factory = psycopg.AsyncRawCursor
    connection.prepare_threshold = 0


@pytest.mark.parametrize(
    "change",
    [
        set_role,
        set_read_only,
        set_a_timeout,
        set_the_isolation_level,
        set_the_search_path,
        set_attributes,
    ],
)
async def test_what_the_user_of_a_transaction_sets_is_met_by_no_other_borrower(
    change: Callable[[TrioConnection[Any], str], Awaitable[None]],
    store_dsn: str,
    new_role: Callable[..., str],
) -> None:
    async def describe() -> object:
        async with store.transaction() as connection:
            cursor = await connection.execute(
                "select current_user::text, current_setting('search_path'),"
                " to_regclass('pg_temp.pages'), current_setting('statement_timeout'),"
                " current_setting('default_transaction_read_only'),"
                " current_setting('default_transaction_isolation')"
            )
            return await cursor.fetchall()

    role = new_role("limited")
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q")
        before = await describe()
        async with store.transaction() as connection:
            await change(connection, role)
        await store.produce("q", 1)
        assert (await store.queues.metrics("q")).ready == 1
        assert await describe() == before
        # It was one connection all the time.
        assert store.statistics().pool.opened == 1


async def test_a_transaction_that_is_rolled_back_leaves_nothing_either(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store:
        async with store.transaction() as connection:
            before = await (await connection.execute("show statement_timeout")).fetchone()
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with store.transaction() as connection:
                await connection.execute("commit")
                await connection.execute("set statement_timeout = '1min'")
                await connection.execute("select 1 / 0")
        with trio.CancelScope() as scope:
            async with store.transaction() as connection:
                await connection.execute("commit")
                await connection.execute("set statement_timeout = '1min'")
                scope.cancel()
        async with store.transaction() as connection:
            assert await (await connection.execute("show statement_timeout")).fetchone() == before


async def test_tocsins_own_statements_are_not_followed_by_a_reset(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q")
        await store.produce("q", 1)
        last = (
            "select query from pg_stat_activity where datname = current_database() and pid <>"
            " pg_backend_pid() and query like '%enqueue%'"
        )
        assert len(await query(store_dsn, last)) == 1


async def test_an_error_of_another_connection_leaves_the_lent_one_alone(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store, open_connection(store_dsn) as another:
        with pytest.raises(psycopg.errors.AdminShutdown):
            async with store.transaction() as connection:
                pid = another.info.backend_pid
                await connection.execute("select pg_terminate_backend(%s, 10000)", (pid,))
                await another.execute("select 1")
        assert not connection.closed
        assert store.statistics().pool.broken == 0


async def test_an_error_of_the_lent_connection_is_an_outage(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store, open_connection(store_dsn) as another:
        with pytest.raises(tocsin.ConnectionLost) as lost:
            async with store.transaction() as connection:
                pid = connection.info.backend_pid
                await another.execute("select pg_terminate_backend(%s, 10000)", (pid,))
                await connection.execute("select 1")
        assert isinstance(lost.value.__cause__, psycopg.errors.AdminShutdown)
        assert store.statistics().pool.broken == 1


async def test_a_transaction_that_its_user_makes_read_only_costs_no_connection(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn) as store:
        async with store.transaction(), store.transaction():
            pass  # so that one is idle
        opened = store.statistics().pool.opened
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with store.transaction() as connection:
                await connection.execute("set transaction read only")
                await connection.execute("create table pages (n int)")
        assert not connection.closed
        statistics = store.statistics().pool
        assert (statistics.broken, statistics.opened) == (0, opened)
