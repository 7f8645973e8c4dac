"""Queues: creating, settings, pausing, purging, deleting; and deleting against whoever
comes at the same moment."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import attrs
import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import (
    PATIENCE,
    Handled,
    move_clock,
    open_connection,
    query,
    run_until_suspended,
    until_asleep,
    until_query,
    until_true,
)
from tests.support.child import running
from tocsin.driver import TrioConnection

TABLES = "messages", "dead_letters", "archive", "workers", "queues"


async def contents(dsn: str) -> dict[str, int]:
    """How many rows there are."""
    return {t: (await query(dsn, f"select count(*)::int from tocsin.{t}"))[0][0] for t in TABLES}


async def everything(dsn: str) -> list[Any]:
    return [await query(dsn, f"select x::text from tocsin.{t} x order by 1") for t in TABLES]


async def fill(store: tocsin.Store, queue: str = "q") -> None:
    """Two ready messages, three delayed, four archived, and a dead letter."""
    await store.queues.ensure(queue)
    async with store.producer(queue) as producer, store.consumer(queue) as consumer:
        await producer.enqueue_many([1, 2, 3, 4], priority=-1)
        await consumer.archive_many(await consumer.dequeue(4))
        await producer.enqueue("poison", max_deliveries=1, priority=-1)
        (poison,) = await consumer.dequeue()
        await poison.release()
        await producer.enqueue_many(["ready"] * 2)
        await producer.enqueue_many(["delayed"] * 3, delay=3600)


@asynccontextmanager
async def open_transaction(dsn: str) -> AsyncIterator[TrioConnection[Any]]:
    """A connection with a transaction that the test ends itself."""
    async with open_connection(dsn) as connection:
        await connection.execute("begin")
        yield connection


async def until_waiting(dsn: str, fragment: str) -> None:
    """Return when a statement with this text waits for others."""
    waiting = (
        "select 1 from pg_stat_activity where datname = current_database() and query like '%%' ||"
        " %s || '%%' and (wait_event_type = 'Lock' or wait_event = 'PgSleep')"
    )
    await until_query(dsn, waiting, fragment)


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
    """Ensuring waits for the other, looks at what has come of it, and returns the queue
    with its own settings in any case."""
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


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"vt": 0}, "vt"),
        ({"max_deliveries": 0}, "max_deliveries"),
        ({"retry_base": -1}, "retry_base"),
        ({"retry_factor": 0.5}, "retry_factor"),
        ({"retry_factor": math.nan}, "retry_factor"),
        ({"retry_jitter": 2}, "retry_jitter"),
        ({"max_payload": 0}, "max_payload"),
        ({"retention": -1}, "retention"),
        ({"dead_letter_retention": 0}, "dead_letter_retention"),
        ({"notify": "never"}, "notify"),
        ({"name": ""}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": "ä" * 128}, "name"),
        ({"name": "q\0"}, "name"),
    ],
)
async def test_bad_queue_settings_name_the_argument(
    store: tocsin.Store, settings: dict[str, object], named: str
) -> None:
    for create in (store.queues.create, store.queues.ensure):
        with pytest.raises(ValueError, match=named):
            await create(**{"name": "q", **settings})  # type: ignore[arg-type]
    assert await store.queues.count() == 0


async def test_an_unknown_setting_is_refused_and_the_known_ones_named(store: tocsin.Store) -> None:
    with pytest.raises(
        TypeError, match=r"'max_retries' is no setting of a queue; there are vt, max_deliveries"
    ):
        await store.queues.ensure("q", max_retries=3)  # type: ignore[call-arg]


CHANGES: dict[str, Any] = {
    "vt": 7.5, "max_deliveries": 3, "retry_base": 0.0, "retry_factor": 1.5, "retry_max": 60.0, "retry_jitter": 0.0, "max_payload": 100,
    "max_string": 10, "max_depth": 4, "required_keys": ("a", "b"), "forbidden_keys": ("c",), "retention": math.inf,
    "dead_letter_retention": 86400.0, "notify": "always",
}  # fmt: skip


async def test_per_queue_settings(store: tocsin.Store) -> None:
    """Each is given at creation, or changed live alone, and stays; the others keep
    their values."""
    default = await store.queues.create("q")
    assert set(CHANGES) == set(tocsin.QueueSettings.__annotations__)
    before = default
    for setting, value in CHANGES.items():
        changed = await store.queues.update("q", **{setting: value})
        assert changed == attrs.evolve(before, **{setting: value})
        before = changed
    created = await store.queues.create("r", **CHANGES)
    assert created == attrs.evolve(
        before, id=created.id, name="r", created_at=created.created_at, channel=created.channel
    )
    with pytest.raises(tocsin.QueueNotFound):
        await store.queues.update("s", vt=1)


async def test_a_visibility_timeout_changed_live_counts_for_a_run_under_way(
    store: tocsin.Store, store_dsn: str
) -> None:
    """What a claim brings is kept alive as the setting is now, not as it was when the
    consumer came."""
    await store.queues.ensure("q", vt=3600)
    release = trio.Event()

    async def wait(_: tocsin.Message) -> None:
        await release.wait()

    handled = Handled(wait)
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(
            run_until_suspended, consumer, handled, ended := list[tocsin.Suspended]()
        )
        await until_asleep(store)
        await store.queues.update("q", vt=0.5)
        await store.produce("q", 1)
        await handled.wait(1)
        ((first,),) = await query(store_dsn, "select vt from tocsin.messages")
        await until_true(store_dsn, "vt > %s from tocsin.messages", first)
        await consumer.interrupt()
        release.set()
    assert [m.read_ct for m in handled.messages] == [1]
    assert [s.handled for s in ended] == [1]


async def test_pause_and_resume_a_queue(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        assert (await store.queues.pause("q")).paused_at is not None
        await producer.enqueue(1)
        assert await consumer.dequeue() == []
        with pytest.raises(tocsin.QueueNotFound):
            await store.queues.pause("r")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_dequeue_into, got := list[tocsin.Message](), consumer)
            await trio.testing.wait_all_tasks_blocked()
            assert (await store.queues.resume("q")).paused_at is None
        assert [m.payload for m in got] == [1]


async def test_a_pause_counts_at_once_in_every_process_and_for_runs_under_way(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Both are in the middle of a backlog. Afterwards they hold nothing and sleep, and
    nothing was claimed after the pause."""
    await store.queues.create("q")
    await store.produce_many("q", range(2000))
    unfinished = "select count(*)::int from tocsin.messages"
    leased = "select from tocsin.messages where state = 'leased'"
    asleep = (
        "select 1 from pg_locks l, tocsin.queues q where l.locktype = 'advisory' and l.mode ="
        " 'ShareLock' and (l.classid::bigint << 32) | l.objid::bigint = tocsin._lock_key('waiting',"
        " q.id) having count(*) = 2"
    )
    handled = Handled()
    async with (
        running("consume.py", store_dsn, "q", "remote", "go") as child,
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
    ):
        await child.words("worker")
        await child.words("handling")
        nursery.start_soon(run_until_suspended, consumer, handled, list[tocsin.Suspended]())
        await handled.wait(1)
        await store.queues.pause("q")
        ((paused_at,),) = await query(store_dsn, "select tocsin._clock()")
        ring = await store.produce("q", -1)
        await until_query(store_dsn, f"select 1 where not exists ({leased}) and exists ({asleep})")
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
        nursery.cancel_scope.cancel()


async def _dequeue_into(got: list[tocsin.Message], consumer: tocsin.Consumer) -> None:
    got += await consumer.dequeue(wait=PATIENCE)


# Purging


@pytest.mark.parametrize(
    ("scope", "count"), [("ready", 2), ("delayed", 3), ("archived", 4), ("dead", 1)]
)
async def test_purge(store: tocsin.Store, store_dsn: str, scope: str, count: int) -> None:
    """Each scope by itself; nothing of another queue; leased messages and workers stay;
    a dry run tells and changes nothing."""
    await fill(store)
    await fill(store, "other")
    scopes: dict[str, Any] = {scope: True}
    async with store.consumer("q") as consumer, store.producer("q") as producer:
        await producer.enqueue("leased", priority=-1)
        (leased,) = await consumer.dequeue(vt=7200)
        before, counts = await everything(store_dsn), await contents(store_dsn)
        expected = attrs.evolve(tocsin.PurgeResult(0, 0, 0, 0), **{scope: count})
        assert await store.queues.purge("q", **scopes, dry_run=True) == expected
        assert await everything(store_dsn) == before
        purged = await store.queues.purge("q", **scopes)
        assert purged == expected
        assert purged.total == count
        table = {"archived": "archive", "dead": "dead_letters"}.get(scope, "messages")
        assert await contents(store_dsn) == {**counts, table: counts[table] - count}
        assert (await store.queues.purge("q", **scopes)).total == 0
        await leased.archive()
        await producer.enqueue("next", priority=-1)
        assert [m.payload for m in await consumer.dequeue()] == ["next"]


async def test_purge_of_several_scopes(store: tocsin.Store, store_dsn: str) -> None:
    await fill(store)
    assert await store.queues.purge(
        "q", ready=True, delayed=True, archived=True, dead=True
    ) == tocsin.PurgeResult(2, 3, 4, 1)
    assert (await contents(store_dsn))["messages"] == 0


async def test_purge_by_age(store: tocsin.Store, store_dsn: str) -> None:
    await fill(store)
    await move_clock(store_dsn, 1000)
    await fill(store)
    scopes: Any = {"ready": True, "delayed": True, "archived": True, "dead": True}
    assert (await store.queues.purge("q", **scopes, older_than=1500)).total == 0
    for dry_run in (True, False):
        assert await store.queues.purge(
            "q", **scopes, older_than=500, dry_run=dry_run
        ) == tocsin.PurgeResult(2, 3, 4, 1)
    assert await store.queues.purge(
        "q", **scopes, older_than=0, dry_run=True
    ) == tocsin.PurgeResult(2, 3, 4, 1)


async def test_purge_takes_what_is_due_for_ready(store: tocsin.Store, store_dsn: str) -> None:
    """Though no claim has looked at it since, and its row says scheduled."""
    await fill(store)
    await move_clock(store_dsn, 3700)
    for dry_run in (True, False):
        assert await store.queues.purge("q", delayed=True, dry_run=dry_run) == tocsin.PurgeResult(
            0, 0, 0, 0
        )
        assert await store.queues.purge("q", ready=True, dry_run=dry_run) == tocsin.PurgeResult(
            5, 0, 0, 0
        )


async def test_purge_passes_over_what_a_claim_has_locked(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer, open_transaction(store_dsn) as claiming:
        await store.produce("q", "claimed")
        await store.produce("q", "waiting")
        await claiming.execute(
            "select tocsin.claim(w.id, w.registration, 1) from tocsin.workers w where w.id = %s",
            [consumer.worker_id],
        )
        with trio.fail_after(PATIENCE):
            assert (await store.queues.purge("q", ready=True)).ready == 1
        await claiming.execute("commit")
        assert await query(store_dsn, "select payload, state::text from tocsin.messages") == [
            ("claimed", "leased")
        ]


async def test_purge_frees_keys(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    first = await store.produce("q", 1, key="k")
    await store.queues.purge("q", ready=True)
    assert await store.produce("q", 1, key="k") != first


async def test_purge_refuses_what_makes_no_sense(store: tocsin.Store, store_dsn: str) -> None:
    await fill(store)
    before = await everything(store_dsn)
    with pytest.raises(ValueError, match="say what to purge: ready, delayed, archived or dead"):
        await store.queues.purge("q")
    with pytest.raises(ValueError, match="older_than"):
        await store.queues.purge("q", ready=True, older_than=-1)
    with pytest.raises(psycopg.Error, match="older_than"):
        await query(
            store_dsn, "select tocsin.purge_queue('q', ready => true, older_than => '-1 s')"
        )
    with pytest.raises(tocsin.QueueNotFound):
        await store.queues.purge("r", ready=True)
    assert await everything(store_dsn) == before


async def test_purge_of_the_dead_passes_over_what_others_have_at_hand(
    store: tocsin.Store, store_dsn: str
) -> None:
    """So it never waits with letters locked that another, in the order of ids, waits
    for."""
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        ids = await producer.enqueue_many([1, 2, 3], max_deliveries=1)
        # the table has them in the order of their deaths
        for message in reversed(await consumer.dequeue(3)):
            await message.release()
    async with open_transaction(store_dsn) as other:
        await other.execute("select from tocsin.dead_letters where id = %s for update", [ids[1]])
        with trio.fail_after(PATIENCE):
            purged = await store.queues.purge("q", dead=True)
        await other.execute("rollback")
    assert purged.dead == 2
    assert [letter.id for letter in await store.dead_letters.list("q")] == [ids[1]]
    assert (await store.queues.purge("q", dead=True, dry_run=True)).dead == 1


# Deleting


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
                tocsin.QueueNotEmpty, match="purge the messages first, or delete it with force"
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


async def test_a_queue_created_anew_starts_empty(store: tocsin.Store) -> None:
    await fill(store)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        former = await store.queues.get("q")
        await store.queues.delete("q", force=True)
        with pytest.raises(tocsin.QueueNotFound):
            await producer.enqueue(1)
        anew = await store.queues.create("q")
        assert anew.id != former.id
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

    handled, others = Handled(never), Handled()
    ended, other_ended = list[tocsin.Suspended](), list[tocsin.Suspended]()
    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as other,
        other.consumer("q") as consumer,
        other.consumer("r") as survivor,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run_until_suspended, survivor, others, other_ended)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as runs:
                runs.start_soon(run_until_suspended, consumer, handled, ended)
                if busy:
                    message_id = await store.produce("q", 1)
                    await handled.wait(1)
                else:
                    await until_asleep(store, other)
                assert (await store.queues.delete("q", force=True)).messages == int(busy)
        assert [(s.reason, s.handled) for s in ended] == [("its registration has ended", 0)]
        assert cancelled == ([message_id] if busy else [])
        await store.produce("r", 1)
        await others.wait(1)
        await survivor.interrupt()
    assert [s.handled for s in other_ended] == [1]


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
            await until_asleep(store)
            while not await store.workers.list("q"):
                pass
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
        with trio.fail_after(PATIENCE):
            while await survivor.status() != "ready":
                pass
            await store.produce("r", 1)
            assert len(await survivor.dequeue(wait=PATIENCE)) == 1


# Deleting while others come


Asleep = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture(params=["nobody sleeps", "somebody sleeps", "it always rings"])
async def contested(
    request: pytest.FixtureRequest, store: tocsin.Store, store_dsn: str
) -> AsyncIterator[tocsin.Store]:
    """A store with a queue to which a producer rings for this reason, or does not."""
    queue = await store.queues.create("q", notify="always" if "always" in request.param else None)
    async with open_connection(store_dsn) as connection:
        if request.param == "somebody sleeps":
            await connection.execute("select tocsin.begin_waiting(array[%s::int])", [queue.id])
        yield store


@pytest.mark.parametrize("force", [False, True])
async def test_a_deletion_waits_for_a_transaction_that_has_enqueued(
    contested: tocsin.Store, store_dsn: str, force: bool
) -> None:
    outcome = list[tocsin.DeleteResult | Exception]()

    async def delete() -> None:
        try:
            outcome.append(await contested.queues.delete("q", force=force))
        except tocsin.QueueNotEmpty as refused:
            outcome.append(refused)

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as producing:
        await producing.execute("select tocsin.enqueue('q', '1')")
        nursery.start_soon(delete)
        await until_waiting(store_dsn, "delete_queue")
        # it has been let in, and is not held up now
        await producing.execute("select tocsin.enqueue('q', '2')")
        await producing.execute("commit")
    (result,) = outcome
    if force:
        assert result == tocsin.DeleteResult(workers=0, messages=2, archived=0, dead_letters=0)
    else:
        assert isinstance(result, tocsin.QueueNotEmpty)
        assert result.messages == 2
    assert (await contents(store_dsn))["messages"] == (0 if force else 2)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize(
    "call",
    ["enqueue('q', '1')", "enqueue_many('q', '[1]')", """enqueue_each('q', '[{"payload": 1}]')"""],
)
async def test_an_enqueue_waits_for_a_deletion_under_way(
    contested: tocsin.Store, store_dsn: str, call: str, committed: bool
) -> None:
    outcome = list[str | None]()

    async def enqueue() -> None:
        try:
            await query(store_dsn, f"select tocsin.{call}")
            outcome.append(None)
        except psycopg.Error as refused:
            assert 'queue "q" does not exist' in str(refused)
            outcome.append(refused.sqlstate)

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as deleting:
        await deleting.execute("select tocsin.delete_queue('q')")
        nursery.start_soon(enqueue)
        await until_waiting(store_dsn, call)
        await deleting.execute("commit" if committed else "rollback")
    assert outcome == (["TC001"] if committed else [None])
    assert (await contents(store_dsn))["messages"] == int(not committed)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_registration_waits_for_a_deletion_under_way(
    store: tocsin.Store, store_dsn: str, committed: bool
) -> None:
    await store.queues.ensure("q")
    outcome = list[str]()

    async def register() -> None:
        try:
            async with store.consumer("q") as consumer:
                outcome.append(await consumer.status())
        except tocsin.QueueNotFound as refused:
            outcome.append(refused.queue)

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as deleting:
        await deleting.execute("select tocsin.delete_queue('q')")
        nursery.start_soon(register)
        await until_waiting(store_dsn, "register_worker")
        await deleting.execute("commit" if committed else "rollback")
    assert outcome == (["q"] if committed else ["ready"])


async def test_a_deletion_waits_for_a_registration_under_way(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")

    async def delete() -> None:
        with pytest.raises(tocsin.QueueNotEmpty) as refused:
            await store.queues.delete("q")
        assert refused.value.workers == 1

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as registering:
        await registering.execute(
            "select tocsin.register_worker('q', 'consumer', 'w', null, 'h', 1, 'v')"
        )
        nursery.start_soon(delete)
        await until_waiting(store_dsn, "delete_queue")
        await registering.execute("commit")


async def test_a_deletion_waits_for_what_is_being_settled(
    store: tocsin.Store, store_dsn: str
) -> None:
    """And takes it where it has gone: to the archive, to the dead letters, back to the
    queue."""
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        async with store.producer("q") as producer:
            await producer.enqueue_many([1, 2], max_deliveries=9)
            await producer.enqueue(3, max_deliveries=1)
        messages = await consumer.dequeue(3)
        await messages[0].extend(7200)  # the last one in the index, the first by its id
        ids, leases = zip(*((m.id, m.lease_token) for m in messages), strict=True)
        deleted = list[tocsin.DeleteResult]()

        async def delete() -> None:
            deleted.append(await store.queues.delete("q", force=True))

        async with trio.open_nursery() as nursery, open_transaction(store_dsn) as settling:
            await settling.execute(
                "select tocsin.archive(%s, %s)", [list(ids[:1]), list(leases[:1])]
            )
            nursery.start_soon(delete)
            await until_waiting(store_dsn, "delete_queue")
            await settling.execute(
                "select tocsin.release(%s, %s)", [list(ids[1:]), list(leases[1:])]
            )
            await settling.execute("commit")
        assert deleted == [tocsin.DeleteResult(workers=2, messages=1, archived=1, dead_letters=1)]
    assert set((await contents(store_dsn)).values()) == {0}


async def test_a_deletion_waits_for_a_claim_under_way(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)

    async def delete() -> None:
        assert (await store.queues.delete("q", force=True)).messages == 1

    async with (
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
        open_transaction(store_dsn) as claiming,
    ):
        claim = "select tocsin.claim(w.id, w.registration, 1) from tocsin.workers w where w.id = %s"
        await claiming.execute(claim.encode(), [consumer.worker_id])
        nursery.start_soon(delete)
        await until_waiting(store_dsn, "delete_queue")
        await claiming.execute("commit")
    assert set((await contents(store_dsn)).values()) == {0}


async def test_a_deletion_cut_short_leaves_everything_and_wakes_who_sleeps(
    store: tocsin.Store, store_dsn: str
) -> None:
    """While it waits for a transaction, a consumer that lies down still finds what
    comes from that."""
    await store.queues.ensure("q")
    async with (
        open_transaction(store_dsn) as producing,
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
    ):
        await producing.execute("select tocsin.enqueue('q', '1')")
        with trio.CancelScope() as deletion:
            async with trio.open_nursery() as deleting:
                deleting.start_soon(lambda: store.queues.delete("q", force=True))
                await until_waiting(store_dsn, "delete_queue")
                nursery.start_soon(_dequeue_into, got := list[tocsin.Message](), consumer)
                await trio.testing.wait_all_tasks_blocked(0.02)
                deletion.cancel()
        await producing.execute("commit")
    assert [m.payload for m in got] == [1]


async def test_what_belongs_to_no_queue_is_swept_and_nothing_else(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A transaction with a snapshot from before the deletion may enqueue after it."""
    for name in ("a", "b", "c", "d"):
        await store.queues.ensure(name)
        await store.produce(name, 1)
    async with open_transaction(store_dsn) as producing:
        await producing.execute("set transaction isolation level repeatable read")
        await producing.execute("select 1")
        for name in ("a", "c", "d"):
            await store.queues.delete(name, force=True)
            await producing.execute("select tocsin.enqueue(%s, '2')", [name])
            await producing.execute("select tocsin.enqueue(%s, '3', delay => '1 day')", [name])
        assert await query(store_dsn, "select tocsin._sweep_orphans()") == [(0,)]
        await producing.execute("commit")
    assert (await contents(store_dsn))["messages"] == 7
    assert await query(store_dsn, "select tocsin._sweep_orphans()") == [(6,)]
    assert await query(store_dsn, "select payload from tocsin.messages") == [(1,)]
    await store.queues.delete("b", force=True)
    assert await query(store_dsn, "select tocsin._sweep_orphans()") == [(0,)]


async def test_queue_deleted_again_and_again_under_producers_and_consumers(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Each message is either there, or went with a forced deletion; refused ones are
    refused by name; nothing is left behind."""
    # it would sweep, too
    await query(store_dsn, "update tocsin.maintenance set due_at = 'infinity'")
    rounds, enqueued, deleted = 15, list[int](), 0
    over = trio.Event()

    async def produce() -> None:
        while not over.is_set():
            try:
                enqueued.append(await store.produce("q", 1))
            except tocsin.QueueNotFound as refused:
                assert refused.queue == "q" or refused.queue.startswith("number ")

    async def consume() -> None:
        while not over.is_set():
            try:
                async with store.consumer("q") as consumer:
                    for message in await consumer.dequeue(2):
                        await message.release()
            except (tocsin.QueueNotFound, tocsin.WorkerStopped, tocsin.LeaseLost):
                pass

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(produce)
            nursery.start_soon(consume)
        for _ in range(rounds):
            await store.queues.ensure("q", notify="always")
            await until_query(store_dsn, "select 1 from tocsin.messages limit 1")
            with trio.fail_after(PATIENCE):
                gone = await store.queues.delete("q", force=True)
                deleted += gone.messages + gone.dead_letters  # released for the fifth time
        over.set()
    ((swept,),) = await query(store_dsn, "select tocsin._sweep_orphans()")
    assert len(enqueued) == deleted + swept
    assert (await contents(store_dsn)) == {
        "messages": 0,
        "dead_letters": 0,
        "archive": 0,
        "workers": 0,
        "queues": 0,
    }


HAND_OVERS = {
    "replays a dead letter": (
        "select from tocsin.dead_letters where id = 1 for update",
        "select tocsin.replay(array[1])",
    ),
    "settles and enqueues": (
        "select tocsin.archive(array[2], array[{lease}])",
        "select tocsin.enqueue('q', '4')",
    ),
    "claims and enqueues": (
        "select tocsin.claim({worker}, {registration}, 1)",
        "select tocsin.enqueue('q', '4')",
    ),
    "enqueues and settles": (
        "select tocsin.enqueue('q', '4')",
        "select tocsin.archive(array[2], array[{lease}])",
    ),
    "purges and enqueues": (
        "select tocsin.purge_queue('q', ready => true)",
        "select tocsin.enqueue('q', '4')",
    ),
    "purges the archive and enqueues": (
        "select tocsin.purge_queue('q', archived => true)",
        "select tocsin.enqueue('q', '4')",
    ),
    "registers and enqueues": (
        "select tocsin.register_worker('q', 'consumer', 'other', null, 'h', 1, 'v')",
        "select tocsin.enqueue('q', '4')",
    ),
}
"""What a transaction does that first locks something of a queue and then needs
something that its deletion has, in two steps."""


@pytest.mark.parametrize("what", HAND_OVERS)
async def test_a_deletion_gives_way_to_a_transaction_that_waits_for_it(
    store: tocsin.Store, store_dsn: str, what: str
) -> None:
    """PostgreSQL would call it a deadlock, and abort either of the two."""
    await store.queues.create("q")
    deleted = list[tocsin.DeleteResult]()

    async def delete() -> None:
        deleted.append(await store.queues.delete("q", force=True))

    async with (
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
        open_transaction(store_dsn) as other,
    ):
        await store.produce_many("q", [1, 2, 3, 4])
        dead, held, kept = await consumer.dequeue(3)
        assert (dead.id, held.id) == (1, 2)
        await kept.archive()
        await query(store_dsn, "select tocsin._move_to_dead_letters(array[1], 'x')")
        given = {
            "lease": held.lease_token,
            "worker": consumer.worker_id,
            "registration": consumer._registration.token,
        }
        first, second = (statement.format(**given) for statement in HAND_OVERS[what])
        await other.execute(first.encode())
        nursery.start_soon(delete)
        await until_waiting(store_dsn, "delete_queue")
        # Again and again the deletion has the lock `rung`, and lets go of it.
        exclusive = (
            "select 1 from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock' and"
            " granted"
        )
        if what != "enqueues and settles":
            await until_query(store_dsn, exclusive)
        with trio.fail_after(PATIENCE):
            await other.execute(second.encode())
        await other.execute("commit")
    assert len(deleted) == 1
    assert set((await contents(store_dsn)).values()) == {0}


async def refused_as_busy(store: tocsin.Store, into: list[str]) -> None:
    with pytest.raises(tocsin.QueueBusy, match="in use by transactions that do not end") as refused:
        await store.queues.delete("q", force=True)
    into.append(refused.value.queue)


@pytest.mark.parametrize(
    "use",
    [
        "select tocsin.enqueue('q', '2')",
        "select from tocsin.messages for update",
        "select pg_advisory_xact_lock(tocsin._lock_key('rung', 1))",
    ],
)
async def test_a_deletion_is_refused_when_a_transaction_does_not_end(
    store: tocsin.Store, store_dsn: str, use: str
) -> None:
    assert (await store.queues.create("q")).id == 1
    await store.produce("q", 1)
    refused = list[str]()
    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as other:
        await other.execute(use.encode())
        nursery.start_soon(refused_as_busy, store, refused)
        await until_waiting(store_dsn, "delete_queue")
        assert not refused
        await query(store_dsn, FUTURE)
        with trio.fail_after(PATIENCE):
            while not refused:
                await trio.lowlevel.checkpoint()
        await other.execute("rollback")
    assert refused == ["q"]
    assert [m.payload for m in await store.messages.list("q")] == [1]
    assert (await store.queues.delete("q", force=True)).messages == 1


FUTURE = (
    "create or replace function tocsin._clock() returns timestamptz language sql volatile parallel"
    " safe as $$ select pg_catalog.clock_timestamp() + interval '11 s' $$"
)


async def test_two_deletions_in_a_transaction_do_not_wait_for_ever_for_who_uses_both_queues(
    store: tocsin.Store, store_dsn: str
) -> None:
    for name in ("a", "q"):
        await store.queues.create(name)
    outcome = list[str | None]()

    async def delete(deleting: TrioConnection[Any]) -> None:
        with pytest.raises(
            psycopg.Error, match="in use by transactions that do not end"
        ) as refused:
            await deleting.execute("select tocsin.delete_queue('q', force => true)")
        outcome.append(refused.value.sqlstate)
        await deleting.execute("rollback")

    async with (
        open_transaction(store_dsn) as producing,
        open_transaction(store_dsn) as deleting,
        trio.open_nursery() as nursery,
    ):
        await producing.execute("select tocsin.enqueue('q', '1')")
        await deleting.execute("select tocsin.delete_queue('a')")
        nursery.start_soon(delete, deleting)
        await until_waiting(store_dsn, "delete_queue('q'")
        nursery.start_soon(producing.execute, "select tocsin.enqueue('a', '1')")
        await until_waiting(store_dsn, "enqueue('a'")
        await query(store_dsn, FUTURE)
    assert outcome == ["TC011"]


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


@pytest.mark.parametrize("name", HOSTILE)
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
        nursery.start_soon(_dequeue_into, got := list[tocsin.Message](), consumer)
        await until_asleep(store)
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


async def test_deletions_of_different_queues_do_not_wait_for_each_other(
    store: tocsin.Store, store_dsn: str
) -> None:
    for queue in ("a", "b"):
        await store.queues.create(queue)
    async with open_connection(store_dsn) as other:
        await other.execute("begin")
        await other.execute("select tocsin.delete_queue('a')")
        await store.queues.delete("b")
        await other.execute("rollback")
    assert [q.name for q in await store.queues.list()] == ["a"]


@pytest.mark.parametrize("name", ["", "\0", "q\0r", "\ud800", "x" * 256, "ä" * 128])
async def test_names_that_cannot_be_are_refused(store: tocsin.Store, name: str) -> None:
    queues = store.queues
    for create in (queues.create, queues.ensure):
        with pytest.raises(ValueError, match="name must"):
            await create(name)
    assert not await queues.exists(name)
    calls: list[Callable[[], Any]] = [
        lambda: queues.update(name, vt=1), lambda: queues.get(name), lambda: queues.pause(name), lambda: queues.resume(name),
        lambda: queues.purge(name, ready=True), lambda: queues.delete(name, force=True), lambda: queues.metrics(name),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(tocsin.QueueNotFound) as refused:
            await call()
        assert refused.value.queue == name
    assert await queues.count() == 0


async def test_no_duration_is_longer_than_a_thousand_years(store: tocsin.Store) -> None:
    for setting in ("vt", "retry_base", "retry_max"):
        with pytest.raises(ValueError, match="at most a thousand years"):
            await store.queues.ensure("q", **{setting: 4_000_000 * 86400})  # type: ignore[misc]
    await store.queues.ensure("q", retention=timedelta.max)
    for option in ("delay", "expires_in"):
        with pytest.raises(ValueError, match="at most a thousand years"):
            await store.produce("q", 1, **{option: 4_000_000 * 86400})  # type: ignore[arg-type]
    for refused in ("delay => '3000000 days'", "expires_in => '3000000 days'"):
        with pytest.raises(ValueError, match="a thousand years"):
            await store.queues._database.fetch(f"select tocsin.enqueue('q', '1', {refused})")
