"""Queues: creating, finding, pausing, and their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import tocsin
from tests.support import query, until_idle, until_query
from tests.support.child import run_script
from tests.support.queues import dequeue_into, open_transaction, until_waiting
from tests.support.runs import running
from tests.support.sweeps import sweep

# Creating, finding, settings


async def test_create_get_list_count_exists(store: tocsin.Store) -> None:
    created = await store.queues.create(
        "b", vt=10, max_deliveries=2, retry_base=3, retry_factor=4, retry_max=50, retry_jitter=0.5
    )
    assert (
        created.vt,
        created.max_deliveries,
        created.retry_base,
        created.retry_factor,
        created.retry_max,
    ) == (10, 2, 3, 4, 50)
    with pytest.raises(tocsin.QueueAlreadyExists) as refused:
        await store.queues.create("b")
    assert refused.value.queue == "b"
    changed = await store.queues.ensure("b", vt=20)
    assert (changed.id, changed.vt, changed.max_deliveries, changed.notify) == (
        created.id,
        20,
        2,
        "on_demand",
    )
    assert (await store.queues.ensure("b", notify="always")).notify == "always"
    changed = await store.queues.ensure("b", vt=30)
    assert changed.notify == "always"
    await store.queues.ensure("a")
    assert [q.name for q in await store.queues.list()] == ["a", "b"]
    assert await store.queues.count() == 2
    assert (await store.queues.exists("a"), await store.queues.exists("c")) == (True, False)
    assert await store.queues.get("b") == changed


@pytest.mark.parametrize(
    "first",
    [
        "created and committed",
        "created and rolled back",
        "deleted and committed",
        "deleted and rolled back",
    ],
)
async def test_ensure_at_the_same_moment_as_another_that_creates_or_deletes_it(
    store: tocsin.Store, store_dsn: str, first: str
) -> None:
    """The second call waits for the first, reads its outcome, and in each case returns
    the queue with its own settings."""
    ensured: list[tocsin.Queue] = []
    done, _, end = first.partition(" and ")

    async def ensure() -> None:
        ensured.append(await store.queues.ensure("q", vt=20))

    if done == "deleted":
        await store.queues.ensure("q", vt=10, max_deliveries=2)
    async with open_transaction(store_dsn) as other:
        await other.execute(
            "select tocsin.ensure_queue('q', max_deliveries => 2)"
            if done == "created"
            else "select tocsin.delete_queue('q')"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ensure)
            await until_waiting(store_dsn, "ensure_queue")
            await other.execute("commit" if end == "committed" else "rollback")
    there = await store.queues.get("q")
    assert ensured == [there]
    assert (there.vt, there.max_deliveries == 2) == (
        20,
        first in ("created and committed", "deleted and rolled back"),
    )


async def test_pause_and_resume_a_queue(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        assert (await store.queues.pause("q")).paused_at is not None
        await producer.enqueue(1)
        assert await consumer.dequeue() == []
        with pytest.raises(tocsin.QueueNotFound):
            await store.queues.pause("r")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dequeue_into, got := list[tocsin.Message](), consumer)
            await trio.testing.wait_all_tasks_blocked()
            assert (await store.queues.resume("q")).paused_at is None
        assert [m.payload for m in got] == [1]


async def test_a_pause_counts_at_once_in_every_process_and_for_runs_under_way(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Both are in the middle of a backlog. Afterwards they hold nothing and wait, and
    nothing was claimed after the pause."""
    await store.queues.create("q")
    await store.produce_many("q", range(2000))
    unfinished = "select count(*)::int from tocsin.messages"
    leased = "select from tocsin.messages where state = 'leased'"
    waits = (
        "select 1 from pg_locks l, tocsin.queues q where l.locktype = 'advisory' and l.mode ="
        " 'ShareLock' and (l.classid::bigint << 32) | l.objid::bigint = tocsin._lock_key('waiting',"
        " q.id) having count(*) = 2"
    )
    async with (
        run_script("consume.py", store_dsn, "q", "remote", "go") as child,
        store.consumer("q") as consumer,
    ):
        await child.words("worker")
        await child.words("handling")
        async with running(consumer) as run:
            await run.handled.wait(1)
            await store.queues.pause("q")
            ((paused_at,),) = await query(store_dsn, "select tocsin._clock()")
            ring = await store.produce("q", -1)
            await until_query(
                store_dsn, f"select 1 where not exists ({leased}) and exists ({waits})"
            )
            ((left,),) = await query(store_dsn, unfinished)
            assert 0 < left < 2001
            assert await query(
                store_dsn, "select max(dequeued_at) <= %s from tocsin.archive", paused_at
            ) == [(True,)]
            await store.queues.resume("q")
            await until_query(store_dsn, unfinished, gives=[(0,)])
            assert (await store.messages.get(ring)).state == "archived"
            workers = "select count(distinct consumer_worker_id) from tocsin.archive"
            assert await query(store_dsn, workers) == [(2,)]
            run.cancel()


# Deleting while producers and consumers come


# Names


HOSTILE = [
    "'",
    '"',
    "q'; drop schema tocsin cascade; --",
    "a\"b'c",
    "очередь",
    "😀" * 63,
    "x" * 255,
    "%s",
    "{}",
    "tocsin.q",
    "\\",
    " ",
    "\n",
    "null",
    "$1",
]


@sweep("name", HOSTILE, quick=2)
async def test_hostile_names_work(store: tocsin.Store, store_dsn: str, name: str) -> None:
    """At every entry point of queues; and they are heard, by a channel of whatever
    name."""
    await store.queues.ensure("bystander")
    queues = store.queues
    assert (await queues.create(name)).name == name
    assert (await queues.ensure(name, vt=5)).vt == 5
    assert (await queues.update(name, vt=6)).vt == 6
    assert (await queues.get(name)).name == name
    assert await queues.exists(name)
    assert name in [q.name for q in await queues.list()]
    assert (await queues.pause(name)).paused_at is not None
    assert (await queues.resume(name)).paused_at is None
    async with (
        store.consumer(name) as consumer,
        store.producer(name) as producer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(dequeue_into, got := list[tocsin.Message](), consumer)
        await until_idle(store)
        await producer.enqueue(1)
    assert [m.queue for m in got] == [name]
    metrics = await queues.metrics(name)
    assert (metrics.queue, metrics.ready) == (name, 1)
    assert name in [m.queue for m in await queues.metrics()]
    with pytest.raises(tocsin.QueueNotEmpty) as refused:
        await queues.delete(name)
    assert refused.value.queue == name
    assert (await queues.purge(name, ready=True)).ready == 1
    await queues.delete(name)
    assert [q.name for q in await queues.list()] == ["bystander"]


@sweep("name", ["", "\0", "q\0r", "\ud800", "x" * 256, "ä" * 128], quick=2)
async def test_names_that_cannot_be_are_refused(store: tocsin.Store, name: str) -> None:
    queues = store.queues
    for create in (queues.create, queues.ensure):
        with pytest.raises(ValueError, match="name must"):
            await create(name)
    assert not await queues.exists(name)
    calls: list[Callable[[], Any]] = [
        lambda: queues.update(name, vt=1),
        lambda: queues.get(name),
        lambda: queues.pause(name),
        lambda: queues.resume(name),
        lambda: queues.purge(name, ready=True),
        lambda: queues.delete(name, force=True),
        lambda: queues.metrics(name),
    ]
    for call in calls:
        with pytest.raises(tocsin.QueueNotFound) as refused:
            await call()
        assert refused.value.queue == name
    assert await queues.count() == 0
