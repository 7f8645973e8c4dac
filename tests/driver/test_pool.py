"""The pool lends, bounds, replaces and closes connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import attrs
import psycopg
import pytest
import trio
import trio.testing

from tocsin.driver import PoolClosed, TrioConnection, open_pool
from tocsin.embedded import EmbeddedServer

from .helpers import SAFETY_NET, Connection, is_idle, until_alone, value


@pytest.fixture
def connect(dsn: str) -> Callable[[], Awaitable[Connection]]:
    return lambda: TrioConnection.connect(dsn, autocommit=True)


@attrs.define
class Gate:
    """Opens connections, when it is told to."""

    dsn: str
    asked: int = 0
    fails: bool = False
    opened: trio.Event = attrs.Factory(trio.Event)

    async def connect(self) -> Connection:
        self.asked += 1
        await self.opened.wait()
        if self.fails:
            raise psycopg.OperationalError("no luck")
        return await TrioConnection.connect(self.dsn, autocommit=True)


@pytest.fixture
async def gate(dsn: str) -> Gate:
    return Gate(dsn)


async def test_the_minimum_is_there_from_the_start(connect: Callable[[], Awaitable[Connection]]) -> None:
    async with open_pool(connect, min_size=3, max_size=5) as pool:
        statistics = pool.statistics()
    assert (statistics.size, statistics.idle, statistics.in_use, statistics.opened) == (3, 3, 0, 3)
    assert (statistics.min_size, statistics.max_size) == (3, 5)


async def test_the_one_used_last_is_used_first(connect: Callable[[], Awaitable[Connection]]) -> None:
    async with open_pool(connect, min_size=3) as pool:
        async with pool.connection() as first:
            pass
        for _ in range(3):
            async with pool.connection() as again:
                assert again is first


async def test_it_grows_up_to_the_maximum(gate: Gate) -> None:
    async def borrow() -> None:
        async with pool.connection():
            await done.wait()

    done = trio.Event()
    async with open_pool(gate.connect, min_size=0, max_size=2) as pool, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(borrow)
        await trio.testing.wait_all_tasks_blocked()
        # Also while they are being opened there are not more.
        assert gate.asked == 2
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=2, idle=0, in_use=2, waiting=3, opened=0)
        gate.opened.set()
        while pool.statistics().opened < 2:
            await trio.lowlevel.checkpoint()
        done.set()
    statistics = pool.statistics()
    assert (statistics.opened, statistics.waiting, statistics.in_use) == (2, 0, 0)
    assert gate.asked == 2


async def test_first_come_first_served(connect: Callable[[], Awaitable[Connection]]) -> None:
    order: list[int] = []

    async def borrow(n: int) -> None:
        async with pool.connection():
            order.append(n)

    async with open_pool(connect, max_size=1) as pool, trio.open_nursery() as nursery:
        async with pool.connection():
            for n in range(5):
                nursery.start_soon(borrow, n)
                await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(borrow, 5)
    assert order == [0, 1, 2, 3, 4, 5]


async def test_cancelled_while_waiting(connect: Callable[[], Awaitable[Connection]]) -> None:
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection():
            with trio.move_on_after(0.01) as scope:
                async with pool.connection():
                    pass
            assert scope.cancelled_caught
            assert pool.statistics().waiting == 0
        async with pool.connection() as connection:
            assert await is_idle(connection)


async def test_a_failure_to_connect_goes_to_the_borrower_and_not_to_those_behind(gate: Gate) -> None:
    failed = 0

    async def borrow() -> None:
        nonlocal failed
        try:
            async with pool.connection() as connection:
                assert await is_idle(connection)
        except psycopg.OperationalError:
            failed += 1
            gate.fails = False

    gate.fails = True
    gate.opened.set()
    async with open_pool(gate.connect, min_size=0, max_size=1) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(borrow)
        assert failed == 1
        assert pool.statistics().size == 1


async def test_a_failure_at_the_start_is_bare(gate: Gate) -> None:
    gate.fails = True
    gate.opened.set()
    with pytest.raises(psycopg.OperationalError, match="no luck"):
        async with open_pool(gate.connect):
            pytest.fail("there is no pool")


async def test_an_error_in_the_block_is_bare(connect: Callable[[], Awaitable[Connection]], observer: Connection) -> None:
    error = ValueError("the block's own")
    with pytest.raises(ValueError, match="own") as caught:
        async with open_pool(connect, min_size=2) as pool, pool.connection():
            raise error
    assert caught.value is error
    await until_alone(observer)


async def test_a_transaction_that_was_left_open_is_rolled_back(connect: Callable[[], Awaitable[Connection]]) -> None:
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection() as connection:
            await connection.execute("begin; create table never (n int)")
        async with pool.connection() as again:
            assert again is connection
            assert await value(again, "select to_regclass('never') is null")
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with pool.connection() as connection:
                await connection.execute("begin; select 1 / 0")
        async with pool.connection() as again:
            assert again is connection
            assert await is_idle(again)
        assert pool.statistics().broken == 0


async def test_a_transaction_that_was_left_by_cancellation_is_rolled_back(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect, max_size=1) as pool:
        with trio.CancelScope() as scope:
            async with pool.connection() as connection:
                await connection.execute("begin")
                scope.cancel()
                await trio.sleep_forever()
        async with pool.connection() as again:
            assert again is connection
            assert await is_idle(again)


async def test_a_connection_in_the_middle_of_something_is_not_kept(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection() as connection:
            connection.pgconn.send_query(b"select 1")
        assert connection.closed
        async with pool.connection() as connection:
            await connection.execute("listen bell; notify bell")
            notifications = connection.notifies()
            await anext(notifications)
        # A generator that was left behind holds the lock.
        assert connection.closed
        await notifications.aclose()
        assert pool.statistics().broken == 2


async def test_a_closed_connection_frees_its_slot(connect: Callable[[], Awaitable[Connection]]) -> None:
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection() as connection:
            await connection.close()
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=0, idle=0, in_use=0, broken=1)
        async with pool.connection() as connection:
            assert await is_idle(connection)


async def test_killed_while_idle_it_is_replaced(connect: Callable[[], Awaitable[Connection]], observer: Connection) -> None:
    async with open_pool(connect, min_size=2, max_size=2) as pool:
        async with pool.connection() as connection, pool.connection() as other:
            doomed = [connection, other]
        for each in doomed:
            await value(observer, "select pg_terminate_backend(%s)", (each.info.backend_pid,))
            await trio.lowlevel.wait_readable(each.fileno())
        async with pool.connection() as connection:
            assert connection not in doomed
            assert await is_idle(connection)
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=1, broken=2, opened=3)


async def test_killed_while_lent_it_is_replaced(connect: Callable[[], Awaitable[Connection]], observer: Connection) -> None:
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection() as connection:
            await value(observer, "select pg_terminate_backend(%s)", (connection.info.backend_pid,))
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("select 1")
        async with pool.connection() as connection:
            assert await is_idle(connection)


async def test_it_survives_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    async with open_pool(lambda: TrioConnection.connect(own_server.dsn, autocommit=True), min_size=2) as pool:
        await own_server.restart()
        async with pool.connection() as connection, pool.connection() as other:
            assert await is_idle(connection)
            assert await is_idle(other)
        assert pool.statistics().broken == 2


async def test_the_surplus_is_closed_when_it_was_not_used(
    connect: Callable[[], Awaitable[Connection]], mock_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connect, min_size=1, max_size=3, max_idle=10) as pool:
        async with pool.connection(), pool.connection():
            async with pool.connection():
                pass
            mock_clock.jump(6)
        mock_clock.jump(5)
        await trio.testing.wait_all_tasks_blocked()
        # Only the third was unused for 10 seconds.
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=2, expired=1)
        async with pool.connection():
            mock_clock.jump(4)
        mock_clock.jump(3)
        await trio.testing.wait_all_tasks_blocked()
        # The one in use a moment ago is not the one that goes.
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=1, idle=1, expired=2)
        mock_clock.jump(1000)
        await trio.testing.wait_all_tasks_blocked()
        assert pool.statistics().size == 1


class Steps(trio.abc.Instrument):
    steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


async def test_an_idle_pool_sleeps_until_something_expires(
    connect: Callable[[], Awaitable[Connection]], mock_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connect, min_size=0, max_size=2, max_idle=10) as pool:
        async with pool.connection():
            pass
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        mock_clock.jump(9)
        await trio.testing.wait_all_tasks_blocked()
        # This task's own.
        assert steps.steps == 1
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked()
        assert pool.statistics().expired == 1
        steps.steps = 0
        mock_clock.jump(3600)
        await trio.testing.wait_all_tasks_blocked()
        assert steps.steps == 1
        trio.lowlevel.remove_instrument(steps)


async def test_closed_it_lends_nothing(connect: Callable[[], Awaitable[Connection]], observer: Connection) -> None:
    refused = 0

    async def borrow() -> None:
        nonlocal refused
        with pytest.raises(PoolClosed):
            async with pool.connection():
                pytest.fail("this is closed")
        refused += 1

    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            async with open_pool(connect, max_size=1) as pool:
                connection = await stack.enter_async_context(pool.connection())
                nursery.start_soon(borrow)
                await trio.testing.wait_all_tasks_blocked()
            # What is lent still works, until it comes back.
            assert await is_idle(connection)
        assert connection.closed
        await borrow()
    assert refused == 2
    statistics = pool.statistics()
    assert (statistics.size, statistics.in_use, statistics.waiting) == (0, 0, 0)
    await until_alone(observer)


async def test_closed_while_a_connection_is_being_opened(gate: Gate, observer: Connection) -> None:
    async def borrow() -> None:
        with pytest.raises(PoolClosed):
            async with pool.connection():
                pytest.fail("this is closed")

    with trio.fail_after(SAFETY_NET):
        async with trio.open_nursery() as nursery:
            async with open_pool(gate.connect, min_size=0) as pool:
                nursery.start_soon(borrow)
                await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
        assert pool.statistics().size == 0
        await until_alone(observer)


@pytest.mark.parametrize(("minimum", "maximum"), [(-1, 1), (2, 1), (0, 0)])
async def test_sizes_that_make_no_sense(minimum: int, maximum: int, connect: Callable[[], Awaitable[Connection]]) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        async with open_pool(connect, min_size=minimum, max_size=maximum):
            pytest.fail("there is no pool")
