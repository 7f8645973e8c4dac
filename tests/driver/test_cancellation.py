"""A cancelled statement ends on the server too, and the connection is usable or closed
afterwards."""

from __future__ import annotations

import signal

import psycopg
import pytest
import trio
import trio.testing
from psycopg.pq.abc import PGconn

from bench import proxy
from tests.driver.helpers import (
    WAIT,
    Connection,
    closing,
    hold,
    is_idle,
    let_go,
    until,
    until_alone,
    until_running,
    value,
)
from tocsin.driver import TrioConnection, _cancelling

BUSY = (
    "select exists (select from pg_stat_activity where datname = current_database()"
    " and pid <> pg_backend_pid() and state = 'active' and backend_type = 'client backend')"
)


async def test_a_cancelled_statement_is_cancelled_on_the_server(
    connection: Connection, observer: Connection
) -> None:
    async def sleep() -> None:
        with scope:
            await connection.execute("select pg_sleep(60)")

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await until_running(observer, "pg_sleep")
        scope.cancel()
    assert scope.cancelled_caught
    assert not await value(observer, BUSY)
    assert await is_idle(connection)


async def test_nothing_is_sent_in_a_cancelled_scope(connection: Connection) -> None:
    await connection.execute("create sequence counter")
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.execute("select nextval('counter')")
    assert scope.cancelled_caught
    assert not await value(connection, "select is_called from counter")


async def test_a_deadline_in_a_loop_leaves_the_connection_usable_each_time(
    connection: Connection,
) -> None:
    for n in range(30):
        with trio.move_on_after(n / 10000):
            await connection.execute("select pg_sleep(0.001)")
        assert await value(connection, "select %s::int", (n,)) == n


async def test_a_cancelled_stream_leaves_the_connection_usable(connection: Connection) -> None:
    with trio.CancelScope() as scope:
        async with (
            connection.cursor() as cursor,
            closing(cursor.stream("select generate_series(1, 1000000)")) as rows,
        ):
            async for _ in rows:
                scope.cancel()
    assert scope.cancelled_caught
    assert await is_idle(connection)


async def test_a_cancelled_pipeline_closes_the_connection(
    connection: Connection, observer: Connection
) -> None:
    with trio.CancelScope() as scope:
        async with connection.pipeline():
            await connection.execute("select pg_sleep(60)")
            scope.cancel()
    assert scope.cancelled_caught
    assert connection.closed
    await until_alone(observer)


async def test_a_commit_that_only_was_queued_is_not_left_behind(
    connection: Connection, observer: Connection
) -> None:
    await connection.execute("create table numbers (n int)")
    with trio.CancelScope() as scope:
        async with connection.pipeline() as pipeline, connection.transaction():
            await connection.execute("insert into numbers values (1)")
            await pipeline.sync()
            scope.cancel()
    assert connection.closed
    await until_alone(observer)
    assert await value(observer, "select count(*) from numbers") == 0


async def test_cancelled_waiting_for_the_lock(connection: Connection, observer: Connection) -> None:
    await hold(observer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.execute, WAIT)
        await until_running(observer, WAIT)
        with trio.move_on_after(0) as scope:
            await connection.execute("select 1")
        assert scope.cancelled_caught
        # The other task's statement is none of our business.
        assert await value(observer, BUSY)
        await let_go(observer)
    assert await is_idle(connection)


async def test_a_request_that_came_too_early_is_repeated(
    connection: Connection, observer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    really_ask = _cancelling.request_cancel

    async def ask(pgconn: PGconn) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            await really_ask(pgconn)

    monkeypatch.setattr(_cancelling, "request_cancel", ask)
    monkeypatch.setattr(_cancelling, "_ASK_AGAIN", 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.execute, "select pg_sleep(60)")
        await until_running(observer, "pg_sleep")
        nursery.cancel_scope.cancel()
    assert asked > 1
    assert await is_idle(connection)


async def test_a_server_that_does_not_obey_costs_the_connection(
    connection: Connection, observer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._concurrency.grace.GRACE", 0.1)

    async def not_at_all(pgconn: PGconn) -> None:
        """A cancel request that gets lost on its way."""

    monkeypatch.setattr(_cancelling, "request_cancel", not_at_all)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.execute, "select pg_sleep(60)")
            await until_running(observer, "pg_sleep")
            scope.cancel()
    assert connection.closed
    assert connection.broken


def test_control_c_cancels_the_statement(dsn: str) -> None:
    # Not an async test: KeyboardInterrupt goes to the main task of a run, and that
    # would be pytest's.
    usable_after: list[bool] = []

    async def interrupt(observer: Connection) -> None:
        await until_running(observer, "pg_sleep")
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with (
            await TrioConnection.connect(dsn, autocommit=True) as observer,
            trio.open_nursery() as nursery,
        ):
            connection = await TrioConnection.connect(dsn, autocommit=True)
            nursery.start_soon(interrupt, observer)
            try:
                await connection.execute("select pg_sleep(60)")
            finally:
                with trio.CancelScope(shield=True):
                    usable_after.append(await is_idle(connection))
                connection.finish()

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    assert usable_after == [True]


async def test_cancel_safe_from_another_task(connection: Connection, observer: Connection) -> None:
    async def sleep() -> None:
        with pytest.raises(psycopg.errors.QueryCanceled):
            await connection.execute("select pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await until_running(observer, "pg_sleep")
        await connection.cancel_safe()
    assert await is_idle(connection)


async def test_cancel_safe_has_a_timeout(dsn: str) -> None:
    async with (
        proxy.running(dsn) as server,
        await TrioConnection.connect(server.dsn()) as connection,
    ):
        server.silence_all()
        with pytest.raises(psycopg.errors.CancellationTimeout):
            await connection.cancel_safe(timeout=0.05)
        await connection.close()
        # Nothing can be running now.
        await connection.cancel_safe()


async def test_a_silent_server_costs_the_connection_in_a_transaction(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._concurrency.grace.GRACE", 0.05)
    async with proxy.running(dsn) as server:
        connection = await TrioConnection.connect(server.dsn())
        with trio.CancelScope() as scope:
            async with connection.transaction() as transaction:
                server.silence_all()
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert connection.closed
        assert transaction.status is transaction.Status.ROLLED_BACK_WITH_ERROR


async def test_close_wakes_the_task_that_waits(connection: Connection) -> None:
    async def sleep() -> None:
        with pytest.raises(psycopg.OperationalError, match="connection socket closed"):
            await connection.execute("select pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await trio.testing.wait_all_tasks_blocked()
        await connection.close()


async def test_a_killed_backend_is_an_operational_error(
    connection: Connection, observer: Connection
) -> None:
    async def sleep() -> None:
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("select pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await until_running(observer, "pg_sleep")
        await value(observer, "select pg_terminate_backend(%s)", (connection.info.backend_pid,))
    assert connection.closed
    assert connection.is_broken()
    await until(observer, f"select not ({BUSY[7:]})")


async def test_a_cancelled_pipeline_is_rolled_back_when_the_request_to_cancel_comes_too_late(
    connection: Connection, observer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def come_too_late(pgconn: PGconn) -> None:
        await observer.execute("select pg_advisory_unlock(1)")

    monkeypatch.setattr(_cancelling, "request_cancel", come_too_late)
    await connection.execute("create table numbers (n integer)")
    await observer.execute("select pg_advisory_lock(1)")
    with trio.CancelScope() as scope:
        async with connection.pipeline():
            await connection.execute("insert into numbers values (1)")
            cursor = await connection.execute("select pg_advisory_xact_lock(1)")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cursor.fetchone)
                await until(
                    observer,
                    "select exists (select from pg_locks where locktype = 'advisory' and not"
                    " granted)",
                )
                scope.cancel()
    await until_alone(observer)
    assert await value(observer, "select count(*) from numbers") == 0
