"""SIGINT and SIGTERM within `drain_on_signals`, at every moment that a service may be in."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from support import PATIENCE, Handled, query, run_until_suspended, until_asleep

import tocsin
from tocsin.embedded import EmbeddedServer


async def hang(_: object) -> None:
    await trio.sleep_forever()


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    with trio.fail_after(PATIENCE):
        while not await condition():
            await trio.lowlevel.checkpoint()


async def test_a_signal_ends_a_suspended_run(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    suspended = list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:

        async def serve() -> None:
            async with tocsin.drain_on_signals(consumer):
                await run_until_suspended(consumer, Handled(), suspended)

        nursery.start_soon(serve)
        await until(lambda: query(store_dsn, "select 1 from tocsin.workers where status = 'polling'"))
        await (await store.workers.get(consumer.worker_id)).suspend()
        signal.raise_signal(signal.SIGTERM)
        with trio.move_on_after(PATIENCE):
            while not suspended:
                await query(store_dsn, "select")
        nursery.cancel_scope.cancel()
    assert suspended


async def test_a_signal_between_two_runs_while_the_database_is_away_ends_the_next(own_server: EmbeddedServer) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer, tocsin.drain_on_signals(consumer):
            await own_server.stop()
            signal.raise_signal(signal.SIGTERM)
            with trio.fail_after(PATIENCE):
                while store.statistics().pool.opened and not store.statistics().pool.broken:  # what it had, it has found broken
                    await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.05)
            await own_server.start()
            with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
                while True:
                    with trio.move_on_after(0.5):
                        await consumer.handle(hang)


async def test_a_signal_is_not_forgotten_when_a_suspension_ends_before_the_next_run(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer, tocsin.drain_on_signals(consumer):
        handle = await store.workers.get(consumer.worker_id)
        await handle.suspend()
        signal.raise_signal(signal.SIGTERM)  # the registry refuses to interrupt a suspended worker
        await trio.testing.wait_all_tasks_blocked(0.05)
        await handle.resume()
        with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
            await consumer.handle(hang)


async def test_a_signal_ends_a_wait_for_messages_by_hand(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    with trio.fail_after(PATIENCE):
        async with store.consumer("q") as consumer, tocsin.drain_on_signals(consumer), trio.open_nursery() as nursery:

            async def take() -> None:
                with pytest.raises(tocsin.Suspended):
                    await consumer.dequeue(wait=3600)

            nursery.start_soon(take)
            await until_asleep(store)
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("command", ["interrupt", "suspend"])
async def test_a_command_ends_a_wait_for_messages_by_hand(store: tocsin.Store, command: str) -> None:
    await store.queues.ensure("q")
    with trio.fail_after(PATIENCE):
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:

            async def take() -> None:
                with pytest.raises(tocsin.StateTransitionError):
                    await consumer.dequeue(wait=3600)

            nursery.start_soon(take)
            await until_asleep(store)
            handle = await store.workers.get(consumer.worker_id)
            await {"interrupt": handle.interrupt, "suspend": handle.suspend}[command]()


async def test_a_loop_that_begins_anew_when_the_connection_is_lost_does_not_forget_a_signal(own_server: EmbeddedServer) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended) as caught:
                async with tocsin.drain_on_signals(consumer):
                    await own_server.stop()
                    signal.raise_signal(signal.SIGTERM)
                    await trio.testing.wait_all_tasks_blocked()
                    await consumer.suspend()
    assert isinstance(caught.value.__cause__, tocsin.ConnectionLost)


async def test_without_a_signal_a_lost_connection_is_what_it_is(own_server: EmbeddedServer) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.ConnectionLost):
                async with tocsin.drain_on_signals(consumer):
                    await own_server.stop()
                    await consumer.suspend()


async def test_after_the_block_a_consumer_may_run_again(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            async with tocsin.drain_on_signals(consumer):
                signal.raise_signal(signal.SIGTERM)
                await trio.testing.wait_all_tasks_blocked()
                await consumer.handle(hang)
        await consumer.resume()
        assert await consumer.dequeue() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_drain_and_a_second_one_cancels(store: tocsin.Store, number: signal.Signals) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    began = trio.Event()

    async def handle(_: tocsin.Message) -> None:
        began.set()
        await trio.sleep_forever()

    async def signal_twice(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await began.wait()
        for _ in range(2):
            signal.raise_signal(number)
            await trio.testing.wait_all_tasks_blocked()

    with trio.fail_after(PATIENCE):
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(signal_twice)
            with pytest.raises(KeyboardInterrupt):
                async with tocsin.drain_on_signals(consumer):
                    await consumer.handle(handle)
    async with store.consumer("q") as consumer:
        assert [m.read_ct for m in await consumer.dequeue()] == [1]


async def test_a_signal_ends_a_run_whose_handlers_have_ended_while_the_database_is_away(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin.driver.grace.GRACE", 0.1)
    began, away = trio.Event(), trio.Event()

    async def handle(_: tocsin.Message) -> None:
        began.set()
        await away.wait()

    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        await store.produce("q", 1)
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:

            async def serve() -> None:
                with pytest.raises(tocsin.Suspended):
                    async with tocsin.drain_on_signals(consumer):
                        await consumer.handle(handle)

            nursery.start_soon(serve)
            with trio.fail_after(PATIENCE):
                await began.wait()
                await own_server.stop()
                signal.raise_signal(signal.SIGTERM)
                away.set()
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
