"""Metrics: what they say, and that they read little, however much there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

import tocsin
from tests.support import PATIENCE, move_clock, nodes, open_connection, query, until_query
from tocsin._database.schema import ours

EMPTY = tocsin.QueueMetrics(
    queue="q",
    paused=False,
    ready=0,
    delayed=0,
    held=0,
    leased=0,
    dead=0,
    archived=0,
    oldest_ready_age=None,
    enqueue_rate=0,
    settle_rate=0,
    consumers=0,
    exact=True,
)
FILL = """
insert into tocsin.messages (queue_id, priority, state, due, vt, enqueued_at, lease, payload)
select q.id, n %% 3, %s::tocsin.message_state, t, t, tocsin._clock(), 1, '1'
from tocsin.queues q, generate_series(1, %s) n,
    lateral (select tocsin._clock() + %s::interval) at (t) where q.name = %s
"""


async def fill(dsn: str, queue: str, count: int, state: str = "ready", due_in: str = "0 s") -> None:
    await query(dsn, FILL, state, count, due_in, queue)


def counts(metrics: tocsin.QueueMetrics) -> tuple[int, int, int, int, int]:
    return metrics.ready, metrics.delayed, metrics.leased, metrics.dead, metrics.archived


async def test_metrics_of_an_empty_queue(store: tocsin.Store) -> None:
    assert await store.queues.metrics() == []
    await store.queues.ensure("q")
    assert await store.queues.metrics("q") == EMPTY
    with pytest.raises(tocsin.QueueNotFound):
        await store.queues.metrics("r")


async def test_metrics_count_each_state_of_each_queue(store: tocsin.Store) -> None:
    for name in ("b", "a"):
        await store.queues.ensure(name)
    async with (
        store.producer("a") as producer,
        store.consumer("a") as consumer,
        store.consumer("a") as idle,
    ):
        await producer.enqueue_many(range(9))
        await consumer.archive_many(await consumer.dequeue(4))
        await producer.enqueue("poison", max_deliveries=1, priority=-1)
        (poison,) = await consumer.dequeue()
        await poison.release()
        await consumer.dequeue(2)
        await producer.enqueue_many(range(6), delay=60)
        await idle.suspend()
        await store.queues.pause("a")
        a, b = await store.queues.metrics()
        assert (a.queue, a.paused, a.consumers, a.exact) == ("a", True, 1, True)
        assert counts(a) == (3, 6, 2, 1, 4)
        assert b == attrs.evolve(EMPTY, queue="b")
        assert a.oldest_ready_age is not None
        assert a.oldest_ready_age >= 0


@pytest.mark.parametrize(
    "statement",
    [
        "select ready, dead, exact from tocsin.queue_metrics()",
        "select ready, dead, exact from tocsin.store_stats()",
    ],
)
async def test_metrics_are_all_of_one_moment(
    store: tocsin.Store, store_dsn: str, statement: str
) -> None:
    """While the metrics wait to count the dead letters, a message becomes one."""
    await store.queues.ensure("q")
    await store.produce("q", 1)
    got: list[tuple[Any, ...]] = []

    async def count() -> None:
        got.extend(await query(store_dsn, statement))

    async with trio.open_nursery() as nursery, open_connection(store_dsn) as other:
        await other.execute("begin")
        await other.execute("lock table tocsin.dead_letters")
        nursery.start_soon(count)
        await until_query(
            store_dsn,
            "select 1 from pg_locks where not granted and relation ="
            " 'tocsin.dead_letters'::regclass",
        )
        await other.execute(
            "select tocsin._move_to_dead_letters(array(select id from tocsin.messages), 'x')"
        )
        await other.execute("commit")
    assert got == [(1, 0, True)]


async def test_metrics_take_what_is_due_for_ready(store: tocsin.Store, store_dsn: str) -> None:
    """A delayed message whose time has come, and one whose lease has expired, although
    no process has claimed since."""
    await store.queues.ensure("q", vt=30)
    await store.produce("q", "leased")
    async with store.consumer("q") as consumer:
        await consumer.dequeue()
        await store.produce("q", "delayed", delay=50)
        assert counts(await store.queues.metrics("q")) == (0, 1, 1, 0, 0)
        await move_clock(store_dsn, 40)
        metrics = await store.queues.metrics("q")
        assert counts(metrics) == (1, 1, 0, 0, 0)
        assert metrics.oldest_ready_age is not None
        assert 9 < metrics.oldest_ready_age < 10 + PATIENCE
        await move_clock(store_dsn, 100)
        assert counts(await store.queues.metrics("q")) == (2, 0, 0, 0, 0)


async def test_oldest_ready_age_is_that_of_the_oldest_of_any_priority(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", "urgent", priority=-5)
    await move_clock(store_dsn, 1000)
    await store.produce("q", "more urgent", priority=-9)
    await store.produce("q", "less urgent", priority=3)
    await move_clock(store_dsn, 1500)
    age = (await store.queues.metrics("q")).oldest_ready_age
    assert age is not None
    assert 1500 <= age < 1500 + PATIENCE
    await store.queues.purge("q", ready=True, older_than=1000)
    age = (await store.queues.metrics("q")).oldest_ready_age
    assert age is not None
    assert 500 <= age < 500 + PATIENCE


async def test_rates_are_those_of_the_last_minute(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await store.queues.ensure("other")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many(range(600))
        await consumer.archive_many(await consumer.dequeue(300))
        await store.produce("other", 1)
        await move_clock(store_dsn, 20)
        metrics = await store.queues.metrics("q")
        assert (metrics.enqueue_rate, metrics.settle_rate) == (10, 5)
        other = await store.queues.metrics("other")
        assert (other.enqueue_rate, other.settle_rate) == (1 / 60, 0)
        await producer.enqueue_many(range(60), delay=3600)
        await move_clock(store_dsn, 61)
        metrics = await store.queues.metrics("q")
        assert (metrics.enqueue_rate, metrics.settle_rate) == (1, 0)
        await move_clock(store_dsn, 100)
        assert (await store.queues.metrics("q")).enqueue_rate == 0


TALLY = (
    "insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n) values"
    " (%s, 0, 'infinity', tocsin._clock() - interval '5 s', 1)"
)


@pytest.mark.parametrize("archived", [False, True])
async def test_a_high_rate_of_enqueueing_is_that_of_a_sample(
    store: tocsin.Store, store_dsn: str, archived: bool
) -> None:
    """1,000 a second, for ten seconds; another queue with one message in the same
    minute is not drowned by it."""
    queue = await store.queues.ensure("q")
    await store.queues.ensure("other")
    await store.produce("other", 1)
    await fill(store_dsn, "q", 10_000)
    await query(
        store_dsn,
        "update tocsin.messages set enqueued_at = (select tocsin._clock()) - (10002 - id) *"
        " interval '1 ms' where queue_id = %s",
        queue.id,
    )
    if archived:
        await query(
            store_dsn,
            "insert into tocsin.archive (id, queue_id, priority, read_ct, enqueued_at, archived_at,"
            " payload) select id, queue_id, 0, 1, enqueued_at, enqueued_at, payload from"
            " tocsin.messages where queue_id = %s",
            queue.id,
        )
        await query(store_dsn, "delete from tocsin.messages where queue_id = %s", queue.id)
        await query(store_dsn, TALLY, queue.id)
    ((now,),) = await query(
        store_dsn, "select max(enqueued_at) from tocsin." + ("archive" if archived else "messages")
    )
    await query(
        store_dsn,
        "create or replace function tocsin._clock() returns timestamptz language sql as $$ select"
        f" '{now}'::timestamptz $$",
    )
    assert (await store.queues.metrics("q")).enqueue_rate == pytest.approx(1000, rel=0.001)
    assert (await store.queues.metrics("other")).enqueue_rate in (0, 1 / 60)


@pytest.mark.slow
async def test_beyond_a_hundred_thousand_the_planner_estimates(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Per queue and state, and not as if these had nothing to do with each other."""
    for name in ("q", "delayed", "small"):
        await store.queues.ensure(name)
    await fill(store_dsn, "q", 150_000)
    await fill(store_dsn, "delayed", 120_000, "delayed", "1 day")
    await fill(store_dsn, "small", 10)
    # whatever the planner knew: they were counted
    assert (await store.queues.metrics("q")).ready > 100_000
    await query(store_dsn, "analyze tocsin.messages")
    q = await store.queues.metrics("q")
    assert not q.exact
    assert q.ready == pytest.approx(150_000, rel=0.15)
    assert q.delayed == 0
    delayed = await store.queues.metrics("delayed")
    assert not delayed.exact
    assert delayed.ready == 0
    assert delayed.delayed == pytest.approx(120_000, rel=0.15)
    small = await store.queues.metrics("small")
    assert small.exact
    assert small.ready == 10
    stats = await store.stats()
    assert not stats.exact
    assert stats.ready == pytest.approx(150_010, rel=0.15)


Plans = Callable[[str], dict[str, dict[str, Any]]]


@pytest.mark.slow
def test_metrics_read_little(plans: Plans) -> None:
    """No table is scanned, and none is counted beyond the cap: neither messages, nor
    the archive, nor dead letters."""
    plans(FILL % ("'ready'", 110_000, "'0 s'", "'q'"))
    plans(FILL % ("'delayed'", 30_000, "'1 day'", "'q'"))
    plans(FILL % ("'leased'", 30_000, "'1 day'", "'q'"))
    plans(
        "insert into tocsin.archive (id, queue_id, priority, read_ct, enqueued_at, archived_at,"
        " payload) select n, 1, 0, 1, now(), now(), '1' from generate_series(1, 120000) n"
    )
    plans(
        "insert into tocsin.dead_letters (id, queue_id, priority, read_ct, enqueued_at, died_at,"
        " payload, reason) select n, 1, 0, 1, now(), now(), '1', 'x' from generate_series(1,"
        " 120000) n"
    )
    plans(TALLY % 1)
    plans("analyze tocsin.messages, tocsin.archive, tocsin.dead_letters")
    for _ in range(7):  # until the session keeps its plans
        found = plans("select * from tocsin.queue_metrics('q')")
    run = [plan for plan in found.values() if "Actual Rows" in plan]  # the rest are only explained
    big = {"messages", "archive", "archive_rest", "dead_letters"}
    read = [
        (n["Node Type"], n["Relation Name"], n["Actual Rows"])
        for p in run
        for n in nodes(p)
        if n.get("Relation Name") in big
    ]
    assert {relation for _, relation, _ in read} >= {"messages", "archive_rest", "dead_letters"}
    assert {node for node, _, _ in read} <= {"Index Scan", "Index Only Scan"}
    assert max(rows for _, _, rows in read) <= 100_001
    assert max(rows for _, relation, rows in read if relation.startswith("archive")) <= 2000


@pytest.mark.slow
def test_metrics_touch_few_pages_of_a_million_archived_messages(plans: Plans) -> None:
    for _ in range(2):
        # makes the partition, and says that it may be used
        plans("select * from tocsin.maintain()")
    plans(
        "insert into tocsin.archive (id, queue_id, priority, read_ct, span, enqueued_at,"
        " archived_at, keep_until, payload) select n, 1, 0, 1, a.span, now(), now(), now() +"
        " a.retention, '1' from tocsin.archive_policies a, generate_series(1, 1000000) n where"
        " a.queue_id = 1 and a.span > 0"
    )
    plans(
        "insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)"
        " select 1, a.span, now() + a.retention, now(), 1000000 from tocsin.archive_policies a"
        " where a.queue_id = 1"
    )
    plans("analyze tocsin.archive")
    for _ in range(7):  # until the session keeps its plans
        found = plans("select * from tocsin.queue_metrics('q')")
    whole = found["select * from tocsin.queue_metrics('q')"]
    # the table has 10,000, its index 3,000
    assert 0 < whole["Shared Hit Blocks"] + whole["Shared Read Blocks"] < 1000
    read = [
        n
        for plan in found.values()
        for n in nodes(plan)
        if n.get("Relation Name", "").startswith("archive_24h")
    ]
    assert {n["Node Type"] for n in read} == {"Index Scan"}
    assert max(n["Actual Rows"] for n in read) == 2000  # for the rate of enqueueing


async def test_metrics_of_a_queue_with_many_priorities(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await query(
        store_dsn,
        "insert into tocsin.messages (queue_id, priority, due, vt, enqueued_at, payload) "
        "select 1, n, now(), now(), now(), '1' from generate_series(1, 5000) n",
    )
    metrics = await store.queues.metrics("q")
    assert metrics.ready == 5000
    assert metrics.oldest_ready_age is not None


async def test_metrics_of_many_queues_are_those_of_each(
    store: tocsin.Store, store_dsn: str
) -> None:
    await query(
        store_dsn, "select count(tocsin.create_queue('q' || n)) from generate_series(1, 300) n"
    )
    await fill(store_dsn, "q7", 3)
    await fill(store_dsn, "q8", 200)
    await fill(store_dsn, "q9", 2, "delayed", "1 day")
    await query(
        store_dsn,
        "update tocsin.messages set due = due - interval '1 hour' where queue_id = 7 and id = 2",
    )
    every = {m.queue: m for m in await store.queues.metrics()}
    assert len(every) == 300
    assert {name: (m.ready, m.delayed) for name, m in every.items() if m.ready + m.delayed} == {
        "q7": (3, 0),
        "q8": (200, 0),
        "q9": (0, 2),
    }
    assert 3600 <= (every["q7"].oldest_ready_age or 0) < 3600 + PATIENCE
    assert every["q9"].oldest_ready_age is None
    assert [round(60 * every[name].enqueue_rate) for name in ("q7", "q8", "q9", "q10")] == [
        3,
        200,
        2,
        0,
    ]


async def test_stats_of_the_whole_store(store: tocsin.Store, store_dsn: str) -> None:
    no_workers = dict.fromkeys(tocsin.WorkerStatus, 0)
    version = ours().version
    assert await store.stats() == tocsin.StoreStats(
        0, no_workers, 0, 0, 0, 0, 0, 0, 0, version, True
    )
    await store.queues.ensure("q")
    await store.queues.ensure("r")
    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        store.consumer("r") as other,
    ):
        await other.suspend()
        await producer.enqueue_many(range(5))
        await store.produce("r", 1, delay=60)
        await consumer.archive_many(await consumer.dequeue(2))
        await consumer.dequeue()
        workers = {**no_workers, tocsin.WorkerStatus.READY: 2, tocsin.WorkerStatus.SUSPENDED: 1}
        assert await store.stats() == tocsin.StoreStats(
            queues=2,
            workers=workers,
            ready=2,
            delayed=1,
            held=0,
            leased=1,
            dead=0,
            archived=2,
            processes=1,
            version=version,
            exact=True,
        )
