"""Notifications are never lost, and waiting for them costs nothing."""

from __future__ import annotations

import select
from contextlib import aclosing

import psycopg
import pytest
import trio
import trio.testing

from tests.driver.helpers import (
    SAFETY_NET,
    WAIT,
    Connection,
    hold,
    is_idle,
    let_go,
    until_running,
    value,
)

MANY = 1000


@pytest.fixture
def received(connection: Connection) -> list[str]:
    """Payloads that came to the connection's handler."""
    payloads: list[str] = []
    connection.add_notify_handler(lambda notification: payloads.append(notification.payload))
    return payloads


async def notify(observer: Connection, payload: str) -> None:
    await observer.execute("select pg_notify('bell', %s)", (payload,))


async def notify_many(observer: Connection) -> None:
    for n in range(MANY):
        await notify(observer, str(n))


async def test_one_that_arrives_while_waiting(
    connection: Connection, observer: Connection, received: list[str]
) -> None:
    await connection.execute("listen bell")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_for_notifications)
        await trio.testing.wait_all_tasks_blocked()
        assert received == []
        await notify(observer, "ding")
    assert received == ["ding"]
    assert await is_idle(connection)


async def test_one_that_arrived_with_a_statement(
    connection: Connection, observer: Connection, received: list[str]
) -> None:
    await connection.execute("listen bell")
    await hold(observer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.execute, WAIT)
        await until_running(observer, WAIT)
        await notify(observer, "ding")
        await let_go(observer)
    assert received == ["ding"]


async def test_none_is_lost_while_waiting(
    connection: Connection, observer: Connection, received: list[str]
) -> None:
    await connection.execute("listen bell")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify_many, observer)
        with trio.fail_after(SAFETY_NET):
            while len(received) < MANY:
                await connection.wait_for_notifications()
    assert received == [str(n) for n in range(MANY)]


async def test_none_is_lost_between_statements_and_cancellations(
    connection: Connection, observer: Connection, received: list[str]
) -> None:
    await connection.execute("listen bell")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify_many, observer)
        with trio.fail_after(SAFETY_NET):
            while len(received) < MANY:
                await connection.execute("select 1")
                with trio.move_on_after(0.001):
                    await connection.wait_for_notifications()
                assert not connection.is_broken()
    assert received == [str(n) for n in range(MANY)]


async def test_one_that_was_read_already(
    connection: Connection, observer: Connection, received: list[str]
) -> None:
    await connection.execute("listen bell")
    await notify(observer, "ding")
    await trio.lowlevel.wait_readable(connection.fileno())
    connection.pgconn.consume_input()
    with trio.fail_after(SAFETY_NET):
        await connection.wait_for_notifications()
    assert received == ["ding"]


async def test_asking_whether_it_is_broken_takes_nothing_from_a_waiting_task(
    connection: Connection, dsn: str, received: list[str]
) -> None:
    await connection.execute("listen bell")
    with trio.fail_after(SAFETY_NET):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.wait_for_notifications)
            await trio.testing.wait_all_tasks_blocked()
            # All of this in one go, so that the waiting task has no chance to be first.
            with psycopg.connect(dsn, autocommit=True) as blocking:
                blocking.execute("notify bell, 'ding'")
            assert select.select([connection], [], [], SAFETY_NET)[0]
            assert not connection.is_broken()
    assert received == ["ding"]


async def test_the_generator_gets_all(connection: Connection, observer: Connection) -> None:
    await connection.execute("listen bell")
    await notify(observer, "early")
    assert await value(connection, "select 1") == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify_many, observer)
        with trio.fail_after(SAFETY_NET):
            async with aclosing(connection.notifies(stop_after=MANY + 1)) as notifications:
                payloads = [notification.payload async for notification in notifications]
    assert payloads == ["early", *(str(n) for n in range(MANY))]
    assert await is_idle(connection)


async def test_the_generator_stops_at_its_timeout(
    connection: Connection, observer: Connection
) -> None:
    await connection.execute("listen bell")
    assert [n async for n in connection.notifies(timeout=0.01)] == []
    await notify(observer, "ding")
    await trio.lowlevel.wait_readable(connection.fileno())
    # No time at all is enough for what is there already.
    assert [n.payload async for n in connection.notifies(timeout=0)] == ["ding"]


async def test_without_a_handler_they_are_kept_for_the_generator(
    connection: Connection, observer: Connection
) -> None:
    await connection.execute("listen bell")
    await notify(observer, "ding")
    with trio.fail_after(SAFETY_NET):
        await connection.wait_for_notifications()
    assert [n.payload async for n in connection.notifies(timeout=0)] == ["ding"]


async def test_cancelled_waiting_leaves_the_connection_usable(connection: Connection) -> None:
    with trio.move_on_after(0.01) as scope:
        await connection.wait_for_notifications()
    assert scope.cancelled_caught
    assert await is_idle(connection)


async def test_a_lost_connection_ends_the_wait(
    connection: Connection, observer: Connection
) -> None:
    pid = connection.info.backend_pid

    async def wait_forever() -> None:
        while True:
            await connection.wait_for_notifications()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(value, observer, "select pg_terminate_backend(%s)", (pid,))
        with trio.fail_after(SAFETY_NET), pytest.raises(psycopg.OperationalError):
            await wait_forever()
    assert connection.closed


class Steps(trio.abc.Instrument):
    """Counts how often any task runs, and how often trio's loop comes round."""

    def __init__(self) -> None:
        self.steps = 0
        self.rounds = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1

    def before_io_wait(self, timeout: float) -> None:
        self.rounds += 1


async def test_idle_means_idle(connection: Connection, mock_clock: trio.testing.MockClock) -> None:
    await connection.execute("listen bell")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_for_notifications)
        await trio.testing.wait_all_tasks_blocked()
        instrument = Steps()
        trio.lowlevel.add_instrument(instrument)
        # An hour, in which anything that wakes by a timer would.
        mock_clock.jump(3600)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(instrument)
        nursery.cancel_scope.cancel()
    # One step is this task's own.
    assert instrument.steps == 1
    assert instrument.rounds <= 3
