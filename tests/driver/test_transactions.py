"""Transaction blocks end as psycopg promises, cancelled or not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
import pytest
import trio
from psycopg import pq
from psycopg.pq.abc import PGconn

from tests.driver.helpers import WAIT, Connection, hold, is_idle, let_go, until_running, value
from tests.support.cancel_sweep import cancel_sweep
from tocsin.driver import TrioConnection


@pytest.fixture(autouse=True)
def _table(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table numbers (n int)")


async def numbers(connection: Connection) -> list[int]:
    rows = await (await connection.execute("select n from numbers order by n")).fetchall()
    return [n for (n,) in rows]


async def insert(connection: Connection, n: int) -> None:
    await connection.execute("insert into numbers values (%s)", (n,))


async def insert_and_fail(connection: Connection, n: int) -> None:
    await insert(connection, n)
    await connection.execute("select 1 / 0")


async def insert_and_raise(connection: Connection, n: int, error: Exception) -> None:
    await insert(connection, n)
    raise error


async def test_commit(connection: Connection, observer: Connection) -> None:
    async with connection.transaction() as transaction:
        await insert(connection, 1)
        assert await numbers(observer) == []
    assert transaction.status is transaction.Status.COMMITTED
    assert await numbers(observer) == [1]


async def test_an_exception_rolls_back(connection: Connection) -> None:
    with pytest.raises(ValueError, match="no"):
        async with connection.transaction():
            await insert_and_raise(connection, 1, ValueError("no"))
    assert await numbers(connection) == []
    assert await is_idle(connection)


async def test_a_failed_statement_rolls_back(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with connection.transaction():
            await insert_and_fail(connection, 1)
    assert await numbers(connection) == []
    assert await is_idle(connection)


async def test_nested_blocks_are_savepoints(connection: Connection) -> None:
    async with connection.transaction():
        await insert(connection, 1)
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with connection.transaction("inner"):
                await insert_and_fail(connection, 2)
        async with connection.transaction():
            await insert(connection, 3)
    assert await numbers(connection) == [1, 3]


async def test_a_block_that_cannot_begin_is_an_error(connection: Connection) -> None:
    async def fail_and_go_on() -> None:
        async with connection.transaction():
            with suppress(psycopg.errors.DivisionByZero):
                await insert_and_fail(connection, 1)
            async with connection.transaction():
                pytest.fail("the transaction is aborted")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await fail_and_go_on()
    assert await numbers(connection) == []
    assert await is_idle(connection)


async def test_rollback_exception_ends_the_named_block(connection: Connection) -> None:
    async with connection.transaction():
        await insert(connection, 1)
        async with connection.transaction() as middle:
            await insert(connection, 2)
            async with connection.transaction():
                await insert(connection, 3)
                raise psycopg.Rollback(middle)
    assert await numbers(connection) == [1]


async def test_force_rollback(connection: Connection) -> None:
    async with connection.transaction(force_rollback=True) as transaction:
        await insert(connection, 1)
    assert transaction.status is transaction.Status.ROLLED_BACK_EXPLICITLY
    assert await numbers(connection) == []


async def test_cancelled_in_the_block_is_rolled_back_at_once(
    connection: Connection, observer: Connection
) -> None:
    with trio.CancelScope() as scope:
        async with connection.transaction() as transaction:
            await insert(connection, 1)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert transaction.status is transaction.Status.ROLLED_BACK_WITH_ERROR
    # Not only when the connection is used next: its locks are gone.
    assert (
        await value(observer, "select count(*) from pg_locks where relation = 'numbers'::regclass")
        == 0
    )
    assert await numbers(connection) == []
    assert await is_idle(connection)


async def test_cancelled_after_the_block_is_not_committed(connection: Connection) -> None:
    with trio.CancelScope() as scope:
        async with connection.transaction():
            await insert(connection, 1)
            scope.cancel()
    assert scope.cancelled_caught
    assert await numbers(connection) == []
    assert await is_idle(connection)


async def test_cancelled_savepoint_leaves_the_outer_transaction_in_order(
    connection: Connection,
) -> None:
    async with connection.transaction():
        await insert(connection, 1)
        with trio.CancelScope() as scope:
            async with connection.transaction():
                await insert(connection, 2)
                scope.cancel()
                await connection.execute("select pg_sleep(60)")
        await insert(connection, 3)
    assert await numbers(connection) == [1, 3]


async def test_savepoint_commands_are_not_cancelled_on_the_server(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A RELEASE that failed would spoil the outer transaction, whose COMMIT the server
    # would turn into a ROLLBACK.
    async def never(pgconn: PGconn) -> None:
        pytest.fail("a request to cancel")

    async def nest() -> None:
        async with connection.transaction():
            pass

    monkeypatch.setattr("tocsin.driver._cancelling.request_cancel", never)
    async with connection.transaction():
        await insert(connection, 1)
        assert await cancel_sweep(nest) >= 2
    assert await numbers(connection) == [1]


async def test_a_cancelled_server_side_cursor_is_closed_on_the_server(
    connection: Connection,
) -> None:
    async with connection.transaction():
        with trio.CancelScope() as scope:
            async with connection.cursor("pages") as cursor:
                await cursor.execute("select 1")
                scope.cancel()
        assert await value(connection, "select count(*) from pg_cursors where name = 'pages'") == 0


class OnesOwnCursor(psycopg.AsyncServerCursor[Any]):
    pass


BY_HAND = [
    (psycopg.AsyncServerCursor, "select %s::int"),
    (psycopg.AsyncRawServerCursor, "select $1::int"),
    (OnesOwnCursor, "select %s::int"),
]


@pytest.mark.parametrize(("make", "query"), BY_HAND)
async def test_a_cancelled_server_side_cursor_made_by_hand_is_closed_on_the_server(
    make: type[psycopg.AsyncServerCursor[Any]], query: str, connection: Connection
) -> None:
    async with connection.transaction():
        with trio.CancelScope() as scope:
            async with make(connection, "pages") as cursor:
                await cursor.execute(query.encode(), [1])
                scope.cancel()
        assert cursor.closed
        assert await value(connection, "select count(*) from pg_cursors where name = 'pages'") == 0


@pytest.mark.parametrize(("make", "query"), BY_HAND)
async def test_a_cancelled_server_side_cursor_waits_for_its_turn_to_be_closed(
    make: type[psycopg.AsyncServerCursor[Any]],
    query: str,
    connection: Connection,
    observer: Connection,
) -> None:
    await hold(observer)
    async with connection.transaction(), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with make(connection, "pages") as cursor:
                await cursor.execute(query.encode(), [1])
                nursery.start_soon(connection.execute, WAIT)
                await until_running(observer, WAIT)
                nursery.start_soon(let_go, observer)
                scope.cancel()
        assert cursor.closed
        assert await value(connection, "select count(*) from pg_cursors where name = 'pages'") == 0


async def test_cancelled_while_commit_is_under_way(
    connection: Connection, observer: Connection
) -> None:
    await connection.execute("""
        create function doze() returns trigger language plpgsql as $$
            begin perform pg_sleep(60); return null; end $$;
        create constraint trigger doze after insert on numbers deferrable initially deferred
            for each row execute function doze()
        """)

    async def work() -> None:
        with scope:
            async with connection.transaction():
                await insert(connection, 1)

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await until_running(observer, "COMMIT")
        scope.cancel()
    # This COMMIT could be cancelled, so it was.
    assert await numbers(connection) == []
    assert await is_idle(connection)


async def test_an_error_is_not_replaced_by_the_cancellation(connection: Connection) -> None:
    def fail() -> None:
        scope.cancel()
        raise ValueError("the cause")

    with trio.CancelScope() as scope, pytest.raises(ValueError, match="the cause"):
        async with connection.transaction():
            fail()
    assert await is_idle(connection)


async def test_the_lock_is_awaited_before_rolling_back(
    connection: Connection, observer: Connection
) -> None:
    await hold(observer)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with connection.transaction():
                await insert(connection, 1)
                nursery.start_soon(connection.execute, WAIT)
                await until_running(observer, WAIT)
                nursery.start_soon(let_go, observer)
                scope.cancel()
    assert await numbers(observer) == []
    assert await is_idle(connection)


async def test_the_block_of_a_connection_commits(dsn: str, observer: Connection) -> None:
    async with await TrioConnection.connect(dsn) as connection:
        await insert(connection, 1)
        assert connection.pgconn.transaction_status == pq.TransactionStatus.INTRANS
    assert connection.closed
    assert await numbers(observer) == [1]


async def test_the_block_of_a_connection_that_fails_closes_it(
    dsn: str, observer: Connection
) -> None:
    with pytest.raises(ValueError, match="no"):
        async with await TrioConnection.connect(dsn) as connection:
            await insert_and_raise(connection, 1, ValueError("no"))
    assert connection.closed
    assert not connection.broken
    assert await numbers(observer) == []


async def test_the_block_of_a_connection_that_is_cancelled_closes_it(
    dsn: str, observer: Connection
) -> None:
    with trio.CancelScope() as scope:
        async with await TrioConnection.connect(dsn) as connection:
            await insert(connection, 1)
            scope.cancel()
    assert connection.closed
    assert await numbers(observer) == []
