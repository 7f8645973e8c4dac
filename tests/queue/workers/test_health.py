"""How workers and queues are: the registry in figures, what is wrong with a queue, and
what it costs to ask."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from typing import Any

import pytest

import tocsin
from tests.support import move_clock, nodes, query, until
from tests.support.sweeps import sweep

NO_CONSUMER = "messages wait and no consumer is active"


async def health(store: tocsin.Store, **options: Any) -> tocsin.QueueHealth:
    (found,) = await store.workers.health("q", **options)
    return found


# The registry in figures


async def test_stats_of_the_registry_and_of_one_queue(store: tocsin.Store, store_dsn: str) -> None:
    assert await store.workers.stats() == tocsin.WorkerStats(
        0, dict.fromkeys(tocsin.WorkerStatus, 0), {"producer": 0, "consumer": 0}, 0, None
    )
    for queue in ("q", "r"):
        await store.queues.ensure(queue)
    async with store.consumer("r") as elsewhere, store.producer("q"), AsyncExitStack() as stack:
        consumers = [
            await stack.enter_async_context(store.consumer("q")) for _ in tocsin.WorkerStatus
        ]
        await store.produce("r", 1)
        for n in range(3):
            await store.produce("q", n)
        await elsewhere.dequeue()
        await consumers[0].dequeue(2)
        for consumer, status in zip(consumers, tocsin.WorkerStatus, strict=True):
            await query(
                store_dsn,
                "update tocsin.workers set status = %s where id = %s",
                status,
                consumer.worker_id,
            )
        everywhere, here = await store.workers.stats(), await store.workers.stats("q")
        assert (here.total, here.by_kind, here.held) == (6, {"producer": 1, "consumer": 5}, 2)
        assert here.by_status == {
            "ready": 2,
            "polling": 1,
            "interrupted": 1,
            "suspended": 1,
            "stopped": 1,
        }
        assert (everywhere.total, everywhere.by_kind, everywhere.held) == (
            7,
            {"producer": 1, "consumer": 6},
            3,
        )
        assert everywhere.by_status == {**here.by_status, tocsin.WorkerStatus.READY: 3}
        with pytest.raises(tocsin.QueueNotFound):
            await store.workers.stats("another")


async def test_the_oldest_heartbeat_is_that_of_a_worker_that_is_not_stopped(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with (
            store.producer("q") as stopped,
            store.producer("q") as silent,
            store.producer("q"),
        ):
            await query(store_dsn, "update tocsin.processes set heartbeat_at = '2000-01-01'")
            for producer, seconds in ((stopped, 500), (silent, 50)):
                await query(
                    store_dsn,
                    "update tocsin.workers set heartbeat_at = tocsin._clock() - make_interval(secs"
                    " => %s) where id = %s",
                    *(seconds, producer.worker_id),
                )
            await query(
                store_dsn,
                "update tocsin.workers set status = 'stopped' where id = %s",
                stopped.worker_id,
            )
            age = (await store.workers.stats()).oldest_heartbeat_age
            assert age is not None
            assert 50 <= age < 500


# What is wrong with a queue


async def test_a_queue_without_messages_and_workers_is_healthy(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    assert await health(store) == tocsin.QueueHealth("q", True, (), 0, (), (), 0, None, None)


async def test_messages_wait_and_no_consumer_is_there(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    await store.produce("q", 2)
    async with store.producer("q"):  # does not consume
        assert (await health(store)).healthy  # a moment without consumers is none
        await move_clock(store_dsn, 100)
        async with store.producer("q"):
            found = await health(store, max_age=3600)
            assert found.healthy
            found = await health(store, max_age=99)
            assert (found.healthy, found.consumers, found.ready, found.unhealthy_workers) == (
                False,
                0,
                2,
                (1,),
            )
            assert found.oldest_ready_age is not None
            assert 100 <= found.oldest_ready_age < 200
            assert found.problems[0].startswith(f"{NO_CONSUMER}: 2, the oldest for 100 s")
        async with store.consumer("q"):
            found = await health(store, max_age=99)
            assert (found.consumers, found.ready) == (1, 2)
            assert not [p for p in found.problems if NO_CONSUMER in p]


@pytest.mark.parametrize("way", ["delayed", "lease ended"])
async def test_what_no_claim_has_seen_waits_too(
    store: tocsin.Store, store_dsn: str, way: str
) -> None:
    """With no process there to claim, a message that is due is still `delayed`, and one
    whose lease has ended still `leased`."""
    await store.queues.ensure("q", vt=10)
    await store.produce("q", 1, delay=10 if way == "delayed" else None)
    if way == "lease ended":
        async with store.consumer("q") as consumer:
            await consumer.dequeue()
            await query(store_dsn, "delete from tocsin.workers where id = %s", consumer.worker_id)
    assert (await health(store, max_age=0)).ready == 0
    await move_clock(store_dsn, 1000)
    found = await health(store)
    assert (found.healthy, found.ready) == (False, 1)
    assert found.oldest_ready_age is not None
    assert 980 <= found.oldest_ready_age <= 1000
    assert NO_CONSUMER in found.problems[0]


async def test_the_oldest_message_is_found_behind_more_urgent_ones(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", "old", priority=7)
    await move_clock(store_dsn, 500)
    for priority in (0, 3, 9):
        await store.produce("q", "new", priority=priority)
    found = await health(store)
    assert (found.ready, round(found.oldest_ready_age or 0, -2)) == (4, 500)


async def produce_numbers(dsn: str, count: int) -> None:
    """Enqueue messages in one statement."""
    numbers = "(select jsonb_agg(n) from generate_series(1, %s) n)"
    await query(dsn, f"select tocsin.enqueue_many('q', {numbers})", count)


async def test_the_count_of_a_backlog_is_exact_up_to_ten_thousand(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await produce_numbers(store_dsn, 10000)
    await move_clock(store_dsn, 60)
    found = await health(store)
    assert found.ready == 10000
    assert f"{NO_CONSUMER}: 10000, the oldest" in found.problems[0]


async def test_the_count_of_a_backlog_beyond_ten_thousand_is_estimated(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await produce_numbers(store_dsn, 10001)
    await move_clock(store_dsn, 60)
    found = await health(store)
    assert found.ready > 10000
    assert f"{NO_CONSUMER}: about {found.ready}, the oldest" in found.problems[0]


@pytest.mark.parametrize(("vt", "limit"), [(30, 300), (60, 600), (3600, 3600)])
async def test_a_handler_that_hangs_is_a_problem(
    store: tocsin.Store, store_dsn: str, vt: int, limit: int
) -> None:
    await store.queues.ensure("q", vt=vt)
    first, _, _ = await store.produce_many("q", range(3))
    async with store.consumer("q", name="c") as consumer:
        await consumer.dequeue(2, vt=86400)
        for seconds, healthy in [(limit - 30, True), (limit + 30, False)]:
            await move_clock(store_dsn, seconds)
            await consumer.heartbeat()
            found = await health(store)
            assert (found.healthy, found.running_worker_id, found.running_message_id) == (
                healthy,
                consumer.worker_id,
                first,
            )
            assert found.running_for is not None
            assert seconds <= found.running_for < seconds + 30
            info = await consumer.info()
            assert (info.running_message_id, round(info.running_for or 0, -2)) == (
                first,
                round(found.running_for, -2),
            )
        assert found.running_for is not None
        assert found.problems == (
            (
                f'worker {consumer.worker_id} ("c") has been at message {first} for'
                f" {round(found.running_for)} s"
            ),
        )
        assert (await health(store, max_running=limit + 60)).healthy
        assert not (await health(store, max_running=1)).healthy
        await consumer.archive(first)
        await move_clock(store_dsn, 0)
        assert (await health(store)).running_message_id == first + 1


async def test_the_log_warns_of_a_handler_that_may_hang(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("leases", "lease_keeper"):
        monkeypatch.setattr(f"tocsin._queue.consuming.{module}.suspicious_after", lambda _: 0.01)
    await store.queues.ensure("q", vt=3600)
    message_id = await store.produce("q", 1)

    async def handler(_: tocsin.Message) -> None:
        # the second one when the time has doubled
        await until(lambda: len(caplog.records) >= 2)

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as ended:
            await consumer.handle(handler, once=True)
    assert ended.value.handled == 1
    warning = rf"the handler of message {message_id} has been running for \d+ s; it may hang"
    assert all(re.fullmatch(warning, r.getMessage()) for r in caplog.records)
    assert {getattr(r, "message_id", None) for r in caplog.records} == {message_id}


async def test_a_message_of_long_ago_waits_since_its_queue_is_there(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.transaction() as connection:
        await connection.execute("select tocsin.enqueue('q', '1', at => '2000-01-01')")
    found = await health(store)
    assert (found.healthy, found.ready) == (True, 1)
    assert 0 <= (found.oldest_ready_age or -1) < 3600


async def test_a_paused_queue_has_messages_that_wait_on_purpose(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    await store.queues.pause("q")
    await move_clock(store_dsn, 3600)
    found = await health(store)
    assert (found.healthy, found.ready) == (True, 1)
    assert found.paused_for == pytest.approx(3600, abs=60)
    await store.queues.resume("q")
    found = await health(store)
    assert (found.healthy, found.paused_for) == (False, None)


async def test_a_worker_without_a_sign_of_life_is_a_problem(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q", name="mailer") as consumer, store.producer("q") as producer:
            assert (await health(store)).healthy
            await query(
                store_dsn,
                "update tocsin.workers set status = 'stopped' where id = %s",
                producer.worker_id,
            )
            await query(
                store_dsn,
                "update tocsin.workers set heartbeat_at = tocsin._clock() - interval '412 s'",
            )
            await query(
                store_dsn,
                "update tocsin.processes set heartbeat_at = tocsin._clock() - interval '412 s'",
            )
            found = await health(store)
            assert (found.healthy, found.consumers, found.unhealthy_workers) == (
                False,
                0,
                (consumer.worker_id,),
            )
            assert found.problems == (
                (
                    f'worker {consumer.worker_id} ("mailer") is ready but has sent no heartbeat'
                    " for 412 s"
                ),
            )
            await store.produce("q", 1)
            assert len((await health(store)).problems) == 1  # the message has just come
            await query(store_dsn, "update tocsin.messages set due = due - interval '1 hour'")
            await query(
                store_dsn, "update tocsin.queues set created_at = created_at - interval '1 day'"
            )
            assert [NO_CONSUMER in p for p in (await health(store)).problems] == [True, False]
            # its process speaks for it
            await query(store_dsn, "update tocsin.processes set heartbeat_at = tocsin._clock()")
            found = await health(store)
            assert found.oldest_ready_age == pytest.approx(3600, abs=60)
            assert found == tocsin.QueueHealth(
                "q", True, (), 1, (), (), 1, found.oldest_ready_age, None
            )


@pytest.mark.parametrize("status", ["interrupted", "suspended"])
async def test_a_suspended_consumer_is_named(
    store: tocsin.Store, store_dsn: str, status: str
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q", name="mailer") as consumer, store.producer("q") as producer:
        await query(store_dsn, "update tocsin.workers set status = %s", status)
        found = await health(store)
        assert (found.healthy, found.consumers, found.suspended_workers) == (
            True,
            0,
            (consumer.worker_id,),
        )
        await store.produce("q", 1)
        await query(store_dsn, "update tocsin.messages set due = due - interval '1 hour'")
        await query(
            store_dsn, "update tocsin.queues set created_at = created_at - interval '1 day'"
        )
        (problem,) = (await health(store)).problems
        assert problem.startswith(NO_CONSUMER)
        assert f'suspended: {consumer.worker_id} ("mailer")' in problem
        await producer.heartbeat()


async def test_jobs_wait_and_no_worker_runs_their_task(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")

    @tocsin.task(queue="q", name="known")
    async def known() -> None: ...

    @tocsin.task(queue="q", name="unknown")
    async def unknown() -> None: ...

    earlier = "update tocsin.messages set enqueued_at = enqueued_at - interval '1 hour'"
    async with store.worker([known]) as worker:
        await unknown.submit(store)
        await store.produce("q", "a plain message")
        await unknown.using(delay=3600).submit(store)
        assert not await worker.process_one()
        assert (await health(store)).healthy  # they have only just come
        await query(store_dsn, earlier)
        found = await health(store)
        assert found.unserved_tasks == ("unknown",)
        task, plain = found.problems
        assert re.fullmatch(
            r'jobs wait and no worker runs task "unknown": 1, the .* 36\d\d s', task
        )
        assert plain.startswith("plain messages wait and no consumer handles them: 1, the oldest")
        async with store.worker([unknown]) as other:
            assert (await other.consumers[0].info()).tasks == ("unknown",)
            (problem,) = (await health(store)).problems
            assert problem == plain
            async with store.consumer("q") as consumer:  # handles every message
                assert (await consumer.info()).tasks is None
                assert (await health(store)).healthy
        assert (await health(store)).healthy  # a moment without workers is none
        await query(
            store_dsn,
            "update tocsin.workers set heartbeat_at = heartbeat_at - interval '1 hour', shutdown_at"
            " = shutdown_at - interval '1 hour' where status = 'stopped'",
        )
        assert (await health(store)).problems == (task, plain)
        await store.queues.pause("q")
        assert (await health(store)).healthy


async def test_a_job_that_waits_in_a_backlog_of_its_task_is_no_problem(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")

    @tocsin.task(queue="q", name="known")
    async def known() -> None: ...

    async with store.worker([known]):
        await known.submit(store)
        await query(
            store_dsn,
            "update tocsin.messages set due = due - interval '1 hour', enqueued_at = enqueued_at -"
            " interval '1 hour'",
        )
        assert (await health(store)).healthy


async def test_health_of_every_queue_or_of_one(store: tocsin.Store) -> None:
    for queue in ("b", "a"):
        await store.queues.ensure(queue)
    assert [found.queue for found in await store.workers.health()] == ["a", "b"]
    assert [found.queue for found in await store.workers.health("b")] == ["b"]
    with pytest.raises(tocsin.QueueNotFound):
        await store.workers.health("c")
    with pytest.raises(ValueError, match="max_age"):
        await store.workers.health("b", -1)


@sweep("name", ['x"; drop schema tocsin; --', "'", "%s", "ünï☃", "{}", "a\\b", "x" * 255], quick=2)
async def test_queues_and_workers_of_any_name(
    store: tocsin.Store, store_dsn: str, name: str
) -> None:
    await store.queues.ensure(name)
    async with store.consumer(name, name=name) as consumer:
        await query(store_dsn, "update tocsin.workers set heartbeat_at = '2000-01-01'")
        await query(store_dsn, "update tocsin.processes set heartbeat_at = '2000-01-01'")
        (found,) = await store.workers.health(name, 30)
        assert found.queue == name
        assert name in found.problems[0]
        assert (await store.workers.stats(name)).total == 1
        assert [w.name for w in await store.workers.list(name)] == [name]
        await consumer.stop()
        assert [w.name for w in await store.workers.purge(0, queue=name)] == [name]


# What it costs to ask

SETUP = """
insert into tocsin.messages (queue_id, priority, state, lease, consumer_worker_id, due, vt,
    enqueued_at, payload)
select 1 + n % 2, n % 3,
       (case when n % 1000 = 0 then 'leased' when n % 100 = 1 then 'delayed' else 'ready'
           end)::tocsin.message_state,
       n, 1, now(), now() + interval '1 day', now(), '1'
from generate_series(1, 20000) n
"""


@sweep("planned", ["on the empty table", "on the full table"], quick=1)
@pytest.mark.parametrize(
    "statement",
    [
        "select * from tocsin.queue_health('q')",
        "select * from tocsin.queue_health()",
        "select * from tocsin._unserved_tasks(1, now(), '0 s')",
        "select * from tocsin.worker_stats()",
        "select * from tocsin.list_workers('q')",
        "select * from tocsin.list_workers(worker_id => 1)",
        "select tocsin._count_held(w) from tocsin.workers w",
        "select tocsin.release_messages(1)",
        "select * from tocsin.purge_workers('1 day')",
    ],
)
def test_nothing_here_reads_a_whole_table(plans: Any, statement: str, planned: str) -> None:
    if planned == "on the empty table":
        # so that it is known to be empty, and reading it costs nothing
        plans("vacuum analyze tocsin.messages")
        for _ in range(8):  # until the session keeps its plans
            plans(statement)
    plans(SETUP)
    found = plans(statement)
    assert found
    for text, plan in found.items():
        for node in nodes(plan):
            if node.get("Relation Name") == "messages":
                assert node["Node Type"] != "Seq Scan", (text, plan)
                assert node.get("Index Name") != "messages_pkey" or "Index Cond" in node, (
                    text,
                    plan,
                )
                # which would be read of all that are delayed
                assert "due" not in node.get("Filter", ""), (text, plan)


def test_tasks_are_looked_for_at_the_front_of_the_backlog(plans: Any) -> None:
    """Also by a session that planned for an empty table."""
    statement = "select * from tocsin._unserved_tasks(1, now(), '0 s')"
    for _ in range(8):
        plans(statement)
    plans(SETUP)
    plans("update tocsin.messages set vt = now() where state = 'delayed' and id % 2 = 0")
    read = 0
    for text, plan in plans(statement).items():
        for node in nodes(plan):
            if node.get("Relation Name") == "messages":
                assert node["Node Type"] == "Index Scan", (text, plan)
                read += node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    assert 1000 <= read <= 2000
