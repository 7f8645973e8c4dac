"""Lists and counts of jobs, and changes of finished ones."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import tocsin
from tests.support import PATIENCE, nodes, query
from tests.support.jobs import working

from . import tasks


async def in_every_state(store: tocsin.Store, store_dsn: str) -> dict[str, int]:
    """One job in each state; returns their ids, in the order of submission."""
    async with working(store, tasks.double, tasks.fail_with):
        succeeded = await tasks.double.submit(store, 2)
        failed = await tasks.fail_with.submit(store, "KeyError")
        await succeeded.result(timeout=PATIENCE)
        with pytest.raises(tocsin.JobFailed):
            await failed.result(timeout=PATIENCE)
    cancelled = await tasks.double.submit(store, 3)
    await cancelled.cancel("not needed")
    running = await tasks.double.submit(store, 4)
    await query(
        store_dsn,
        "update tocsin.messages set state = 'leased', lease = 1, read_ct = 1,"
        " vt = now() + interval '1 hour'",
    )
    waiting = await tasks.double.using(key="w", delay=60).submit(store, 5)
    await store.produce("default", "a plain message")
    jobs = succeeded, failed, cancelled, running, waiting
    states = "succeeded", "failed", "cancelled", "running", "waiting"
    return dict(zip(states, (job.id for job in jobs), strict=True))


async def test_lists_by_every_filter_and_in_both_orders(
    store: tocsin.Store, store_dsn: str
) -> None:
    ids = await in_every_state(store, store_dsn)
    in_order = list(ids.values())

    async def listed(**filters: Any) -> list[int]:
        return [job.id for job in await store.jobs.list(**filters)]

    assert await listed() == in_order
    assert await listed(newest_first=True) == in_order[::-1]
    assert await listed(limit=2, after=in_order[1]) == in_order[2:4]
    assert await listed(limit=2, after=in_order[2], newest_first=True) == in_order[1::-1]
    for state, job_id in ids.items():
        assert await listed(state=state) == [job_id]
        assert await listed(state=state, newest_first=True) == [job_id]
    assert await listed(task=tasks.fail_with.name) == [ids["failed"]]
    assert await listed(queue="default", key="w") == [ids["waiting"]]
    now = datetime.now(UTC)
    assert await listed(until=now - timedelta(hours=1)) == []
    assert await listed(since=now - timedelta(hours=1)) == in_order
    with pytest.raises(tocsin.QueueNotFound):
        await store.jobs.list(queue="none")
    with pytest.raises(ValueError, match="state must be one of"):
        await store.jobs.list(state="ready")  # type: ignore[arg-type]


async def test_a_listed_job_tells_all_as_the_view_does(store: tocsin.Store, store_dsn: str) -> None:
    ids = await in_every_state(store, store_dsn)
    jobs = {job.state: job for job in await store.jobs.list()}
    assert (jobs["succeeded"].result, jobs["succeeded"].arguments) == (4, {"number": 2})
    assert (jobs["failed"].reason, jobs["failed"].error) == ("handler_failed", "KeyError: 'k'")
    assert jobs["cancelled"].error == "not needed"
    assert jobs["waiting"].key == "w"
    assert jobs["waiting"].due is not None
    view = await query(store_dsn, "select id, task, state, attempts, error from tocsin.jobs")
    assert sorted(view) == [(j.id, j.task, j.state, j.attempts, j.error) for j in jobs.values()]
    assert {j.id for j in jobs.values()} == set(ids.values())


async def test_counts_by_task_and_state(store: tocsin.Store, store_dsn: str) -> None:
    await in_every_state(store, store_dsn)
    double = tasks.double.name
    counts = await store.jobs.stats()
    assert [(c.task, c.state, c.count, c.exact) for c in counts] == [
        *((double, state, 1, True) for state in ("cancelled", "running", "succeeded", "waiting")),
        (tasks.fail_with.name, "failed", 1, True),
    ]
    large = await query(
        store_dsn, "select exact from tocsin.job_stats(cap => 1) where job_state = 'running'"
    )
    assert large == [(False,)]


async def test_the_load_of_each_task(store: tocsin.Store, store_dsn: str) -> None:
    assert await store.jobs.metrics() == []
    await in_every_state(store, store_dsn)
    await store.schedules.set("s", tasks.double.call(1), every=3600)  # its ticks are no jobs
    double, failing = await store.jobs.metrics()
    assert double == tocsin.TaskMetrics(tasks.double.name, 1, 1, 0, 1 / 60, True)
    assert failing == tocsin.TaskMetrics(tasks.fail_with.name, 0, 0, 1, 0, True)
    await query(
        store_dsn, "update tocsin.archive set archived_at = archived_at - interval '1 hour'"
    )
    assert (await store.jobs.metrics())[0].success_rate == 0
    assert await query(
        store_dsn, "select waiting > 1, exact from tocsin.task_metrics(1) where running = 1"
    ) in ([(False, False)], [(True, False)])


async def test_clear_deletes_finished_jobs_also_cancelled_ones(
    store: tocsin.Store, store_dsn: str
) -> None:
    ids = await in_every_state(store, store_dsn)
    assert await store.jobs.clear(older_than=3600) == 0
    assert await store.jobs.clear(dry_run=True) == 2
    assert await store.jobs.clear(task=tasks.fail_with.name) == 0
    assert await store.jobs.clear() == 2
    assert await store.jobs.clear(states=["failed"]) == 1
    left = [job.id for job in await store.jobs.list()]
    assert left == [ids["running"], ids["waiting"]]
    assert (await store.queues.metrics("default")).archived == 0
    with pytest.raises(ValueError, match="states"):
        await store.jobs.clear(states=["running"])


# Running again


async def test_a_finished_job_runs_again_from_its_first_attempt(store: tocsin.Store) -> None:
    """Due now, whatever delay it had before."""
    await store.queues.ensure("default", retry_base=3600)
    failed = await tasks.fail_until.using(max_attempts=1).submit(store, 2)
    cancelled = await tasks.double.using(delay=3600).submit(store, 4)
    await cancelled.cancel()
    async with working(store, tasks.fail_until, tasks.double):
        with pytest.raises(tocsin.JobFailed):
            await failed.result(timeout=PATIENCE)
        await cancelled.requeue()
        assert await cancelled.result(timeout=PATIENCE) == 8
        await store.jobs.requeue(cancelled.id)
        assert await cancelled.result(timeout=PATIENCE) == 8
        assert (await cancelled.info()).attempts == 1
    await failed.requeue()
    assert (await failed.info()).state == "waiting"
    assert (await failed.info()).attempts == 0
    with pytest.raises(tocsin.MessageNotWaiting):
        await failed.requeue()
    with pytest.raises(tocsin.JobNotFound):
        await store.jobs.requeue(10**9)
    assert (await store.queues.metrics("default")).archived == 1


async def test_a_job_whose_key_is_taken_does_not_run_again(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    first = await tasks.double.using(key="k").submit(store, 1)
    await first.cancel()
    await tasks.double.using(key="k").submit(store, 2)
    with pytest.raises(tocsin.KeyTaken):
        await first.requeue()
    assert (await first.info()).state == "cancelled"


async def test_a_job_that_waits_is_rescheduled(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    job = await tasks.double.using(delay=3600).submit(store, 1)
    await job.reschedule(delay=0)
    async with working(store, tasks.double):
        assert await job.result(timeout=PATIENCE) == 2
    with pytest.raises(tocsin.MessageNotWaiting):
        await store.jobs.reschedule(job.id, at=datetime.now(UTC))
    with pytest.raises(ValueError, match="delay= or at="):
        await job.reschedule()


# Plans

LARGE = """
insert into tocsin.messages
       (queue_id, priority, state, due, vt, enqueued_at, lease, task, payload)
select 1, 0, 'ready', now(), now(), now(), 1, case when n % 4 > 0 then 't' || n % 3 end, '1'
from generate_series(1, 30000) n;
insert into tocsin.archive
       (id, queue_id, priority, read_ct, enqueued_at, archived_at, span, task, outcome, payload)
select 100000 + n, 1, 0, 1, now(), now(), 0, case when n % 4 > 0 then 't' || n % 3 end,
    case when n % 4 = 0 then null when n % 5000 = 1 then 'cancelled' else 'succeeded' end, '1'
from generate_series(1, 20000) n;
insert into tocsin.dead_letters
       (id, queue_id, priority, read_ct, enqueued_at, died_at, payload, reason, task)
select 200000 + n, 1, 0, 1, now(), now(), '1', 'handler_failed',
    case when n % 4 > 0 then 't' || n % 3 end
from generate_series(1, 20000) n;
analyze tocsin.messages, tocsin.archive, tocsin.dead_letters;
"""


@pytest.mark.parametrize(
    "filters",
    [
        "",
        "task => 't1', after => 110000",
        "state => 'cancelled', newest_first => true",
        pytest.param("newest_first => true, queue => 'q'", marks=pytest.mark.slow),
        pytest.param("state => 'failed', task => 't2'", marks=pytest.mark.slow),
        pytest.param("state => 'running'", marks=pytest.mark.slow),
    ],
)
def test_a_page_reads_a_page_and_not_the_table(plans: Any, filters: str) -> None:
    statement = f"select * from tocsin.list_jobs(max_jobs => 10{filters and ', ' + filters})"
    for _ in range(8):
        plans(statement)
    plans(LARGE)
    read = 0
    for text, plan in plans(statement).items():
        for node in nodes(plan):
            if re.fullmatch(
                r"messages|dead_letters|archive(_\d+h_.*|_rest)?", node.get("Relation Name", "")
            ):
                assert node["Node Type"] != "Seq Scan", (text, plan)
                read += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node[
                    "Actual Loops"
                ]
    assert read < 500


def test_the_load_of_tasks_is_read_from_a_part_of_each_table(plans: Any) -> None:
    statement = "select * from tocsin.task_metrics(100)"
    for _ in range(8):
        plans(statement)
    plans(LARGE)
    read = 0
    for text, plan in plans(statement).items():
        for node in nodes(plan):
            if re.fullmatch(
                r"messages|dead_letters|archive(_\d+h_.*|_rest)?", node.get("Relation Name", "")
            ):
                # what _estimate asks about is not run
                rows = node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)
                assert rows <= 1000, (text, plan)
                read += rows * node.get("Actual Loops", 0)
    assert 3 * 1000 <= read < 6000  # of each of three tasks the newest thousand
