"""The registry: registration, the five states, every transition, handles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from support import PATIENCE, Handled, move_clock, query, run_until_suspended

import tocsin

STATES = ["ready", "polling", "interrupted", "suspended", "stopped"]
OPERATIONS: dict[str, tuple[str, set[str], str]] = {
    # operation: (its statement, the states it is allowed from, the state it leads to)
    "poll": ("select tocsin.begin_poll(%s, registration) from tocsin.workers", {"ready", "polling"}, "polling"),
    "interrupt": ("select tocsin.interrupt(%s)", {"ready", "polling"}, "interrupted"),
    "suspend": ("select tocsin.suspend(%s)", {"ready", "polling", "interrupted"}, "suspended"),
    "resume": ("select tocsin.resume(%s)", {"suspended"}, "ready"),
    "shutdown": ("select tocsin.shutdown(%s)", {"suspended"}, "stopped"),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_transition(store: tocsin.Store, store_dsn: str, operation: str, state: str) -> None:
    statement, allowed, target = OPERATIONS[operation]
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        await query(store_dsn, "update tocsin.workers set status = %s", state)
        call = store._database.fetch(statement, [consumer.worker_id])
        if state in allowed:
            await call
            assert await consumer.status() == target
        else:
            expected = tocsin.WorkerStopped if state == "stopped" else tocsin.StateTransitionError
            with pytest.raises(expected) as refused:
                await call
            assert (refused.value.from_, refused.value.to, refused.value.worker_id) == (state, target, consumer.worker_id)
            assert refused.value.reason
            assert await consumer.status() == state


@pytest.mark.parametrize(
    ("before", "after"),
    [("polling", "ready"), ("interrupted", "suspended"), ("ready", "ready"), ("suspended", "suspended"), ("stopped", "stopped")],
)
async def test_complete_poll(store: tocsin.Store, store_dsn: str, before: str, after: str) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        await query(store_dsn, "update tocsin.workers set status = %s", before)
        await store._database.fetch("select tocsin.complete_poll(%s, %s)", [consumer.worker_id, consumer._registration.token])
        assert await consumer.status() == after


@pytest.mark.parametrize("state", STATES)
async def test_only_active_workers_get_messages(store: tocsin.Store, store_dsn: str, state: str) -> None:
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
async def test_only_active_workers_may_enqueue(store: tocsin.Store, store_dsn: str, state: str) -> None:
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
        assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(int(state in ("ready", "polling")),)]


@pytest.mark.parametrize("state", STATES)
async def test_heartbeat_in_every_state_but_stopped(store: tocsin.Store, store_dsn: str, state: str) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        await query(store_dsn, "update tocsin.workers set status = %s, heartbeat_at = '2000-01-01'", state)
        await query(store_dsn, "update tocsin.processes set heartbeat_at = '2000-01-01'")
        assert not await consumer.is_healthy(3600)
        if state == "stopped":
            with pytest.raises(tocsin.WorkerStopped):
                await consumer.heartbeat()
            assert not await consumer.is_healthy(3600)
        else:
            await consumer.heartbeat()
            assert await consumer.is_healthy(3600)
            assert await consumer.status() == state


async def test_health_goes_by_the_servers_clock(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer:
        assert await producer.is_healthy(30)
        await move_clock(store_dsn, 60)
        assert not await producer.is_healthy(30)


async def test_registration_tells_who_and_where(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q", name="w") as consumer, store.producer("q") as producer:
        workers = {w.id: w for w in await store.workers.list("q")}
        mine, other = workers[consumer.worker_id], workers[producer.worker_id]
        assert (mine.name, mine.kind, mine.queue, mine.status, mine.version) == ("w", "consumer", "q", "ready", tocsin.__version__)
        assert mine.hostname
        assert mine.pid
        assert (other.name, other.kind) == (producer.name, "producer")
        assert mine.hostname in other.name
    assert {w.status for w in await store.workers.list()} == {"stopped"}
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


async def test_leaving_releases_without_counting(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        await consumer.dequeue()
        assert (await consumer.info()).held == 1
    assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [("ready", 0)]
    with trio.CancelScope() as scope:
        async with store.consumer("q") as consumer:
            await consumer.dequeue()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [("ready", 0)]
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
        handle.status, handle.suspend, handle.resume, handle.shutdown, handle.heartbeat, handle.interrupt,
        lambda: handle.is_healthy(1),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(tocsin.WorkerNotFound):
            await call()


async def test_suspend_with_release_cancels_the_handlers(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    cancelled = trio.Event()

    async def hang(_: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    handled, suspended = Handled(hang), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        await handled.wait(1)
        remote = await store.workers.get(consumer.worker_id)
        with pytest.raises(tocsin.PendingMessages):
            await remote.suspend()
        assert await remote.status() == "polling"
        await remote.suspend(release=True)
        with trio.fail_after(PATIENCE):
            await cancelled.wait()
        assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [("ready", 0)]
        await remote.resume()
        await handled.wait(2)
        nursery.cancel_scope.cancel()


async def test_suspend_with_drain_lets_the_handlers_finish(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    go_on = trio.Event()
    handled, suspended = Handled(lambda _: go_on.wait()), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        await handled.wait(1)
        async with trio.open_nursery() as suspending:
            suspending.start_soon(lambda: consumer.suspend(drain=True))
            with trio.fail_after(PATIENCE):
                while await consumer.status() != "suspended":
                    await trio.lowlevel.checkpoint()
            await store.produce("q", 2)
            go_on.set()
        assert await query(store_dsn, "select payload from tocsin.archive") == [(1,)]
        assert len(handled.messages) == 1
        await consumer.resume()
        await handled.wait(2)
        await consumer.interrupt()
    assert suspended[0].handled == 2


def test_release_and_drain_exclude_each_other() -> None:
    async def suspend() -> None:
        await tocsin.WorkerHandle(None, 1).suspend(release=True, drain=True)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="exclude"):
        trio.run(suspend)
