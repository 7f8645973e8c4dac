"""Runs from beginning to end: interrupted, handed over, shared, shut down."""

from __future__ import annotations

import pytest
import trio

import tocsin
from tests.support import PATIENCE, Handled, next_event, query
from tests.support.runs import running
from tocsin import telemetry


async def test_poll_interrupt_suspended_archived(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("tasks")
    message_id = await store.produce("tasks", {"n": 1})
    async with store.consumer("tasks", name="a") as consumer:
        async with running(consumer) as run:
            await run.handled.wait(1)
        assert run.suspended.handled == 1
        assert await consumer.status() == "suspended"
        assert await query(store_dsn, "select id, consumer_worker_id from tocsin.archive") == [
            (message_id, consumer.worker_id)
        ]


async def test_a_worker_whose_run_found_nothing_left_is_ready_for_another_run(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("tasks")
    async with store.consumer("tasks") as consumer:
        for n in range(2):
            await store.produce("tasks", n)
            handled = Handled()
            with trio.fail_after(PATIENCE), pytest.raises(tocsin.Suspended) as ended:
                await consumer.handle(handled, once=True)
            assert ended.value.handled == 1
            assert handled.payloads == [n]
            assert await consumer.status() == "ready"


async def test_interrupt_ends_after_the_running_handler(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("tasks")
    message_id = await store.produce("tasks", 1)
    go_on = trio.Event()
    async with store.consumer("tasks") as consumer:
        async with running(consumer, lambda _: go_on.wait()) as run:
            await run.handled.wait(1)
            await consumer.interrupt()
            assert await consumer.status() == "interrupted"
            assert not run.ended
            go_on.set()
        assert await query(store_dsn, "select id from tocsin.archive") == [(message_id,)]
        assert await consumer.status() == "suspended"


async def test_handoff(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("tasks")
    async with (
        store.consumer("tasks", name="a") as a,
        store.consumer("tasks", name="b") as b,
        store.producer("tasks") as producer,
    ):
        async with running(a) as run:
            first = await producer.enqueue("first")
            await run.handled.wait(1)
        assert await a.status() == "suspended"
        async with running(b) as run:
            second = await producer.enqueue("second")
            await run.handled.wait(1)
        owners = await query(
            store_dsn, "select id, consumer_worker_id from tocsin.archive order by id"
        )
        assert owners == [(first, a.worker_id), (second, b.worker_id)]


async def test_two_consumers_drain_forty(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("tasks")
    handled = Handled()
    async with (
        store.consumer("tasks") as a,
        store.consumer("tasks") as b,
        store.producer("tasks") as producer,
    ):
        async with running(a, handled) as by_a, running(b, handled) as by_b:
            ids = [await producer.enqueue(n) for n in range(40)]
            await handled.wait(40)
        assert [await a.status(), await b.status()] == ["suspended", "suspended"]
        assert sorted(m.id for m in handled.messages) == ids
        assert by_a.suspended.handled + by_b.suspended.handled == 40
        assert await query(
            store_dsn, "select count(*), count(distinct id) from tocsin.archive"
        ) == [(40, 40)]


async def test_shutdown_is_refused_while_messages_are_held(store: tocsin.Store) -> None:
    await store.queues.ensure("tasks")
    async with store.producer("tasks") as producer, store.consumer("tasks") as consumer:
        await producer.enqueue_many([1, 2, 3])
        held = await consumer.dequeue(3)
        with pytest.raises(tocsin.PendingMessages) as pending:
            await consumer.suspend()
        assert pending.value.count == 3
        handle = await store.workers.get(consumer.worker_id)
        async with trio.open_nursery() as nursery:
            with store.events.subscribe(telemetry.WorkerStateChanged) as changes:
                nursery.start_soon(lambda: consumer.suspend(drain=True))
                await next_event(changes, lambda c: c.status == "suspended")
            with pytest.raises(tocsin.PendingMessages) as pending:
                await handle.shutdown()
            assert pending.value.count == 3
            assert await consumer.release_many(held[:2]) == [True, True]
            with pytest.raises(tocsin.PendingMessages) as pending:
                await handle.shutdown()
            assert pending.value.count == 1
            await consumer.release(held[2])
        await handle.shutdown()
        info = await consumer.info()
        assert info.status == "stopped"
        assert info.shutdown_at is not None


async def test_once_handles_what_is_due_and_ends(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.create("q")
    await store.produce_many("q", range(100))
    await store.produce("q", "later", delay=3600)
    handled = Handled()
    async with store.consumer("q") as consumer:
        for expected in (100, 0):
            with (
                pytest.raises(tocsin.Suspended, match="nothing is left to do") as ended,
                trio.fail_after(PATIENCE),
            ):
                await consumer.handle(handled, concurrency=7, once=True)
            assert (ended.value.handled, ended.value.released) == (expected, 0)
        assert await consumer.status() == tocsin.WorkerStatus.READY
    assert sorted(handled.payloads) == list(range(100))
    assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(100,)]


async def test_once_waits_for_handlers_and_what_they_enqueue(store: tocsin.Store) -> None:
    await store.queues.create("q")
    await store.produce("q", 30)

    async def enqueue_one_less(message: tocsin.Message) -> None:
        await trio.lowlevel.checkpoint()
        if message.payload:
            await store.produce("q", message.payload - 1)

    handled = Handled(enqueue_one_less)
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
            await consumer.handle(handled, concurrency=3, once=True)
    assert handled.payloads == list(range(30, -1, -1))


async def test_once_with_batches(store: tocsin.Store) -> None:
    await store.queues.create("q")
    await store.produce_many("q", range(10))
    got = list[object]()

    async def handle(messages: list[tocsin.Message]) -> None:
        got.extend(m.payload for m in messages)

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
            await consumer.handle_batches(handle, size=4, once=True)
    assert got == list(range(10))


async def test_once_ends_on_a_paused_queue(store: tocsin.Store) -> None:
    await store.queues.create("q")
    await store.produce("q", 1)
    await store.queues.pause("q")
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as ended, trio.fail_after(PATIENCE):
            await consumer.handle(Handled(), once=True)
    assert ended.value.handled == 0
