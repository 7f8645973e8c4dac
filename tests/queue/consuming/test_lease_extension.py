"""Leases while a handler runs: extended, and lost."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, move_clock, open_connection, query
from tests.support.runs import running, running_call
from tests.support.sweeps import sweep


@sweep("way", ["async", "thread", "batch", "stream"], quick=2)
async def test_heartbeat_and_lease_extension_while_a_handler_runs(store_dsn: str, way: str) -> None:
    """Both go on for as long as it runs: the worker counts as alive, and its message is
    no other worker's."""
    async with tocsin.connect(store_dsn, heartbeat=0.1) as store:
        await store.queues.ensure("q", vt=0.4)
        message_id = await store.produce("q", 1)
        began, go_on = trio.Event(), threading.Event()

        async def handle(_: object) -> None:
            began.set()
            while not go_on.is_set():
                await trio.lowlevel.checkpoint()

        def block(_: tocsin.Message) -> None:
            trio.from_thread.run_sync(began.set)
            assert go_on.wait(PATIENCE)

        async def consume(*, task_status: trio.TaskStatus[None]) -> None:
            if way == "stream":
                async with consumer.messages() as stream:
                    task_status.started()
                    async for message in stream:
                        await handle(message)
                        await message.archive()
            elif way == "batch":
                await consumer.handle_batches(handle, size=5, task_status=task_status)
            else:
                handler = block if way == "thread" else handle
                await consumer.handle(handler, task_status=task_status)

        async with (
            store.consumer("q") as consumer,
            store.consumer("q") as other,
            open_connection(store_dsn) as observer,
            running_call(consumer, consume) as run,
        ):
            await began.wait()
            signs = set[object]()
            with trio.fail_after(PATIENCE):
                while len(signs) < 5:
                    cursor = await observer.execute(
                        "select vt - dequeued_at > '1.2 s', read_ct from tocsin.messages"
                    )
                    ((extended, read_ct),) = await cursor.fetchall()
                    assert read_ct == 1
                    assert await other.dequeue() == []
                    if extended:  # three times as long as a lease, and still it is kept
                        signs.add((await consumer.info()).heartbeat_at)
            assert await consumer.is_healthy(30)
            go_on.set()
            await run.settled(1, "archived")
        assert (await store.messages.get(message_id)).read_ct == 1


async def test_expired_lease_goes_to_another_and_fences_the_first(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("tasks")
    await store.produce("tasks", 1)
    async with store.consumer("tasks", name="a") as a, store.consumer("tasks", name="b") as b:
        (by_a,) = await a.dequeue(vt=1)
        assert await b.dequeue() == []
        await move_clock(store_dsn, 1.5)
        (by_b,) = await b.dequeue(wait=PATIENCE)
        assert (by_b.id, by_b.read_ct) == (by_a.id, 2)
        assert by_b.lease_token > by_a.lease_token
        for refused in (by_a.archive(), by_a.delete(), by_a.release(), by_a.extend(30)):
            with pytest.raises(tocsin.LeaseLost):
                await refused
        await by_b.archive()
        assert await query(store_dsn, "select consumer_worker_id, read_ct from tocsin.archive") == [
            (b.worker_id, 2)
        ]


async def test_handler_that_outlives_the_visibility_timeout_three_times(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("tasks", vt=0.4)
    await store.produce("tasks", 1)
    leases = list[tuple[object, ...]]()

    async def handle(message: tocsin.Message) -> None:
        # Until the lease has been extended so often that it ends three visibility
        # timeouts after it began.
        async with open_connection(store_dsn) as connection:
            while not leases or leases[-1][0] < 3 * 0.4:  # type: ignore[operator]
                cursor = await connection.execute(
                    "select extract(epoch from vt - dequeued_at)::float8 - 0.4, read_ct from"
                    " tocsin.messages where id = %s",
                    [message.id],
                )
                leases.extend(await cursor.fetchall())

    async with (
        store.consumer("tasks") as a,
        store.consumer("tasks") as b,
        running(a, handle) as run,
    ):
        await run.handled.wait(1)
        async with running(b) as other:
            await run.settled(1, "archived")
    assert len(run.handled.messages) == 1
    assert other.handled.messages == []
    assert {read_ct for _, read_ct in leases} == {1}
