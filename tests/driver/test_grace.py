"""All steps of a cleanup share one deadline while the server is silent."""

from __future__ import annotations

import trio
import trio.testing

from bench import proxy
from tocsin._concurrency.grace import GRACE, Grace
from tocsin.driver import TrioConnection


async def test_steps_share_the_deadline_until_the_server_has_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    grace, began = Grace(), trio.current_time()
    for taken in (GRACE, GRACE):  # the second step has no time left
        with grace.scope() as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() - began == taken
    grace.answered()
    with grace.scope() as scope:
        await trio.sleep_forever()
    assert trio.current_time() - began == 2 * GRACE


async def test_a_step_is_shielded(autojump_clock: trio.testing.MockClock) -> None:
    with trio.CancelScope() as outer:
        outer.cancel()
        with Grace().scope() as scope:
            await trio.sleep(GRACE - 1)
        assert not scope.cancelled_caught


async def test_connections_that_share_one_are_given_up_together(
    dsn: str, mock_clock: trio.testing.MockClock
) -> None:
    """Four statements under way, cancelled one after the other."""
    mock_clock.rate = 1
    async with proxy.running(dsn) as server:
        grace = Grace()
        connections = [
            await TrioConnection.connect(server.dsn(), autocommit=True) for _ in range(4)
        ]
        server.silence_all()
        began = trio.current_time()
        mock_clock.autojump_threshold = 0
        for connection in connections:
            connection.share_grace(grace)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.execute, "select 1")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert connection.closed
        assert GRACE <= trio.current_time() - began < 2 * GRACE


async def test_an_answer_gives_all_of_the_time_again(dsn: str) -> None:
    async with await TrioConnection.connect(dsn, autocommit=True) as connection:
        first = connection.grace.begin()
        assert connection.grace.begin() == first
        await connection.execute("select 1")
        assert connection.grace.begin() > first
        with trio.move_on_after(0.05):
            await connection.execute("select pg_sleep(60)")
        assert not connection.closed
        assert connection.grace.begin() > first
