"""Runs that end when nothing is left to do, and producing many without a producer."""

from __future__ import annotations

import pytest
import trio

import tocsin
from tests.support import PATIENCE, Handled, query


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


async def test_produce_many_in_a_transaction(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.create("q")
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as connection:
            assert await store.produce_many("q", ["a", "b"], connection=connection, priority=3) == [
                1,
                2,
            ]
            raise ZeroDivisionError
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]
    # and nobody is registered
    assert await query(store_dsn, "select count(*)::int from tocsin.workers") == [(0,)]
