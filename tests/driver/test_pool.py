"""The pool checks out, bounds, replaces and closes connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise

import attrs
import mypy.api
import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.types.numeric import FloatLoader
from psycopg.types.string import TextLoader

from tests.driver.helpers import SAFETY_NET, Connection, is_idle, until_alone, value
from tests.support import servers
from tocsin._concurrency.backoff import LONGEST
from tocsin.driver import PoolClosed, PoolTimeout, TrioConnection, open_pool
from tocsin.embedded import EmbeddedServer


def divide_by_zero(notification: psycopg.Notify) -> None:
    """Handle a notification, and fail."""
    raise ZeroDivisionError


@pytest.fixture
def connect(dsn: str) -> Callable[[], Awaitable[Connection]]:
    return lambda: TrioConnection.connect(dsn, autocommit=True)


@attrs.define
class Gate:
    """Opens connections, when it is told to."""

    dsn: str
    asked: int = 0
    fails: bool = False
    limit: int = 100
    opening: int = 0
    opened: trio.Event = attrs.Factory(trio.Event)
    connections: list[Connection] = attrs.Factory(list)

    async def connect(self) -> Connection:
        self.asked += 1
        await self.opened.wait()
        if (
            self.fails
            or self.opening + sum(not connection.closed for connection in self.connections)
            >= self.limit
        ):
            raise psycopg.OperationalError("no luck")
        self.opening += 1
        try:
            self.connections.append(
                connection := await TrioConnection.connect(self.dsn, autocommit=True)
            )
        finally:
            self.opening -= 1
        return connection


@pytest.fixture
async def gate(dsn: str) -> Gate:
    return Gate(dsn)


@pytest.fixture
async def open_gate(gate: Gate) -> Gate:
    gate.opened.set()
    return gate


async def test_the_minimum_is_there_from_the_start(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect, min_size=3, max_size=5) as pool:
        statistics = pool.statistics()
    assert (statistics.size, statistics.idle, statistics.in_use, statistics.opened) == (3, 3, 0, 3)
    assert (statistics.min_size, statistics.max_size) == (3, 5)


async def test_the_connection_used_last_is_checked_out_first(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect, min_size=3) as pool:
        async with pool.connection() as first:
            pass
        for _ in range(3):
            async with pool.connection() as again:
                assert again is first


async def test_a_pool_grows_up_to_the_maximum(gate: Gate) -> None:
    async def check_out() -> None:
        async with pool.connection():
            await done.wait()

    done = trio.Event()
    async with (
        open_pool(gate.connect, min_size=0, max_size=2) as pool,
        trio.open_nursery() as nursery,
    ):
        for _ in range(5):
            nursery.start_soon(check_out)
        await trio.testing.wait_all_tasks_blocked()
        # Also while they are being opened there are not more.
        assert gate.asked == 2
        assert pool.statistics() == attrs.evolve(
            pool.statistics(), size=2, idle=0, in_use=2, waiting=3, opened=0
        )
        gate.opened.set()
        while pool.statistics().opened < 2:
            await trio.lowlevel.checkpoint()
        done.set()
    statistics = pool.statistics()
    assert (statistics.opened, statistics.waiting, statistics.in_use) == (2, 0, 0)
    assert gate.asked == 2


async def test_first_come_first_served(connect: Callable[[], Awaitable[Connection]]) -> None:
    order: list[int] = []

    async def check_out(n: int) -> None:
        async with pool.connection():
            order.append(n)

    async with open_pool(connect, max_size=1) as pool, trio.open_nursery() as nursery:
        async with pool.connection():
            for n in range(5):
                nursery.start_soon(check_out, n)
                await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(check_out, 5)
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


async def test_a_failure_to_connect_goes_to_the_task_and_not_to_those_behind(
    gate: Gate,
) -> None:
    failed = 0

    async def check_out() -> None:
        nonlocal failed
        try:
            async with pool.connection() as connection:
                assert await is_idle(connection)
        except psycopg.OperationalError:
            failed += 1
            gate.fails = False

    gate.fails = True
    gate.opened.set()
    async with open_pool(gate.connect, min_size=0, max_size=1, reconnect_timeout=0) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(check_out)
        assert failed == 1
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=1, errors=1)


async def test_a_failure_at_the_start_is_bare(gate: Gate) -> None:
    gate.fails = True
    gate.opened.set()
    with pytest.raises(psycopg.OperationalError, match="no luck"):
        async with open_pool(gate.connect):
            pytest.fail("there is no pool")


async def test_an_error_in_the_block_is_bare(
    connect: Callable[[], Awaitable[Connection]], observer: Connection
) -> None:
    error = ValueError("the block's own")
    with pytest.raises(ValueError, match="own") as caught:
        async with open_pool(connect, min_size=2) as pool, pool.connection():
            raise error
    assert caught.value is error
    await until_alone(observer)


async def test_a_transaction_that_was_left_open_is_rolled_back(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
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


async def test_a_closed_connection_frees_its_slot(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection() as connection:
            await connection.close()
        assert pool.statistics() == attrs.evolve(
            pool.statistics(), size=0, idle=0, in_use=0, broken=1
        )
        async with pool.connection() as connection:
            assert await is_idle(connection)


async def test_a_connection_killed_while_idle_is_replaced(
    connect: Callable[[], Awaitable[Connection]], observer: Connection
) -> None:
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


async def test_a_connection_killed_while_checked_out_is_replaced(
    connect: Callable[[], Awaitable[Connection]], observer: Connection
) -> None:
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection() as connection:
            await value(observer, "select pg_terminate_backend(%s)", (connection.info.backend_pid,))
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("select 1")
        async with pool.connection() as connection:
            assert await is_idle(connection)


async def test_a_pool_survives_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    async with open_pool(
        lambda: TrioConnection.connect(own_server.dsn, autocommit=True), min_size=2
    ) as pool:
        await own_server.restart()
        async with pool.connection() as connection, pool.connection() as other:
            assert await is_idle(connection)
            assert await is_idle(other)
        assert pool.statistics().broken == 2


async def test_surplus_connections_are_closed_when_they_were_not_used(
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


async def test_an_idle_pool_waits_until_something_expires(
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


async def test_a_closed_pool_lends_nothing(
    connect: Callable[[], Awaitable[Connection]], observer: Connection
) -> None:
    refused = 0

    async def check_out() -> None:
        nonlocal refused
        with pytest.raises(PoolClosed):
            async with pool.connection():
                pytest.fail("this is closed")
        refused += 1

    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            async with open_pool(connect, max_size=1) as pool:
                connection = await stack.enter_async_context(pool.connection())
                nursery.start_soon(check_out)
                await trio.testing.wait_all_tasks_blocked()
            # What is checked out still works, until it is returned.
            assert await is_idle(connection)
        assert connection.closed
        await check_out()
    assert refused == 2
    statistics = pool.statistics()
    assert (statistics.size, statistics.in_use, statistics.waiting) == (0, 0, 0)
    await until_alone(observer)


async def test_closed_while_a_connection_is_being_opened(gate: Gate, observer: Connection) -> None:
    async def check_out() -> None:
        with pytest.raises(PoolClosed):
            async with pool.connection():
                pytest.fail("this is closed")

    with trio.fail_after(SAFETY_NET):
        async with trio.open_nursery() as nursery:
            async with open_pool(gate.connect, min_size=0) as pool:
                nursery.start_soon(check_out)
                await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
        assert pool.statistics().size == 0
        await until_alone(observer)


async def test_closed_while_tasks_wait_for_what_cannot_be_opened(
    open_gate: Gate, observer: Connection
) -> None:
    async def check_out() -> None:
        with pytest.raises(PoolClosed):
            async with pool.connection():
                pytest.fail("this is closed")

    open_gate.limit = 1
    async with (
        trio.open_nursery() as nursery,
        AsyncExitStack() as stack,
        open_pool(open_gate.connect, max_size=3) as pool,
    ):
        await stack.enter_async_context(pool.connection())
        for _ in range(4):
            nursery.start_soon(check_out)
        while pool.statistics() != attrs.evolve(pool.statistics(), waiting=4, withheld=2, in_use=1):
            await trio.lowlevel.checkpoint()
    statistics = pool.statistics()
    assert (statistics.size, statistics.in_use, statistics.waiting, statistics.withheld) == (
        0,
        0,
        0,
        0,
    )
    await until_alone(observer)


# Filling


async def test_the_connections_of_a_pool_are_opened_at_once(gate: Gate) -> None:
    async with trio.open_nursery() as nursery:

        async def live() -> None:
            async with open_pool(gate.connect, min_size=3):
                pass

        nursery.start_soon(live)
        await trio.testing.wait_all_tasks_blocked()
        assert gate.asked == 3
        gate.opened.set()


async def test_a_pool_begins_with_less_than_the_minimum(open_gate: Gate) -> None:
    open_gate.limit = 1
    async with open_pool(open_gate.connect, min_size=3) as pool, pool.connection() as connection:
        assert await is_idle(connection)
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=1, opened=1, errors=2)


@pytest.mark.parametrize("error", [psycopg.OperationalError("no luck"), ValueError("no sense")])
async def test_when_all_fail_at_the_start_one_error_is_raised_bare(error: Exception) -> None:
    async def connect() -> Connection:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(type(error)) as caught:
        async with open_pool(connect, min_size=3):
            pytest.fail("there is no pool")
    assert caught.value is error


async def test_what_does_not_pass_ends_the_start(open_gate: Gate, observer: Connection) -> None:
    async def connect() -> Connection:
        if open_gate.asked == 1:
            raise ValueError("no sense")
        return await open_gate.connect()

    with pytest.raises(ValueError, match="no sense"):
        async with open_pool(connect, min_size=2):
            pytest.fail("there is no pool")
    await until_alone(observer)


# Waiting and reconnecting


async def test_a_task_waits_no_longer_than_the_timeout(
    connect: Callable[[], Awaitable[Connection]], mock_clock: trio.testing.MockClock
) -> None:
    async def check_out() -> None:
        with pytest.raises(PoolTimeout, match="within 5 s; 1 of at most 1"):
            async with pool.connection():
                pytest.fail("there is none")

    async with open_pool(connect, max_size=1, timeout=5) as pool:
        async with pool.connection(), trio.open_nursery() as nursery:
            nursery.start_soon(check_out)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(4.9)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().waiting == 1
            mock_clock.jump(0.1)
        assert pool.statistics() == attrs.evolve(
            pool.statistics(), in_use=0, waiting=0, waits=1, waited=5, timeouts=1, errors=0
        )
        async with pool.connection() as connection:
            assert await is_idle(connection)


async def test_where_no_more_can_be_opened_a_task_waits_for_one_that_is_checked_out(
    open_gate: Gate, mock_clock: trio.testing.MockClock
) -> None:
    # the clock stands still, so that no withheld slot is given out, which may overtake
    order: list[int] = []

    async def check_out(n: int) -> None:
        async with pool.connection() as connection:
            assert connection is checked_out
            order.append(n)

    open_gate.limit = 1
    async with open_pool(open_gate.connect, max_size=5) as pool:
        async with trio.open_nursery() as nursery, pool.connection() as checked_out:
            for n in range(8):
                nursery.start_soon(check_out, n)
                await trio.testing.wait_all_tasks_blocked()
            statistics = pool.statistics()
            assert (statistics.size, statistics.in_use, statistics.waiting) == (1, 1, 8)
        assert order == list(range(8))
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=1, opened=1, timeouts=0)
        assert pool.statistics().errors >= 1


async def test_the_limit_of_a_role_is_no_error_while_there_is_a_connection(
    dsn: str, new_role: Callable[..., str]
) -> None:
    limited = make_conninfo(
        dsn, user=new_role("limited", options="login connection limit 2"), password=servers.PASSWORD
    )

    async def check_out() -> None:
        async with pool.connection() as connection:
            assert await is_idle(connection)

    async with open_pool(lambda: TrioConnection.connect(limited, autocommit=True)) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(check_out)
        assert pool.statistics().size == 2


async def test_when_the_last_one_is_gone_a_waiting_task_opens_one(open_gate: Gate) -> None:
    async def check_out() -> None:
        async with pool.connection() as connection:
            assert connection is not checked_out
            assert await is_idle(connection)

    open_gate.limit = 1
    async with (
        open_pool(open_gate.connect, max_size=5) as pool,
        trio.open_nursery() as nursery,
        pool.connection() as checked_out,
    ):
        for _ in range(3):
            nursery.start_soon(check_out)
        await trio.testing.wait_all_tasks_blocked()
        checked_out.finish()


async def test_when_the_last_one_is_gone_and_none_can_be_opened_all_waiting_tasks_get_the_error(
    open_gate: Gate,
) -> None:
    async def check_out() -> None:
        with pytest.raises(psycopg.OperationalError, match="no luck"):
            async with pool.connection():
                pytest.fail("there is none")

    async with open_pool(open_gate.connect, max_size=3, reconnect_timeout=0) as pool:
        async with trio.open_nursery() as nursery, pool.connection() as checked_out:
            open_gate.fails = True
            for _ in range(6):
                nursery.start_soon(check_out)
            await trio.testing.wait_all_tasks_blocked()
            checked_out.finish()
        assert pool.statistics() == attrs.evolve(
            pool.statistics(), size=0, in_use=0, waiting=0, withheld=0
        )


async def test_a_pool_tries_again_to_open_a_connection_after_a_while(
    open_gate: Gate, mock_clock: trio.testing.MockClock
) -> None:
    async def check_out() -> None:
        async with pool.connection():
            checked_out.set()

    checked_out = trio.Event()
    open_gate.limit = 1
    async with (
        open_pool(open_gate.connect, timeout=1000) as pool,
        pool.connection(),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(check_out)
        await trio.testing.wait_all_tasks_blocked()
        assert (open_gate.asked, pool.statistics().withheld) == (2, 7)
        mock_clock.jump(LONGEST)
        await trio.testing.wait_all_tasks_blocked()
        assert (open_gate.asked, pool.statistics().withheld) == (3, 7)
        open_gate.limit = 2
        mock_clock.jump(LONGEST)
        await checked_out.wait()


async def test_one_attempt_tells_that_there_are_no_more(open_gate: Gate) -> None:
    async def check_out() -> None:
        async with pool.connection():
            pass

    open_gate.limit = 1
    async with (
        open_pool(open_gate.connect, max_size=50) as pool,
        trio.open_nursery() as nursery,
        pool.connection(),
    ):
        for _ in range(100):
            nursery.start_soon(check_out)
            await trio.lowlevel.checkpoint()
        assert open_gate.asked < 10


async def test_an_attempt_to_open_one_is_a_part_of_the_wait(
    gate: Gate, mock_clock: trio.testing.MockClock
) -> None:
    async def check_out() -> None:
        with pytest.raises(PoolTimeout):
            async with pool.connection():
                pytest.fail("there is none")

    async with open_pool(gate.connect, min_size=0, timeout=5) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_out)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(5)
        assert pool.statistics() == attrs.evolve(
            pool.statistics(), size=0, in_use=0, waits=0, timeouts=1
        )


async def test_what_could_not_be_opened_is_the_error_at_the_timeout(
    open_gate: Gate, mock_clock: trio.testing.MockClock
) -> None:
    async def check_out() -> None:
        with pytest.raises(psycopg.OperationalError, match="no luck"):
            async with pool.connection():
                pytest.fail("there is none")

    open_gate.limit = 1
    async with open_pool(open_gate.connect, timeout=0.01) as pool:
        async with pool.connection(), trio.open_nursery() as nursery:
            nursery.start_soon(check_out)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.01)
        assert pool.statistics() == attrs.evolve(pool.statistics(), in_use=0, waiting=0, timeouts=1)


async def test_a_pool_without_connections_tries_again_with_growing_pauses(
    dsn: str, mock_clock: trio.testing.MockClock
) -> None:
    async def connect() -> Connection:
        times.append(trio.current_time())
        if len(times) < 6:
            raise psycopg.OperationalError("no luck")
        return connection

    times: list[float] = []
    connection = await TrioConnection.connect(dsn)
    mock_clock.autojump_threshold = 0
    async with open_pool(connect, min_size=0) as pool, pool.connection(reset=False):
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=1, opened=1, errors=5)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[0] > 0


async def test_a_pool_without_connections_gives_up_after_the_timeout(
    open_gate: Gate, autojump_clock: trio.testing.MockClock
) -> None:
    open_gate.fails = True
    async with open_pool(open_gate.connect, min_size=0, max_size=1, reconnect_timeout=10) as pool:
        for _ in range(2):  # the slot is there again
            began = trio.current_time()
            with pytest.raises(psycopg.OperationalError, match="no luck"):
                async with pool.connection():
                    pytest.fail("there is none")
            assert 10 - LONGEST <= trio.current_time() - began <= 10


async def test_what_does_not_pass_is_not_tried_again(open_gate: Gate) -> None:
    async def connect() -> Connection:
        if open_gate.asked:
            raise ValueError("no sense")
        return await open_gate.connect()

    async with open_pool(connect, max_size=2) as pool:
        async with pool.connection():
            with pytest.raises(ValueError, match="no sense"):
                async with pool.connection():
                    pytest.fail("there is none")
        assert pool.statistics() == attrs.evolve(pool.statistics(), in_use=0, withheld=0, errors=1)


async def test_a_pool_grows_on_request(open_gate: Gate) -> None:
    open_gate.limit = 3
    async with open_pool(open_gate.connect, max_size=4) as pool:
        async with pool.connection():
            assert await pool.grow(3)
            assert pool.statistics() == attrs.evolve(pool.statistics(), size=3, idle=2, in_use=1)
            assert not await pool.grow(4)
            assert not await pool.grow(5)
        # What is there can be checked out, all of it.
        async with pool.connection(), pool.connection(), pool.connection():
            assert pool.statistics() == attrs.evolve(
                pool.statistics(), size=3, idle=0, in_use=3, withheld=1
            )
            assert not await pool.grow(4)


async def test_a_pool_without_connections_does_not_grow_but_raises(open_gate: Gate) -> None:
    async with open_pool(open_gate.connect, min_size=0) as pool:
        open_gate.fails = True
        with pytest.raises(psycopg.OperationalError, match="no luck"):
            await pool.grow(2)
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=0, in_use=0, withheld=0)


# Growing old


async def test_a_connection_that_is_too_old_is_replaced(
    connect: Callable[[], Awaitable[Connection]], mock_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connect, max_lifetime=100) as pool:
        async with pool.connection() as first:
            mock_clock.jump(90)
        async with pool.connection() as again:
            assert again is first
            mock_clock.jump(10)
        assert first.closed
        async with pool.connection() as second:
            pass
        mock_clock.jump(100)
        async with pool.connection() as third:
            assert third is not second
            assert second.closed
        assert pool.statistics() == attrs.evolve(
            pool.statistics(), size=1, opened=3, retired=2, broken=0
        )


# Resetting


async def test_the_settings_of_a_task_are_reset(dsn: str, new_role: Callable[..., str]) -> None:
    async def connect() -> Connection:
        connection = await TrioConnection.connect(dsn, autocommit=True, options="-c work_mem=1MB")
        connection.adapters.register_loader("int4", TextLoader)
        connection.add_notify_handler(heard.append)
        return connection

    async def describe(connection: Connection) -> object:
        settings = (
            "statement_timeout",
            "default_transaction_read_only",
            "role",
            "session_authorization",
            "work_mem",
            "search_path",
        )
        held = (
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
        )
        return (
            [await value(connection, "select current_setting(%s)", (name,)) for name in settings],
            [
                await value(connection, f"select count(*) from {name}")
                for name in ("pg_cursors", "pg_listening_channels()")
            ],
            await value(connection, held),
            await value(connection, "select to_regclass('pg_temp.scratch') is null"),
            await value(connection, "select 1::int4"),
            connection.autocommit,
            (connection.isolation_level, connection.read_only, connection.deferrable),
            (connection.prepare_threshold, connection.prepared_max),
            (connection.row_factory, connection.cursor_factory, connection.server_cursor_factory),
            [each for each in connection._notify_handlers if each is not heard.append],
            connection._notice_handlers,
        )

    heard: list[psycopg.Notify] = []
    role = new_role("limited")
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection() as connection:
            before = await describe(connection)
            await connection.execute("create temporary table scratch (n int)")
            await connection.execute(
                "select pg_advisory_lock(1), set_config('search_path', 'elsewhere', false)"
            )
            await connection.execute("declare pages cursor with hold for select 1")
            await connection.execute("listen bell")
            await connection.execute("set work_mem = '2MB'")
            await connection.execute("set statement_timeout = '1h'")
            await connection.execute("set session characteristics as transaction read only")
            await connection.execute(f"set role {role}".encode())
            connection.adapters.register_loader("int4", FloatLoader)
            connection.add_notify_handler(divide_by_zero)
            connection.add_notice_handler(print)
            connection.row_factory = dict_row
            connection.cursor_factory = psycopg.AsyncRawCursor
            connection.server_cursor_factory = psycopg.AsyncRawServerCursor
            connection.prepare_threshold, connection.prepared_max = None, 1
            await connection.set_autocommit(False)
            await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
            await connection.set_read_only(True)
            await connection.set_deferrable(True)
        async with pool.connection() as again:
            assert again is connection
            assert await describe(again) == before
            # A transaction begins as one of a new connection does.
            async with again.transaction():
                assert (
                    await value(again, "select current_setting('transaction_isolation')")
                    == "read committed"
                )
    assert pool.statistics().broken == 0


async def test_statements_stay_prepared(connect: Callable[[], Awaitable[Connection]]) -> None:
    async with open_pool(connect, max_size=1) as pool:
        for n in range(3):
            async with pool.connection() as connection:
                for _ in range(3):
                    assert await value(connection, "select %s::int + 1", (n,)) == n + 1
        async with pool.connection() as connection:
            assert (
                await value(
                    connection,
                    "select count(*) from pg_prepared_statements where statement like '%%+ 1%%'",
                )
                == 1
            )


async def test_a_task_that_sets_nothing_saves_the_reset(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    resets = 0

    async def reset(connection: Connection) -> None:
        nonlocal resets
        resets += 1

    async with open_pool(connect, max_size=1, reset=reset) as pool:
        async with pool.connection(reset=False) as connection:
            await connection.execute("select 1")
        assert resets == 0
        async with pool.connection() as connection:
            await connection.execute("select 1")
        assert resets == 1


async def test_without_a_reset_the_session_stays_as_it_is(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect, max_size=1, reset=None) as pool:
        async with pool.connection() as connection:
            await connection.execute("set work_mem = '2MB'")
        async with pool.connection() as connection:
            assert await value(connection, "show work_mem") == "2MB"


async def test_a_connection_that_cannot_be_reset_is_not_kept(
    connect: Callable[[], Awaitable[Connection]], caplog: pytest.LogCaptureFixture
) -> None:
    async def reset(connection: Connection) -> None:
        raise psycopg.OperationalError("no luck")

    async with open_pool(connect, max_size=1, reset=reset) as pool:
        async with pool.connection() as connection:
            pass
        assert connection.closed
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=0, in_use=0, broken=1)
    assert [record.getMessage() for record in caplog.records] == [
        "the session of a connection could not be reset: no luck; the connection is closed"
    ]


async def test_a_reset_that_takes_too_long_costs_the_connection(
    connect: Callable[[], Awaitable[Connection]], mock_clock: trio.testing.MockClock
) -> None:
    async def reset(connection: Connection) -> None:
        await trio.sleep_forever()

    async with open_pool(connect, max_size=1, reset=reset) as pool:
        mock_clock.autojump_threshold = 0
        with trio.CancelScope() as scope:
            async with pool.connection() as connection:
                scope.cancel()
        assert connection.closed
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=0, in_use=0, broken=1)


async def test_the_session_of_a_cancelled_task_is_reset_too(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect, max_size=1) as pool:
        with trio.CancelScope() as scope:
            async with pool.connection() as connection:
                await connection.execute("set work_mem = '2MB'")
                scope.cancel()
                await trio.lowlevel.checkpoint()
        async with pool.connection() as again:
            assert again is connection
            assert await value(again, "show work_mem") != "2MB"


# Losing none


async def test_a_handler_that_raises_costs_the_connection_and_no_slot(
    connect: Callable[[], Awaitable[Connection]], observer: Connection
) -> None:
    async with open_pool(connect, max_size=1) as pool:
        async with pool.connection(reset=False) as connection:
            await connection.execute("listen bell")
            connection.add_notify_handler(divide_by_zero)
        await observer.execute("notify bell")
        await trio.lowlevel.wait_readable(connection.fileno())
        with pytest.raises(ZeroDivisionError):
            async with pool.connection():
                pytest.fail("the handler has raised")
        assert connection.closed
        assert pool.statistics() == attrs.evolve(
            pool.statistics(), size=0, idle=0, in_use=0, broken=1
        )
        async with pool.connection() as connection:
            assert await is_idle(connection)


async def test_a_pipeline_that_was_left_open_costs_the_connection(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect, max_size=1) as pool, AsyncExitStack() as stack:
        async with pool.connection() as connection:
            await stack.enter_async_context(connection.pipeline())
        assert connection.closed
        with pytest.raises(psycopg.OperationalError):
            await stack.aclose()
        async with pool.connection() as connection:
            assert await is_idle(connection)


async def test_a_checkout_is_for_one_block_at_a_time(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect) as pool:
        checkout = pool.connection()
        async with checkout:
            with pytest.raises(RuntimeError, match="one block at a time"):
                await checkout.__aenter__()
        async with checkout as connection:
            assert await is_idle(connection)
        assert pool.statistics() == attrs.evolve(pool.statistics(), size=1, in_use=0)


# Letting the other tasks run


async def test_a_checkout_without_a_statement_is_a_checkpoint(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async with open_pool(connect) as pool:
        with trio.testing.assert_checkpoints():
            async with pool.connection(reset=False):
                pass


async def test_a_checkout_adds_no_checkpoint_to_a_statements(
    connect: Callable[[], Awaitable[Connection]],
) -> None:
    async def steps_of(work: Callable[[], Awaitable[object]]) -> int:
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await work()
        trio.lowlevel.remove_instrument(steps)
        return steps.steps

    async def check_out() -> None:
        async with pool.connection(reset=False) as connection:
            await connection.run_prepared(b"select 1", ())

    async with open_pool(connect) as pool:
        await check_out()
        async with pool.connection() as connection:
            bare = await steps_of(lambda: connection.run_prepared(b"select 1", ()))
        assert await steps_of(check_out) == bare


@pytest.mark.parametrize(("minimum", "maximum"), [(-1, 1), (2, 1), (0, 0)])
async def test_sizes_that_make_no_sense(
    minimum: int, maximum: int, connect: Callable[[], Awaitable[Connection]]
) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        async with open_pool(connect, min_size=minimum, max_size=maximum):
            pytest.fail("there is no pool")


@pytest.mark.slow
def test_a_pool_is_generic_in_the_type_of_its_rows() -> None:
    program = """
from typing import Any, assert_type
from psycopg.rows import TupleRow, dict_row
from tocsin.driver import Pool, TrioConnection, open_pool

async def main() -> None:
    async with open_pool(lambda: TrioConnection.connect()) as pool, pool.connection() as connection:
        assert_type(pool, Pool[TupleRow])
        assert_type(connection, TrioConnection[TupleRow])
    async with (
        open_pool(lambda: TrioConnection.connect(row_factory=dict_row)) as dicts,
        dicts.connection() as other,
    ):
        assert_type(dicts, Pool[dict[str, Any]])
        assert_type(await (await other.execute("select 1")).fetchone(), dict[str, Any] | None)
"""
    output, errors, code = mypy.api.run(["--config-file=", "--strict", "-c", program])
    assert code == 0, output + errors
