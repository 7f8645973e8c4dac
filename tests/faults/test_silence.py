"""The network or the server falls silent: nothing waits without an end, and what can go
on goes on.

The tests' clock runs like any other until the silence begins. While that lasts it jumps
to what is waited for next, so the tests measure what the code waits for and not what
the machine needs.
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
from psycopg.conninfo import make_conninfo

import tocsin
from bench import proxy
from tests.support import (
    PATIENCE,
    Handled,
    open_connection,
    query,
    until,
    until_idle,
    until_query,
    until_true,
)
from tests.support.runs import running
from tests.support.sweeps import sweep
from tocsin._concurrency.grace import GRACE
from tocsin._database.client import Connection
from tocsin.embedded import EmbeddedServer

pytestmark = pytest.mark.fault


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
    return [
        postmaster,
        *(
            pid
            for (pid,) in await query(
                server.dsn, "select pid from pg_stat_activity where pid <> pg_backend_pid()"
            )
        ),
    ]


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """The processes of a server are stopped for the length of the block, as on a host
    that hangs."""
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


@sweep("then", [None, block, settle_slowly], quick=1)
async def test_a_cancelled_consumer_of_a_frozen_server_ends_within_one_grace(
    own_server: EmbeddedServer,
    clock: trio.testing.MockClock,
    then: Callable[[tocsin.Message], Awaitable[None]] | None,
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
                await until_idle(*stores)
            stack.enter_context(frozen(await processes_of(own_server)))
            stack.enter_context(jumping(clock))
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < 2 * GRACE


async def test_a_run_that_is_to_end_while_the_network_is_silent(
    store_dsn: str, clock: trio.testing.MockClock
) -> None:
    """Grace is over for a handler that hangs, then nothing that is left to be said is
    answered."""
    handled = Handled(block)
    with trio.fail_after(PATIENCE), ExitStack() as stack:
        async with proxy.running(store_dsn) as network, tocsin.connect(network.dsn()) as store:
            await store.queues.ensure("q")
            await store.produce("q", 1)
            ended = list[tocsin.Suspended]()

            async def work() -> None:
                try:
                    async with (
                        store.consumer("q") as consumer,
                        tocsin.drain_on_signals(consumer, grace=7),
                    ):
                        await consumer.handle(handled)
                except tocsin.Suspended as suspended:
                    ended.append(suspended)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                await handled.wait(1)
                network.silence_all()
                stack.enter_context(jumping(clock))
                began = trio.current_time()
                signal.raise_signal(signal.SIGTERM)
            assert trio.current_time() - began < 7 + GRACE + 1
            assert [s.reason for s in ended] == ["interrupted"]


async def test_what_a_run_held_whose_end_was_cut_off_is_delivered_to_the_next(
    own_server: EmbeddedServer, clock: trio.testing.MockClock
) -> None:
    go_on = trio.Event()

    async def go_on_or_block(message: tocsin.Message) -> None:
        await (go_on.wait() if message.payload == "done" else block(message))

    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q", vt=3600)
        await store.produce_many("q", ["done", "held"])
        async with store.consumer("q") as consumer:
            with trio.fail_after(PATIENCE), ExitStack() as stack:
                async with running(consumer, go_on_or_block, concurrency=2) as run:
                    await run.handled.wait(2)
                    stack.enter_context(frozen(await processes_of(own_server)))
                    stack.enter_context(jumping(clock))
                    go_on.set()  # what is done is still to be archived
                    run.cancel()
            async with running(consumer) as run:
                await until(lambda: "held" in run.handled.payloads)
                run.cancel()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is asked about a silent session sooner than usual."""
    for name in ("ASK_AFTER", "CONFIRM_AFTER"):
        monkeypatch.setattr(f"tocsin.driver._watch.{name}", 0.1)


@pytest.mark.usefixtures("quick")
async def test_a_pool_connection_that_is_dropped_in_silence(store_dsn: str) -> None:
    """A load balancer forgets the connections of the pool, but for the one that
    listens."""
    with trio.fail_after(PATIENCE):
        async with (
            proxy.running(store_dsn) as network,
            tocsin.connect(network.dsn(), listen_dsn=store_dsn) as store,
        ):
            await store.queues.ensure("q", vt=3600)
            async with store.consumer("q") as consumer, running(consumer) as run:
                await store.produce("q", "before")
                await run.handled.wait(1)
                await until_idle(store)
                network.silence()
                assert store.statistics().pool.size >= 1
                await query(store_dsn, "select tocsin.enqueue('q', '\"after\"')")
                await run.handled.wait(2)
                assert store.statistics().listening
                run.cancel()
    assert run.handled.payloads == ["before", "after"]
    assert [m.read_ct for m in run.handled.messages] == [1, 1]


@pytest.mark.usefixtures("quick")
async def test_a_producer_on_a_silent_connection_raises_and_continues(store_dsn: str) -> None:
    with trio.fail_after(PATIENCE):
        async with proxy.running(store_dsn) as network, tocsin.connect(network.dsn()) as store:
            await store.queues.ensure("q")
            await store.produce("q", 1)
            network.silence()
            failed = 0

            async def produce(n: int) -> None:
                nonlocal failed
                try:
                    await store.produce("q", n)
                except tocsin.ConnectionLost as lost:
                    assert "no answer" in lost.reason
                    failed += 1

            # the second one and the third share a statement
            async with trio.open_nursery() as nursery:
                for n in range(2, 5):
                    nursery.start_soon(produce, n)
            assert failed
            await store.produce("q", 5)
            with pytest.raises(tocsin.ConnectionLost, match="no answer"):
                async with store.transaction() as connection:
                    await connection.execute("select 1")
                    network.silence()
                    await store.produce("q", 6, connection=connection)
            assert store.statistics().closed_unanswered >= 2
    assert (5,) in await query(store_dsn, "select payload from tocsin.messages")
    assert (6,) not in await query(store_dsn, "select payload from tocsin.messages")


@pytest.mark.usefixtures("quick")
async def test_a_silent_listen_connection_is_replaced_by_another(store_dsn: str) -> None:
    with trio.fail_after(PATIENCE):
        async with (
            proxy.running(store_dsn) as network,
            tocsin.connect(store_dsn, listen_dsn=network.dsn(), heartbeat=0.2) as store,
        ):
            await store.queues.ensure("q")
            async with store.consumer("q") as consumer, running(consumer) as run:
                await until_idle(store)
                network.silence(network.accepted)
                await until(
                    lambda: store.statistics().closed_unanswered and store.statistics().listening
                )
                count = 0
                # the first messages may come before the consumer waits again
                while not store.statistics().notifications:
                    count += 1
                    await until_idle(store)
                    await query(store_dsn, "select tocsin.enqueue('q', '1')")
                    await run.handled.wait(count)
                run.cancel()


async def test_what_a_frozen_server_claims_late_is_requeued(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim is executed when the server goes on, for a connection that was given up.
    Its message does not wait for the lease to end."""
    monkeypatch.setattr("tocsin.driver._watch.ASK_AFTER", 0.1)
    monkeypatch.setattr("tocsin.driver._watch.PATIENCE", 0.3)
    with trio.fail_after(PATIENCE):
        async with tocsin.connect(own_server.dsn) as store:
            await store.install()
            await store.queues.ensure("q", vt=3600)
            async with store.consumer("q") as consumer, running(consumer) as run:
                await until_idle(store)
                pids = await processes_of(own_server)
                async with open_connection(own_server.dsn) as connection:
                    await connection.execute("select tocsin.enqueue('q', '1')")
                    with frozen(pids):
                        store._process.bell.ring_all()
                        await until(lambda: store.statistics().closed_unanswered)
                await run.handled.wait(1)
                run.cancel()
    assert run.handled.payloads == [1]


@pytest.mark.slow
async def test_the_primary_vanishes_and_another_host_takes_over(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two hosts in the connection string; the first one goes without a word, for new
    connections, too."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    monkeypatch.setattr("tocsin.driver._watch.ASK_AFTER", 0.1)
    async with proxy.running(store_dsn) as first, proxy.running(store_dsn) as second:
        both = make_conninfo(
            store_dsn, host="127.0.0.1,127.0.0.1", port=f"{first.port},{second.port}"
        )
        with trio.fail_after(PATIENCE):
            async with tocsin.connect(both, heartbeat=0.5) as store:
                await store.queues.ensure("q")
                async with store.consumer("q") as consumer, running(consumer) as run:
                    await until_idle(store)
                    assert second.accepted == 0
                    first.silence_all()
                    with pytest.raises(tocsin.ConnectionLost):
                        await store.produce("q", 1)
                    await store.produce("q", 2)
                    await run.handled.wait(1)
                    await until(lambda: store.statistics().listening)
                    assert second.accepted
                    run.cancel()
    assert 2 in run.handled.payloads


async def test_a_silent_connection_costs_no_lease(store_dsn: str) -> None:
    """The pool's connections fall silent, again and again, and leases end long before
    that is found out."""
    go_on = trio.Event()
    with trio.fail_after(PATIENCE):
        async with (
            proxy.running(store_dsn) as network,
            tocsin.connect(network.dsn()) as store,
        ):
            await store.queues.ensure("q", vt=1)
            await store.produce_many("q", range(16))
            async with (
                store.consumer("q") as consumer,
                running(consumer, lambda _: go_on.wait(), concurrency=16) as run,
            ):
                await run.handled.wait(16)
                await until(lambda: store.statistics().listening)
                line = network.accepted
                for _ in range(4):
                    opened = set(range(1, network.accepted + 1))
                    network.silence(*opened - {line})
                    ((ends,),) = await query(store_dsn, "select max(vt) from tocsin.messages")
                    await until_true(store_dsn, "min(vt) > %s from tocsin.messages", ends)
                go_on.set()
                await run.settled(16, "archived")
                assert await query(store_dsn, "select count(*) from tocsin.archive") == [(16,)]
                run.cancel()
    assert [m.read_ct for m in run.handled.messages] == [1] * 16


async def test_the_first_answer_of_two_connections_counts(store_dsn: str) -> None:
    async with proxy.running(store_dsn) as network, tocsin.connect(network.dsn()) as store:
        database = store._database
        assert await database.fetch_from_any("select %s::int", [1], after=PATIENCE) == [(1,)]
        before = network.accepted
        network.silence(1)
        with trio.fail_after(PATIENCE):
            assert await database.fetch_from_any("select %s::int", [2], after=0) == [(2,)]
            assert network.accepted == before + 1
            assert store.statistics().pool.size == 0  # what had not answered is closed
            with pytest.raises(tocsin.ConnectionLost):
                await database.fetch_from_any(
                    "select pg_terminate_backend(pg_backend_pid()), %s", [3], after=PATIENCE
                )


@pytest.mark.usefixtures("quick")
async def test_a_new_connection_that_falls_silent_while_it_ends_abandoned_sessions(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy.running(store_dsn) as network, tocsin.connect(network.dsn()) as store:
        database = store._database
        database._watch._abandoned.add((1, "0"))
        terminate = database._watch.terminate_abandoned
        silent = [network.accepted + 1]

        async def terminate_in_silence(connection: Connection) -> None:
            if silent:
                network.silence(silent.pop())
            await terminate(connection)

        monkeypatch.setattr(database._watch, "terminate_abandoned", terminate_in_silence)
        with trio.fail_after(PATIENCE), pytest.raises(tocsin.ConnectionLost, match="no answer"):
            await database._connect()
        await (await database._connect()).close()
        assert not database._watch.has_abandoned


async def next_heartbeat(store: tocsin.Store) -> None:
    before = store.statistics().heartbeats
    await until(lambda: store.statistics().heartbeats > before)


@pytest.mark.usefixtures("quick")
async def test_a_worker_that_only_listens_gives_no_sign_of_life(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pooler is silent, the way round it is not: the process is alive, and does not
    work."""
    monkeypatch.setattr("tocsin.driver._watch.PATIENCE", 0.2)
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    beat = "select max(heartbeat_at) from tocsin.list_workers()"
    with trio.fail_after(PATIENCE):
        async with (
            proxy.running(store_dsn) as pooler,
            tocsin.connect(pooler.dsn(), listen_dsn=store_dsn, heartbeat=0.2) as store,
        ):
            await store.queues.ensure("q")
            async with store.consumer("q") as consumer, running(consumer) as run:
                await until_idle(store)
                assert store.statistics().failing_for is None
                pooler.silence_all()
                await query(store_dsn, "select tocsin.enqueue('q', '1')")
                await until(lambda: (store.statistics().failing_for or 0) >= 0.2)
                for _ in range(2):  # the second one begins after that
                    ((last,),) = await query(store_dsn, beat)
                    await next_heartbeat(store)
                assert await query(store_dsn, beat) == [(last,)]
                assert store.statistics().listening
                pooler.restore()
                await run.handled.wait(1)
                await until_query(store_dsn, f"{beat} having max(heartbeat_at) > %s", last)
                run.cancel()
