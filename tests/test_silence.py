"""The network or the server falls silent: nothing waits without an end, and what can go on goes on.

The tests' clock runs like any other until the silence begins. While that lasts it jumps to what is waited for next, so the tests measure
what the code waits for and not what the machine needs.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio
import trio.testing
from driver import proxy
from support import PATIENCE, Handled, query, until_asleep

import tocsin
from tocsin.driver.grace import GRACE
from tocsin.embedded import EmbeddedServer


@pytest.fixture
def clock(mock_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """A clock that runs at the usual pace, until it is told to jump."""
    mock_clock.rate = 1
    return mock_clock


@contextmanager
def jumping(clock: trio.testing.MockClock) -> Iterator[None]:
    """The clock jumps for the length of the block."""
    clock.autojump_threshold = 0.01
    try:
        yield
    finally:
        clock.autojump_threshold = math.inf


async def processes_of(server: EmbeddedServer) -> list[int]:
    """The server's processes, the first one first."""
    postmaster = int((server.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
    return [postmaster, *(pid for (pid,) in await query(server.dsn, "select pid from pg_stat_activity where pid <> pg_backend_pid()"))]


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """The processes of a server are stopped for the length of the block, as on a host that hangs."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def block(_: tocsin.Message) -> None:
    await trio.sleep_forever()


async def settle_slowly(message: tocsin.Message) -> None:
    """A handler that is cancelled in the middle of a statement."""
    while True:
        await message.extend(30)


@pytest.mark.parametrize("then", [None, block, settle_slowly])
async def test_a_cancelled_consumer_of_a_frozen_server_ends_within_one_grace(
    own_server: EmbeddedServer, clock: trio.testing.MockClock, then: Callable[[tocsin.Message], Awaitable[None]] | None
) -> None:
    handled, stores = Handled(then), list[tocsin.Store]()

    async def work() -> None:
        async with tocsin.connect(own_server.dsn) as store:
            await store.install()
            await store.queues.ensure("q")
            await store.produce_many("q", range(3))
            async with store.consumer("q") as consumer, store.producer("q"):
                stores.append(store)
                await consumer.handle(handled, concurrency=3)

    with trio.fail_after(PATIENCE), ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await handled.wait(3)
            if then is None:
                await until_asleep(*stores)
            stack.enter_context(frozen(await processes_of(own_server)))
            stack.enter_context(jumping(clock))
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < 2 * GRACE


async def test_a_run_that_is_to_end_while_the_network_is_silent(store_dsn: str, clock: trio.testing.MockClock) -> None:
    """Grace is over for a handler that hangs, then nothing that is left to be said is answered."""
    handled = Handled(block)
    with trio.fail_after(PATIENCE), ExitStack() as stack:
        async with proxy.running(store_dsn) as network, tocsin.connect(network.dsn()) as store:
            await store.queues.ensure("q")
            await store.produce("q", 1)
            ended = list[tocsin.Suspended]()

            async def work() -> None:
                try:
                    async with store.consumer("q") as consumer, tocsin.drain_on_signals(consumer, grace=7):
                        await consumer.handle(handled)
                except tocsin.Suspended as suspended:
                    ended.append(suspended)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                await handled.wait(1)
                network.silent = True
                stack.enter_context(jumping(clock))
                began = trio.current_time()
                signal.raise_signal(signal.SIGTERM)
            assert trio.current_time() - began < 7 + GRACE + 1
            assert [s.reason for s in ended] == ["interrupted"]
