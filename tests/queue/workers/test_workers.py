"""The registry: registration, the five states, every transition, handles."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, move_clock, next_event, query, until, until_blocked
from tests.support.child import Child, run_script
from tests.support.runs import running
from tests.support.sweeps import sweep
from tocsin import telemetry

STATES = ["ready", "polling", "interrupted", "suspended", "stopped"]
ACTIVE = {"ready", "polling"}

# The worker's states: the table of what may be done from where

OPERATIONS: dict[str, tuple[Callable[[Any], Awaitable[object]], set[str], str]] = {
    # operation: (what does it to a worker of our own or a handle, the states it is
    # allowed from, the state it leads to)
    "interrupt": (lambda w: w.interrupt(), ACTIVE, "interrupted"),
    "suspend": (lambda w: w.suspend(), {*ACTIVE, "interrupted"}, "suspended"),
    "suspend with release": (
        lambda w: w.suspend(release=True),
        {*ACTIVE, "interrupted"},
        "suspended",
    ),
    "suspend with drain": (lambda w: w.suspend(drain=True), {*ACTIVE, "interrupted"}, "suspended"),
    "resume": (lambda w: w.resume(), {"suspended"}, "ready"),
    "shutdown": (lambda w: w.shutdown(), {"suspended"}, "stopped"),
}


@asynccontextmanager
async def worker_in(
    state: str, store: tocsin.Store, dsn: str, whose: str
) -> AsyncIterator[tuple[tocsin.Consumer, Any]]:
    """A consumer in this state, and what to operate it by: itself, or a handle in what
    the registry takes for another process."""
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer, tocsin.connect(dsn) as other:
        await query(
            dsn,
            "update tocsin.workers set status = %s, shutdown_at = case when %s = 'stopped' then"
            " now() end",
            state,
            state,
        )
        yield consumer, consumer if whose == "own" else await other.workers.get(consumer.worker_id)


async def check_refused(
    call: Awaitable[object],
    worker_id: int,
    state: str,
    target: str | None,
    code: str = "wrong_state",
) -> None:
    with pytest.raises(tocsin.StateTransitionError) as refused:
        await call
    assert isinstance(refused.value, tocsin.WorkerStopped) == (state == "stopped")
    assert (refused.value.from_, refused.value.to, refused.value.worker_id) == (
        state,
        target,
        worker_id,
    )
    assert refused.value.code == code
    assert refused.value.reason


@sweep("whose", ["own", "a handle"], quick=1)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_operation_from_each_state(
    store: tocsin.Store, store_dsn: str, operation: str, state: str, whose: str
) -> None:
    call, allowed, target = OPERATIONS[operation]
    async with worker_in(state, store, store_dsn, whose) as (consumer, worker):
        if state in allowed:
            await call(worker)
            assert await consumer.status() == target
            assert ((await consumer.info()).shutdown_at is not None) == (target == "stopped")
        else:
            await check_refused(call(worker), consumer.worker_id, state, target)
            assert await consumer.status() == state


@pytest.mark.parametrize("state", STATES)
async def test_poll_from_each_state(store: tocsin.Store, store_dsn: str, state: str) -> None:
    async with worker_in(state, store, store_dsn, "own") as (consumer, _):
        if state in ACTIVE:
            await consumer._parts.claimer.begin_poll()
            assert await consumer.status() == "polling"
        else:
            await check_refused(
                consumer._parts.claimer.begin_poll(), consumer.worker_id, state, "polling"
            )
            assert await consumer.status() == state


@pytest.mark.parametrize("state", STATES)
async def test_register_a_name_from_each_state(
    store: tocsin.Store, store_dsn: str, state: str
) -> None:
    async with worker_in(state, store, store_dsn, "own") as (consumer, _):
        again = store.consumer("q", name=consumer.name)
        if state == "stopped":
            async with again as second:
                assert await second.status() == "ready"
                assert second.worker_id == consumer.worker_id
        else:
            await check_refused(
                again.__aenter__(), consumer.worker_id, state, "ready", "name_in_use"
            )
            assert await consumer.status() == state


@sweep("whose", ["own", "a handle"], quick=1)
@pytest.mark.parametrize("state", STATES)
async def test_stop_from_each_state(
    store: tocsin.Store, store_dsn: str, state: str, whose: str
) -> None:
    async with worker_in(state, store, store_dsn, whose) as (consumer, worker):
        before = (await consumer.info()).shutdown_at
        assert await worker.stop() == 0
        assert await consumer.status() == "stopped"
        after = (await consumer.info()).shutdown_at
        assert after is not None
        assert before in (None, after)


@pytest.mark.parametrize("state", STATES)
async def test_delete_from_each_state(store: tocsin.Store, store_dsn: str, state: str) -> None:
    async with worker_in(state, store, store_dsn, "own") as (consumer, _):
        if state == "stopped":
            await store.workers.delete(consumer.worker_id)
            with pytest.raises(tocsin.WorkerNotFound, match="may have been purged"):
                await store.workers.get(consumer.worker_id)
        else:
            await check_refused(
                store.workers.delete(consumer.worker_id),
                consumer.worker_id,
                state,
                None,
                "not_stopped",
            )
            assert await consumer.status() == state


@sweep(
    ("before", "interrupted", "after"),
    [
        ("polling", False, "ready"),
        ("interrupted", False, "suspended"),
        ("ready", False, "ready"),
        ("suspended", False, "suspended"),
        ("stopped", False, "stopped"),
        # whether `tocsin.interrupt` comes before or after
        ("polling", True, "suspended"),
        ("interrupted", True, "suspended"),
        ("ready", True, "suspended"),
        ("suspended", True, "suspended"),
        ("stopped", True, "stopped"),
    ],
    quick=7,
)
async def test_complete_poll(
    store: tocsin.Store, store_dsn: str, before: str, interrupted: bool, after: str
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        await query(store_dsn, "update tocsin.workers set status = %s", before)
        await store._database.fetch(
            "select tocsin.complete_poll(%s, %s, interrupted => %s)",
            [consumer.worker_id, consumer._registration.token, interrupted],
        )
        assert await consumer.status() == after


@pytest.mark.parametrize("state", STATES)
async def test_dequeue_is_refused_by_the_database_for_a_worker_that_is_not_active(
    store: tocsin.Store, store_dsn: str, state: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        await query(store_dsn, "update tocsin.workers set status = %s", state)
        if state in ("ready", "polling"):
            assert len(await consumer.dequeue()) == 1
        else:
            with pytest.raises(tocsin.StateTransitionError) as refused:
                await consumer.dequeue()
            assert (refused.value.from_, refused.value.to) == (state, "polling")
            assert await query(store_dsn, "select state::text from tocsin.messages") == [("ready",)]


@pytest.mark.parametrize("state", STATES)
async def test_only_active_workers_may_enqueue(
    store: tocsin.Store, store_dsn: str, state: str
) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer:
        await query(store_dsn, "update tocsin.workers set status = %s", state)
        if state in ("ready", "polling"):
            await producer.enqueue(1)
        else:
            with pytest.raises(tocsin.StateTransitionError):
                await producer.enqueue(1)
            with pytest.raises(tocsin.StateTransitionError):
                await producer.enqueue_many([1])
        assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [
            (int(state in ("ready", "polling")),)
        ]


@sweep("whose", ["own", "a handle"], quick=1)
@pytest.mark.parametrize("state", STATES)
async def test_heartbeat_in_every_state_but_stopped(
    store: tocsin.Store, store_dsn: str, state: str, whose: str
) -> None:
    async with worker_in(state, store, store_dsn, whose) as (consumer, worker):
        await query(store_dsn, "update tocsin.workers set heartbeat_at = '2000-01-01'")
        await query(store_dsn, "update tocsin.processes set heartbeat_at = '2000-01-01'")
        assert not await worker.is_healthy(3600)
        if state == "stopped":
            with pytest.raises(tocsin.WorkerStopped):
                await worker.heartbeat()
            assert not await worker.is_healthy(3600)
        else:
            await worker.heartbeat()
            assert await worker.is_healthy(3600)
        assert await consumer.status() == state


async def test_is_healthy_goes_by_the_servers_clock(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer:
        assert await producer.is_healthy(30)
        await move_clock(store_dsn, 60)
        assert not await producer.is_healthy(30)


async def test_registry_tells_which_worker_and_where(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    ((before,),) = await query(store_dsn, "select tocsin._clock()")
    async with store.consumer("q", name="w") as consumer, store.producer("q") as producer:
        ((after,),) = await query(store_dsn, "select tocsin._clock()")
        workers = {w.id: w for w in await store.workers.list("q")}
        mine, other = workers[consumer.worker_id], workers[producer.worker_id]
        assert (mine.name, mine.kind, mine.queue, mine.status, mine.version) == (
            "w",
            "consumer",
            "q",
            "ready",
            tocsin.__version__,
        )
        assert (mine.hostname, mine.pid, mine.shutdown_at, mine.held) == (
            socket.gethostname(),
            os.getpid(),
            None,
            0,
        )
        assert before <= mine.started_at <= mine.heartbeat_at <= after
        assert 0 <= mine.heartbeat_age < PATIENCE
        assert (other.name, other.kind) == (producer.name, "producer")
        assert (mine.hostname in other.name, str(mine.pid) in other.name) == (True, True)
        assert (mine.queue_id, other.queue_id) == (consumer.queue_id, producer.queue_id)
    assert {(w.status, w.shutdown_at is None) for w in await store.workers.list()} == {
        ("stopped", False)
    }
    assert await store.workers.list("another") == []


async def test_a_name_in_use_is_refused_and_a_stopped_one_taken_over(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await store.queues.ensure("r")
    async with store.consumer("q", name="w") as first:
        async with store.consumer("r", name="w"), store.producer("q", name="w"):
            pass
        with pytest.raises(tocsin.StateTransitionError, match="in use") as refused:
            async with store.consumer("q", name="w"):
                pass
        assert refused.value.from_ == "ready"
        await first.suspend()
        with pytest.raises(tocsin.StateTransitionError) as refused:
            async with store.consumer("q", name="w"):
                pass
        assert refused.value.from_ == "suspended"
        first_id = first.worker_id
    async with store.consumer("q", name="w") as second:
        assert second.worker_id == first_id
        assert (await second.info()).shutdown_at is None


async def test_registry_leaving_releases_without_counting_and_ends_the_registration(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        await consumer.dequeue()
        assert (await consumer.info()).held == 1
    assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
        ("ready", 0)
    ]
    with trio.CancelScope() as scope:
        async with store.consumer("q") as consumer:
            await consumer.dequeue()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
        ("ready", 0)
    ]
    assert {w.status for w in await store.workers.list()} == {"stopped"}


async def test_produce_leaves_no_worker_behind(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    assert await store.workers.list() == []


async def test_handles_refuse_what_is_not_there(store: tocsin.Store) -> None:
    with pytest.raises(tocsin.WorkerNotFound) as refused:
        await store.workers.get(4711)
    assert refused.value.worker_id == 4711
    handle = tocsin.WorkerHandle(store._database, 4711)
    calls: list[Callable[[], Awaitable[object]]] = [
        handle.status,
        handle.suspend,
        handle.resume,
        handle.shutdown,
        handle.heartbeat,
        handle.interrupt,
        lambda: handle.is_healthy(1),
        handle.stop,
        lambda: store.workers.release_messages(4711),
        lambda: store.workers.delete(4711),
    ]
    for call in calls:
        with pytest.raises(tocsin.WorkerNotFound, match="may have been purged"):
            await call()


async def test_suspend_with_release_cancels_the_handlers(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    cancelled = trio.Event()

    async def hang(_: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with store.consumer("q") as consumer, running(consumer, hang) as run:
        await run.handled.wait(1)
        remote = await store.workers.get(consumer.worker_id)
        with pytest.raises(tocsin.PendingMessages):
            await remote.suspend()
        assert await remote.status() == "polling"
        await remote.suspend(release=True)
        with trio.fail_after(PATIENCE):
            await cancelled.wait()
        assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
            ("ready", 0)
        ]
        await remote.resume()
        await run.handled.wait(2)
        run.cancel()


async def test_suspend_with_drain_lets_the_handlers_finish(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    go_on = trio.Event()
    async with store.consumer("q") as consumer, running(consumer, lambda _: go_on.wait()) as run:
        await run.handled.wait(1)
        async with trio.open_nursery() as suspending:
            with store.events.subscribe(telemetry.WorkerStateChanged) as changes:
                suspending.start_soon(lambda: consumer.suspend(drain=True))
                await next_event(changes, lambda c: c.status == "suspended")
            await store.produce("q", 2)
            go_on.set()
        assert await query(store_dsn, "select payload from tocsin.archive") == [(1,)]
        assert len(run.handled.messages) == 1
        await consumer.resume()
        await run.handled.wait(2)
    assert run.suspended.handled == 2


def test_release_and_drain_exclude_each_other() -> None:
    async def suspend() -> None:
        handle = tocsin.WorkerHandle(None, 1)  # type: ignore[arg-type]
        await handle.suspend(release=True, drain=True)

    with pytest.raises(ValueError, match="exclude"):
        trio.run(suspend)


# A worker in another process acts at once on what is asked of its handle


@asynccontextmanager
async def remote(
    store: tocsin.Store, dsn: str, mode: str
) -> AsyncIterator[tuple[Child, tocsin.WorkerHandle, int]]:
    """A worker in another process that handles a message; its handle, and the message's
    id."""
    await store.queues.ensure("tasks", vt=3600)
    async with run_script("consume.py", dsn, "tasks", "remote", mode) as child:
        handle = await store.workers.get(int((await child.words("worker"))[0]))
        info = await handle.info()
        assert (info.hostname, info.pid, info.name) == (
            socket.gethostname(),
            child.process.pid,
            "remote",
        )
        message_id = await store.produce("tasks", 1)
        assert await child.words("handling") == [str(message_id)]
        yield child, handle, message_id


async def _unheld(worker: tocsin.WorkerHandle) -> None:
    async def unheld() -> bool:
        return not (await worker.info()).held

    await until(unheld)


async def test_handle_by_id_suspend_with_release_cancels_the_handlers_until_resumed(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with remote(store, store_dsn, "tell") as (child, worker, message_id):
        with pytest.raises(tocsin.PendingMessages) as refused:
            await worker.suspend()
        assert refused.value.count == 1
        await worker.suspend(release=True)
        assert await child.words("cancelled") == [str(message_id)]
        assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
            ("ready", 0)
        ]
        await worker.resume()
        assert await child.words("handling") == [str(message_id)]


async def test_handle_by_id_suspend_with_drain_lets_the_handlers_finish(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with remote(store, store_dsn, "wait") as (child, worker, message_id):
        await worker.suspend(drain=True)
        with pytest.raises(tocsin.PendingMessages):
            await worker.shutdown()
        await store.produce("tasks", 2)
        await store.queues.ensure("go on")
        assert await child.words("handled") == [str(message_id)]
        await _unheld(worker)
        assert await query(store_dsn, "select payload, consumer_worker_id from tocsin.archive") == [
            (1, worker.worker_id)
        ]
        await worker.shutdown()
        assert await child.words("suspended") == ["stopped", "by", "a", "command"]
        with trio.fail_after(PATIENCE):
            assert await child.process.wait() == 0
        assert await query(store_dsn, "select payload, state::text from tocsin.messages") == [
            (2, "ready")
        ]


async def test_handle_by_id_interrupt_ends_the_run_when_its_handlers_have_ended(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with remote(store, store_dsn, "wait") as (child, worker, message_id):
        await worker.interrupt()
        assert await worker.status() == "interrupted"
        await store.queues.ensure("go on")
        assert await child.words("handled") == [str(message_id)]
        assert await child.words("suspended") == ["interrupted"]
        with trio.fail_after(PATIENCE):
            assert await child.process.wait() == 0
        assert await query(store_dsn, "select consumer_worker_id from tocsin.archive") == [
            (worker.worker_id,)
        ]


async def test_handle_by_id_stop_cancels_the_handlers_and_ends_the_run(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with remote(store, store_dsn, "tell") as (child, worker, message_id):
        assert await worker.stop() == 1
        assert await worker.status() == "stopped"
        assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
            ("ready", 0)
        ]
        assert await child.words("cancelled") == [str(message_id)]
        assert await child.words("suspended") == ["stopped", "by", "a", "command"]
        with trio.fail_after(PATIENCE):
            assert await child.process.wait() == 0
        assert await worker.stop() == 0


@pytest.mark.parametrize("active", [True, False])
async def test_handle_by_id_release_messages_cancels_the_handlers(
    store: tocsin.Store, store_dsn: str, active: bool
) -> None:
    async with remote(store, store_dsn, "tell") as (child, worker, message_id):
        if active:
            await store.queues.pause("tasks")  # else it would take the message again
        else:
            await worker.suspend(drain=True)
        assert await store.workers.release_messages(worker.worker_id) == 1
        assert await child.words("cancelled") == [str(message_id)]
        assert await worker.status() == ("polling" if active else "suspended")
        assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
            ("ready", 0)
        ]
        assert await store.workers.release_messages(worker.worker_id) == 0
        if active:
            await store.queues.resume("tasks")
        else:
            await worker.resume()
        assert await child.words("handling") == [str(message_id)]


async def test_what_was_dequeued_by_hand_is_released_too(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer, store.consumer("q") as another:
        (message,) = await consumer.dequeue()
        assert await store.workers.release_messages(another.worker_id) == 0
        assert await store.workers.release_messages(consumer.worker_id) == 1
        (again,) = await another.dequeue()
        assert (again.id, again.read_ct) == (message.id, 1)
        with pytest.raises(tocsin.LeaseLost):
            await message.archive()
        await again.archive()


async def test_stop_of_a_worker_of_ones_own_ends_its_run_and_cancels_its_handlers(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)

    async def hang(_: tocsin.Message) -> None:
        await trio.sleep_forever()

    async with store.consumer("q") as consumer:
        async with running(consumer, hang) as run:
            await run.handled.wait(1)
            assert await consumer.stop() == 1
            await run.wait()
        assert (run.suspended.reason, run.suspended.released) == ("stopped by a command", 1)
        with pytest.raises(tocsin.WorkerStopped):
            await consumer.handle(run.handled)
    assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
        ("ready", 0)
    ]


# Purging: references survive by name


async def test_what_a_purged_worker_did_keeps_its_id_and_its_name(
    store: tocsin.Store, store_dsn: str
) -> None:
    """In the messages, the dead letters and the archive: none of them refers to the
    registry."""
    await store.queues.ensure("q", retry_base=0, retry_jitter=0)
    async with (
        store.producer("q", name="producer") as producer,
        store.consumer("q", name="gone") as consumer,
    ):
        waiting = await producer.enqueue("waits")
        dead = await producer.enqueue("dies", max_deliveries=1)
        archived = await producer.enqueue("is done")
        messages = await consumer.dequeue(3)
        await consumer.release_many(messages)
        (finished,) = [m for m in await consumer.dequeue(9) if m.id == archived]
        await finished.archive()
        producer_id, consumer_id = producer.worker_id, consumer.worker_id
    assert {w.id for w in await store.workers.purge(0)} == {producer_id, consumer_id}
    assert await store.workers.list() == []
    for message_id, state in ((waiting, "ready"), (dead, "dead"), (archived, "archived")):
        info = await store.messages.get(message_id)
        assert (info.state, info.producer_worker_id, info.consumer_worker_id) == (
            state,
            producer_id,
            consumer_id,
        )
        assert [(d.worker_id, d.worker, d.outcome) for d in info.history] == [
            (consumer_id, "gone", "released")
        ]
    async with store.consumer("q", name="gone") as successor:  # the name is free again, for another
        assert successor.worker_id != consumer_id
        (message,) = await successor.dequeue()
        assert message.id == waiting


async def test_purge_old_workers_forgets_what_was_stopped_long_ago(
    store: tocsin.Store, store_dsn: str
) -> None:
    for queue in ("q", "r"):
        await store.queues.ensure(queue)
    ids = dict[str, int]()
    async with (
        store.consumer("q", name="live") as live,
        store.consumer("q", name="suspended") as suspended,
    ):
        await suspended.suspend()
        for queue, name, hours in (("q", "old", 49), ("q", "new", 47), ("r", "elsewhere", 49)):
            async with store.consumer(queue, name=name) as consumer:
                ids[name] = consumer.worker_id
            await query(
                store_dsn,
                "update tocsin.workers set shutdown_at = tocsin._clock() - make_interval(hours =>"
                " %s) where name = %s",
                hours,
                name,
            )
        # A worker that is not stopped may be older than any.
        await query(
            store_dsn,
            "update tocsin.workers set started_at = '2000-01-01', heartbeat_at = '2000-01-01' where"
            " status <> 'stopped'",
        )
        everything = "select * from tocsin.workers order by id"
        before = await query(store_dsn, everything)

        would_go = await store.workers.purge(2 * 86400, queue="q", dry_run=True)
        assert [(w.id, w.name, w.status) for w in would_go] == [(ids["old"], "old", "stopped")]
        assert [w.name for w in await store.workers.purge(2 * 86400, dry_run=True)] == [
            "old",
            "elsewhere",
        ]
        assert await query(store_dsn, everything) == before

        gone = await store.workers.purge(2 * 86400, queue="q")
        assert [w.id for w in gone] == [ids["old"]]
        assert await store.workers.purge(2 * 86400, queue="q") == []
        assert [w.name for w in await store.workers.purge(2 * 86400)] == ["elsewhere"]
        assert [w.name for w in await store.workers.purge(0)] == ["new"]
        assert {w.id for w in await store.workers.list()} == {live.worker_id, suspended.worker_id}
    with pytest.raises(tocsin.QueueNotFound):
        await store.workers.purge(0, queue="another")
    with pytest.raises(ValueError, match="older_than"):
        await store.workers.purge(-1)


async def test_purge_old_workers_leaves_what_they_did(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    async with store.producer("q", name="p") as producer, store.consumer("q", name="c") as consumer:
        for n in range(3):
            await producer.enqueue(n)
        archived, dead, _ = await consumer.dequeue(3)
        await archived.archive()
        await dead.release()
        worked = (producer.worker_id, consumer.worker_id)
    references = (
        "select id, producer_worker_id, consumer_worker_id from tocsin.messages union all "
        "select id, producer_worker_id, consumer_worker_id from tocsin.archive union all "
        "select id, producer_worker_id, consumer_worker_id from tocsin.dead_letters order by 1"
    )
    before = await query(store_dsn, references)
    assert before[:2] == [(1, *worked), (2, *worked)]
    assert [w.id for w in await store.workers.purge(0)] == sorted(worked)
    assert await query(store_dsn, references) == before
    async with store.consumer("q", name="c") as again:
        assert again.worker_id not in worked
        (message,) = await again.dequeue()
        assert (message.id, message.producer_worker_id) == (3, worked[0])
        await message.archive()


async def test_a_name_registered_again_while_it_is_purged(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q", name="w") as consumer:
        former = consumer.worker_id
    async with store.transaction() as connection, trio.open_nursery() as nursery:
        await connection.execute("select * from tocsin.purge_workers('0 s')")

        async def register() -> None:
            async with store.consumer("q", name="w") as consumer:
                assert consumer.worker_id != former
                assert await consumer.status() == "ready"

        nursery.start_soon(register)
        await until_blocked(store_dsn, "register_worker")
        await connection.execute("commit")
        await connection.execute("begin")


async def test_what_stop_has_requeued_counts_as_released(
    store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefetched messages count, too. No log line warns of leases that were revoked on
    purpose."""

    async def hang_at_last(message: tocsin.Message) -> None:
        if message.payload >= 50:
            await trio.sleep_forever()

    async with tocsin.connect(store_dsn) as here, tocsin.connect(store_dsn) as there:
        await here.queues.ensure("q")
        await here.produce_many("q", list(range(200)))
        async with here.consumer("q") as consumer, running(consumer, hang_at_last) as run:
            await run.handled.wait(51)
            await run.settled(50, "archived")
            released = await (await there.workers.get(consumer.worker_id)).stop()
            await run.wait()
        assert released > 1
        assert (run.suspended.handled, run.suspended.released) == (50, released)
    assert caplog.records == []


async def test_a_worker_deleted_while_it_runs_ends_its_run(store_dsn: str) -> None:
    """Stopped and deleted before its process has noticed anything."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer, store.producer("q") as producer:
            async with running(consumer) as run:
                await store.produce("q", 1)
                await run.handled.wait(1)
                await query(store_dsn, "delete from tocsin.workers")
                await store.produce("q", 2)
                await run.wait()
            assert run.suspended.reason == "its registration has ended"
            with pytest.raises(tocsin.WorkerStopped, match="has been purged"):
                await consumer.dequeue()
            with pytest.raises(tocsin.WorkerStopped, match="has been purged"):
                await consumer.handle(run.handled)
            with pytest.raises(tocsin.WorkerStopped, match="has been purged"):
                await producer.enqueue(1)
            with pytest.raises(tocsin.WorkerNotFound):
                await consumer.status()
        assert run.handled.payloads == [1]


async def test_a_worker_declared_dead_and_purged_registers_again(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.2) as store:
        await store.queues.ensure("q")
        async with store.consumer("q", name="phoenix") as consumer, running(consumer) as run:
            await store.produce("q", 1)
            await run.handled.wait(1)
            former = consumer.worker_id
            async with store.transaction() as connection:
                await connection.execute(
                    "select tocsin.unregister_process(id, true) from tocsin.processes"
                )
                await connection.execute("delete from tocsin.workers")
            await store.produce("q", 2)
            await run.handled.wait(2)
            assert consumer.worker_id != former
            assert list(store._process._membership.workers) == [consumer.worker_id]
            await (await store.workers.get(consumer.worker_id)).interrupt()
            await run.wait()
        assert not store._process._membership.workers


# A lease is kept by its token


async def test_a_message_claimed_again_by_a_claim_without_an_answer_is_requeued(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Its former lease, which has ended, is known here; the new one is not."""
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue(vt=1000)
        await move_clock(store_dsn, 2000)
        await query(
            store_dsn,
            "select * from tocsin.claim(%s, %s, 1)",
            consumer.worker_id,
            consumer._registration.token,
        )
        consumer._parts.claimer._unknown.possible = True
        (again,) = await consumer.dequeue()
        assert again.id == message.id
        assert again.lease_token > message.lease_token
        await again.archive()


# What users see


def test_what_workers_have() -> None:
    every = {
        "worker_id",
        "status",
        "heartbeat",
        "is_healthy",
        "suspend",
        "resume",
        "shutdown",
        "info",
    }
    own = {"queue", "queue_id", "name"}
    settling = {
        "archive",
        "archive_many",
        "delete",
        "delete_many",
        "release",
        "release_many",
        "extend",
        "extend_many",
    }
    assert public(tocsin.WorkerHandle) == every | {"interrupt", "stop"}
    assert public(tocsin.Producer) | {"queue"} == every | own | {"enqueue", "enqueue_many"}
    running = {"dequeue", "handle", "handle_batches", "messages", "interrupt", "stop"}
    assert public(tocsin.Consumer) | {"queue"} == every | own | settling | running


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@sweep("limit", [0, -1, 2**31, 2**63], quick=1)
async def test_a_count_that_is_none(store: tocsin.Store, limit: int) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        with pytest.raises(ValueError, match="limit must be"):
            await consumer.dequeue(limit)
        assert await consumer.dequeue(2**31 - 1) == []


async def test_how_a_worker_came_to_its_end_is_remembered(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")

    async def ended(worker: tocsin.WorkerHandle) -> str | None:
        return (await (await store.workers.get(worker.worker_id)).info()).ended

    async with store.consumer("q", name="w") as consumer:
        assert await ended(consumer) is None
    assert await ended(consumer) == "left"
    async with store.consumer("q", name="w") as consumer:  # the same, registered again
        assert await ended(consumer) is None
        await consumer.stop()
        assert await ended(consumer) == "stopped"
    assert await ended(consumer) == "stopped"
    async with store.consumer("q", name="w") as consumer:
        await consumer.suspend()
        await consumer.shutdown()
        assert [w.ended for w in await store.workers.purge(0, dry_run=True)] == ["shut_down"]
    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as other,
        other.consumer("q", name="v") as died,
        other.consumer("q", name="w") as stopped,
    ):
        await stopped.stop()
        await query(
            store_dsn,
            "select tocsin._end_process(process_id, true) from tocsin.workers where name = 'v'",
        )
        assert (await ended(died), await ended(stopped)) == ("died", "stopped")
