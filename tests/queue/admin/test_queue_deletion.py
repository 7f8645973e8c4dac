"""Deleting a queue, and what becomes of its messages, workers and runs."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, query, until, until_idle, until_query
from tests.support.queues import contents, everything, fill, open_transaction
from tests.support.runs import running


async def test_delete(store: tocsin.Store, store_dsn: str) -> None:
    """With its archive, its dead letters and its stopped workers; nothing of another
    queue."""
    await fill(store)
    await fill(store, "other")
    await store.queues.purge("q", ready=True, delayed=True)
    before, counts = await everything(store_dsn), await contents(store_dsn)
    expected = tocsin.DeleteResult(workers=2, messages=0, archived=4, dead_letters=1)
    assert await store.queues.delete("q", dry_run=True) == expected
    assert await everything(store_dsn) == before
    assert await store.queues.delete("q") == expected
    assert await contents(store_dsn) == {**{t: n // 2 for t, n in counts.items()}, "messages": 5}
    assert not await store.queues.exists("q")
    for attempt in (
        store.queues.delete("q"),
        store.queues.delete("q", force=True),
        store.produce("q", 1),
    ):
        with pytest.raises(tocsin.QueueNotFound):
            await attempt


@pytest.mark.parametrize("state", ["ready", "delayed", "leased", "worker", "suspended worker"])
async def test_delete_is_refused_while_there_are_workers_or_messages(
    store: tocsin.Store, store_dsn: str, state: str
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        if state in ("ready", "leased"):
            await store.produce("q", 1)
        if state == "delayed":
            await store.produce("q", 1, delay=60)
        if state == "leased":
            await consumer.dequeue()
        if state == "suspended worker":
            await consumer.suspend()
        if state in ("ready", "delayed"):
            await query(store_dsn, "update tocsin.workers set status = 'stopped'")
        before = await everything(store_dsn)
        for dry_run in (True, False):
            with pytest.raises(
                tocsin.QueueNotEmpty, match="purge the messages first, or delete the queue with"
            ) as refused:
                await store.queues.delete("q", dry_run=dry_run)
            there = (refused.value.queue, refused.value.workers, refused.value.messages)
            assert there == (
                "q",
                int(state not in ("ready", "delayed")),
                int("worker" not in state),
            )
        assert await everything(store_dsn) == before


async def test_delete_by_force_removes_all_in_one_transaction(
    store: tocsin.Store, store_dsn: str
) -> None:
    await fill(store)
    async with store.consumer("q") as consumer, store.producer("q"):
        await consumer.dequeue()
        expected = tocsin.DeleteResult(workers=4, messages=5, archived=4, dead_letters=1)
        before = await everything(store_dsn)
        assert await store.queues.delete("q", force=True, dry_run=True) == expected
        assert await everything(store_dsn) == before
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as connection:
                cursor = await connection.execute(
                    "select * from tocsin.delete_queue('q', force => true)"
                )
                assert tocsin.DeleteResult(*(await cursor.fetchone() or ())) == expected
                raise ZeroDivisionError
        assert await everything(store_dsn) == before
        assert await store.queues.delete("q", force=True) == expected
        assert set((await contents(store_dsn)).values()) == {0}


async def test_a_queue_created_again_starts_empty(store: tocsin.Store) -> None:
    await fill(store)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        former = await store.queues.get("q")
        await store.queues.delete("q", force=True)
        with pytest.raises(tocsin.QueueNotFound):
            await producer.enqueue(1)
        again = await store.queues.create("q")
        assert again.id != former.id
        metrics = await store.queues.metrics("q")
        assert (
            metrics.ready,
            metrics.delayed,
            metrics.leased,
            metrics.dead,
            metrics.archived,
            metrics.consumers,
        ) == (0, 0, 0, 0, 0, 0)
        with pytest.raises(tocsin.WorkerStopped):  # it was a worker of the former one
            await producer.enqueue(1)
        with pytest.raises(tocsin.WorkerStopped):
            await consumer.dequeue()
        await store.produce("q", "new")
        async with store.consumer("q") as new:
            assert [m.payload for m in await new.dequeue(9, wait=PATIENCE)] == ["new"]


@pytest.mark.parametrize("busy", [False, True])
async def test_runs_on_a_queue_deleted_by_force_end(
    store: tocsin.Store, store_dsn: str, busy: bool
) -> None:
    """At once, in another process, with what the handler was doing cancelled; and the
    process goes on with its other queues."""
    await store.queues.ensure("q", vt=3600)
    await store.queues.ensure("r")
    cancelled = list[int]()

    async def never(message: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(message.id)

    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as other,
        other.consumer("q") as consumer,
        other.consumer("r") as survivor,
        running(survivor) as survivors,
    ):
        async with running(consumer, never) as run:
            if busy:
                message_id = await store.produce("q", 1)
                await run.handled.wait(1)
            else:
                await until_idle(store, other)
            assert (await store.queues.delete("q", force=True)).messages == int(busy)
            ended = await run.wait()
        assert (ended.reason, ended.handled) == ("its registration has ended", 0)
        assert cancelled == ([message_id] if busy else [])
        await store.produce("r", 1)
        await survivors.handled.wait(1)
    assert survivors.suspended.handled == 1


async def test_a_stream_and_a_dequeue_on_a_queue_deleted_by_force_end(store: tocsin.Store) -> None:
    await store.queues.ensure("q")

    async def stream() -> None:
        with pytest.raises(tocsin.Suspended):
            async with store.consumer("q") as consumer, consumer.messages() as messages:
                async for _ in messages:
                    raise AssertionError

    async def dequeue() -> None:
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.WorkerStopped):
                await consumer.dequeue(wait=3600)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream)
            nursery.start_soon(dequeue)
            await until_idle(store)
            await until(lambda: store.workers.list("q"))
            await store.queues.delete("q", force=True)


async def test_a_process_declared_dead_goes_on_though_a_queue_of_its_is_deleted(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.queues.ensure("r")
    async with (
        tocsin.connect(store_dsn, heartbeat=0.05) as other,
        other.consumer("q") as gone,
        other.consumer("r") as survivor,
    ):
        async with open_transaction(store_dsn) as connection:
            await connection.execute(
                "select tocsin.unregister_process(process_id, true) from tocsin.workers where id"
                " = %s",
                [gone.worker_id],
            )
            await connection.execute("select tocsin.delete_queue('q')")
            await connection.execute("commit")
        alive = "select 1 from tocsin.workers where id = %s and status = 'ready'"
        await until_query(store_dsn, alive, survivor.worker_id)
        await store.produce("r", 1)
        assert len(await survivor.dequeue(wait=PATIENCE)) == 1
