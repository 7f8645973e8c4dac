"""A consumer that waits is woken by a message, without polling."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, Handled, query, since, statements, until_idle
from tests.support.runs import running
from tests.support.sweeps import sweep
from tocsin._queue.process import bell


@sweep("way", ["handle", "handle_batches", "messages", "dequeue"], quick=2)
async def test_wake_up_without_polling(dsn_of_quiet_store: str, way: str) -> None:
    """Whichever way a consumer waits, the process sends no statement while it waits,
    and a message wakes it."""
    dsn = dsn_of_quiet_store
    got = Handled()

    async def first(messages: list[tocsin.Message]) -> None:
        await got(messages[0])

    async def run(consumer: tocsin.Consumer) -> None:
        if way == "handle":
            await consumer.handle(got)
        elif way == "handle_batches":
            await consumer.handle_batches(first, size=10)
        elif way == "messages":
            async with consumer.messages() as stream:
                async for message in stream:
                    await got(message)
        else:
            while True:
                for message in await consumer.dequeue(wait=3600):
                    await got(message)

    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(run, consumer)
            await until_idle(store)
            before = await statements(dsn)
            # no task has run for this time, whatever its clock
            await trio.testing.wait_all_tasks_blocked(0.5)
            assert since(before, await statements(dsn)) == {}
            await query(dsn, "select tocsin.enqueue('q', '1')")
            await got.wait(1)
            nursery.cancel_scope.cancel()


async def test_delayed_message_on_a_silent_queue(
    dsn_of_quiet_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No statement runs in between. That it is handled within 50 ms of its time is what
    the benchmark ``delayed`` measures."""
    # On a busy machine the claim may take so long that the queue becomes idle.
    monkeypatch.setattr(bell, "LINGER", math.inf)
    dsn, ran, read = dsn_of_quiet_store, dict[str, int](), trio.Event()

    async def read_statements(_: tocsin.Message) -> None:
        ran.update(since(before, await statements(dsn)))
        read.set()

    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("tasks")
        async with store.consumer("tasks") as consumer, running(consumer, read_statements) as run:
            await until_idle(store)
            await query(dsn, "select tocsin.enqueue('tasks', '1', delay => '2 s')")
            await until_idle(store)
            before = await statements(dsn)
            # it is not yet its time
            assert await query(dsn, "select state::text from tocsin.messages") == [("delayed",)]
            with trio.fail_after(PATIENCE):
                await read.wait()
        (message,) = run.handled.messages
    assert (message.dequeued_at - message.enqueued_at).total_seconds() >= 2
    # From the enqueueing to the handler's first line: the question above, and the claim
    # that brought the message.
    assert sorted(ran.values()) == [1, 1]
    assert [".claim(" in text for text in sorted(ran, key=len)] == [False, True]
