"""A server that goes away is noticed: while waiting, and while idle without asking."""

from __future__ import annotations

from contextlib import aclosing
from typing import cast

import psycopg
import pytest
import trio

from tests.driver.helpers import WAIT, Connection, hold, let_go, open_files, until_running, value
from tocsin.driver import TrioConnection


async def test_in_order(connection: Connection) -> None:
    assert not connection.is_broken()


async def test_closed(connection: Connection) -> None:
    await connection.close()
    assert connection.is_broken()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await connection.execute("select 1")
    await connection.close()


async def test_a_connection_that_its_user_has_closed_is_not_broken(dsn: str) -> None:
    connection = await TrioConnection.connect(dsn)
    connection.finish()
    assert (connection.closed, connection.broken) == (True, False)
    async with aclosing(await TrioConnection.connect(dsn)) as connection:
        assert not connection.closed
    assert (connection.closed, connection.broken) == (True, False)
    connection = await TrioConnection.connect(dsn)
    await trio.aclose_forcefully(cast("trio.abc.AsyncResource", connection))
    assert (connection.closed, connection.broken) == (True, False)
    async with await TrioConnection.connect(dsn) as connection:
        await connection.close()
    assert (connection.closed, connection.broken) == (True, False)


async def test_a_lost_connection_stays_broken_when_it_is_closed(dsn: str) -> None:
    before = open_files()
    with pytest.raises(psycopg.errors.AdminShutdown):
        async with await TrioConnection.connect(dsn) as connection:
            await connection.execute("select pg_terminate_backend(pg_backend_pid())")
    assert (connection.closed, connection.broken) == (True, True)
    await connection.close()
    assert (connection.closed, connection.broken) == (True, True)
    assert open_files() == before


async def test_a_connection_cancelled_during_an_exchange_is_broken(connection: Connection) -> None:
    with trio.CancelScope() as scope:
        async with connection.pipeline():
            # no answer can be there when the pipeline is left
            await connection.execute("select pg_sleep(3600)")
            scope.cancel()
    assert (connection.closed, connection.broken) == (True, True)


async def test_killed_while_idle(connection: Connection, observer: Connection) -> None:
    await value(observer, "select pg_terminate_backend(%s)", (connection.info.backend_pid,))
    await trio.lowlevel.wait_readable(connection.fileno())
    assert connection.is_broken()


async def test_a_connection_in_use_is_not_touched(
    connection: Connection, observer: Connection
) -> None:
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await value(connection, WAIT))

    await hold(observer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until_running(observer, WAIT)
        nursery.start_soon(let_go, observer)
        # The answer is on its way to the task that asked.
        while not answers:
            assert not connection.is_broken()
            await trio.lowlevel.checkpoint()
    assert answers == [""]


async def test_a_notification_is_no_sign_of_death_and_is_not_lost(
    connection: Connection, observer: Connection
) -> None:
    await connection.execute("listen bell")
    await observer.execute("notify bell, 'ding'")
    await trio.lowlevel.wait_readable(connection.fileno())
    assert not connection.is_broken()
    assert [n.payload async for n in connection.notifies(timeout=0)] == ["ding"]
