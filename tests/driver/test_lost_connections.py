"""A server that goes away is noticed: while waiting, and while idle without asking."""

from __future__ import annotations

import psycopg
import pytest
import trio

from .helpers import Connection, until_running, value


async def test_in_order(connection: Connection) -> None:
    assert not connection.is_broken()


async def test_closed(connection: Connection) -> None:
    await connection.close()
    assert connection.is_broken()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await connection.execute("select 1")
    await connection.close()


async def test_killed_while_idle(connection: Connection, observer: Connection) -> None:
    await value(observer, "select pg_terminate_backend(%s)", (connection.info.backend_pid,))
    await trio.lowlevel.wait_readable(connection.fileno())
    assert connection.is_broken()


async def test_in_use_it_is_not_touched(connection: Connection, observer: Connection) -> None:
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await value(connection, "select 'answer' from pg_sleep(0.1)"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until_running(observer, "pg_sleep")
        # The answer is on its way, and for whoever asked.
        while not answers:
            assert not connection.is_broken()
            await trio.lowlevel.checkpoint()
    assert answers == ["answer"]


async def test_a_notification_is_no_sign_of_death_and_is_not_lost(connection: Connection, observer: Connection) -> None:
    await connection.execute("listen bell")
    await observer.execute("notify bell, 'ding'")
    await trio.lowlevel.wait_readable(connection.fileno())
    assert not connection.is_broken()
    assert [n.payload async for n in connection.notifies(timeout=0)] == ["ding"]
