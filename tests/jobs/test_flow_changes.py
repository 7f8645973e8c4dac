"""Requeues, cancellations and deletions of jobs of flows, also at the same time."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import psycopg
import pytest
import trio

import tocsin
from tests.jobs import tasks
from tests.support import PATIENCE, move_clock, open_connection, query, until_blocked
from tests.support.flows import end, lease, states
from tests.support.jobs import working


@pytest.fixture
async def chain(store: tocsin.Store) -> tocsin.Flow:
    """Return a flow in which b takes the result of a, and waits for a requeue of it."""
    await store.queues.ensure("default")
    async with store.flow("chain", on_failure="hold") as flow:
        a: Any = flow.add(tasks.double.call(1), name="a")
        flow.add(tasks.double.call(a), name="b")
    return flow


async def find(store: tocsin.Store, flow: tocsin.Flow, name: str) -> tocsin.Job[int]:
    (found,) = [job.id for job in (await store.flows.get(flow.id)).jobs if job.name == name]
    return tasks.double.job(store, found)


async def test_a_job_that_is_requeued_alone_is_still_of_its_flow(
    store: tocsin.Store, chain: tocsin.Flow
) -> None:
    """Also when the flow has been ended."""
    a, b = await find(store, chain, "a"), await find(store, chain, "b")
    await a.cancel()
    await b.cancel()
    await store.maintain()
    assert (await store.flows.get(chain.id)).summary.ended_at
    with pytest.raises(ValueError, match=f"job {b.id} waits for job {a.id} of its flow"):
        await b.requeue()
    await a.requeue()
    assert (await store.flows.get(chain.id)).summary.ended_at is None
    async with working(store, tasks.double):
        assert await a.result(timeout=PATIENCE) == 2
        await b.requeue()
        assert await b.result(timeout=PATIENCE) == 4
    assert (await store.flows.get(chain.id)).summary.state == "succeeded"


async def test_a_child_is_freed_by_its_parent_that_was_cancelled_and_requeued(
    store: tocsin.Store, chain: tocsin.Flow
) -> None:
    a, b = await find(store, chain, "a"), await find(store, chain, "b")
    await a.cancel()
    assert await states(store, chain) == {"a": "cancelled", "b": "waiting"}
    await a.requeue()
    async with working(store, tasks.double):
        assert await b.result(timeout=PATIENCE) == 4


@pytest.mark.parametrize(
    "way", ["purge", "archive", "clear failed", "clear cancelled", "purge archived", "delete"]
)
async def test_a_child_does_not_wait_for_a_parent_that_was_deleted(
    store: tocsin.Store, store_dsn: str, chain: tocsin.Flow, way: str
) -> None:
    a = await find(store, chain, "a")
    if way in ("clear cancelled", "purge archived"):
        await a.cancel()
    elif way != "delete":
        await lease(store_dsn, a.id)
        async with open_connection(store_dsn) as connection:
            await end(connection, a.id, succeeds=False)
    assert (await states(store, chain))["b"] == "waiting"
    match way:
        case "purge":
            await store.dead_letters.purge("default")
        case "archive":
            await store.dead_letters.archive("default")
        case "clear failed":
            await store.jobs.clear(states=["failed"])
        case "clear cancelled":
            await store.jobs.clear()
        case "purge archived":
            await store.queues.purge("default", archived=True)
        case _:
            await store.queues.purge("default", ready=True)
    assert (await states(store, chain))["b"] == "cancelled"
    requeued = await store.flows.requeue(chain.id)
    assert len(requeued) == (2 if way == "archive" else 0)


async def test_a_requeue_of_a_flow_comes_before_the_end_of_a_parent_or_after_it(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A parent that fails cancels also the child that is being requeued."""
    await store.queues.ensure("default")
    async with store.flow("two parents") as flow:
        a, b = (flow.add(tasks.double.call(n), name=name) for n, name in ((1, "a"), (2, "b")))
        flow.add(tasks.double.call(3), name="c", after=[a, b])
    await lease(store_dsn, *(flow.job(job).id for job in (a, b)))
    async with open_connection(store_dsn) as one, open_connection(store_dsn) as other:
        await end(one, flow.job(a).id, succeeds=False)
        assert (await states(store, flow))["c"] == "cancelled"
        async with trio.open_nursery() as nursery, one.transaction():
            await one.execute(b"select tocsin.requeue_flow(%s)", [flow.id])
            nursery.start_soon(partial(end, other, flow.job(b).id, succeeds=False))
            await until_blocked(store_dsn)
    assert await states(store, flow) == {"a": "waiting", "b": "failed", "c": "cancelled"}


@pytest.mark.parametrize("succeeds", [True, False])
async def test_an_older_snapshot_cannot_end_a_parent_of_requeued_jobs(
    store: tocsin.Store, store_dsn: str, *, succeeds: bool
) -> None:
    await store.queues.ensure("default")
    async with store.flow("two parents") as flow:
        a, b = (flow.add(tasks.double.call(n), name=name) for n, name in ((1, "a"), (2, "b")))
        flow.add(tasks.double.call(3), name="c", after=[a, b])
    await lease(store_dsn, *(flow.job(job).id for job in (a, b)))
    async with open_connection(store_dsn) as connection:
        await end(connection, flow.job(a).id, succeeds=False)
        with pytest.raises(psycopg.errors.SerializationFailure):
            async with connection.transaction():
                await connection.execute(b"set transaction isolation level repeatable read")
                await connection.execute(b"select 1 from tocsin.flows")
                await store.flows.requeue(flow.id)
                await end(connection, flow.job(b).id, succeeds=succeeds)
        await end(connection, flow.job(b).id, succeeds=succeeds)
    assert await states(store, flow) == {
        "a": "waiting",
        "b": "succeeded" if succeeds else "failed",
        "c": "waiting" if succeeds else "cancelled",
    }


@pytest.mark.parametrize("end_of_attempt", ["fails", "succeeds"])
async def test_a_cancellation_of_a_flow_waits_for_the_end_of_an_attempt(
    store: tocsin.Store, store_dsn: str, end_of_attempt: str
) -> None:
    """A job that is to be tried again is cancelled, as is a child that was freed."""
    await store.queues.ensure("default")
    async with store.flow("attempt") as flow:
        a = flow.add(tasks.double.call(1), name="a")
        flow.add(tasks.double.call(2), name="b", after=[a])
    job_id = flow.job(a).id
    await lease(store_dsn, job_id)
    async with (
        open_connection(store_dsn) as connection,
        trio.open_nursery() as nursery,
        connection.transaction(),
    ):
        if end_of_attempt == "fails":
            await connection.execute(
                b"select tocsin.fail(array[%s::bigint], '{1}', '{no}', '{none}', '{60}')",
                [job_id],
            )
        else:
            await end(connection, job_id, succeeds=True)
        nursery.start_soon(store.flows.cancel, flow.id)
        await until_blocked(store_dsn)
    assert await states(store, flow) == {
        "a": "cancelled" if end_of_attempt == "fails" else "succeeded",
        "b": "cancelled",
    }


@pytest.mark.parametrize("way", ["replay", "requeue"])
async def test_a_flow_is_not_ended_while_one_of_its_jobs_is_requeued(
    store: tocsin.Store, store_dsn: str, chain: tocsin.Flow, way: str
) -> None:
    a, b = await find(store, chain, "a"), await find(store, chain, "b")
    await b.cancel()
    if way == "replay":
        await lease(store_dsn, a.id)
    else:
        await a.cancel()
    async with open_connection(store_dsn) as connection:
        if way == "replay":
            await end(connection, a.id, succeeds=False)
        async with connection.transaction():
            await connection.execute(b"select tocsin.requeue_job(%s)", [a.id])
            await store.maintain()
    assert (await store.flows.get(chain.id)).summary.ended_at is None
    async with working(store, tasks.double):
        assert await a.result(timeout=PATIENCE) == 2


async def test_maintenance_keeps_the_dead_letters_of_a_flow_until_it_has_ended(
    store: tocsin.Store, store_dsn: str, chain: tocsin.Flow
) -> None:
    await store.queues.update("default", dead_letter_retention=60)
    a, b = await find(store, chain, "a"), await find(store, chain, "b")
    await lease(store_dsn, a.id)
    async with open_connection(store_dsn) as connection:
        await end(connection, a.id, succeeds=False)
    await move_clock(store_dsn, 120)
    assert (await store.maintain()).dead_letters_purged == 0
    assert await states(store, chain) == {"a": "failed", "b": "waiting"}
    await b.cancel()
    assert (await store.maintain()).dead_letters_purged == 1


async def test_a_flow_is_kept_as_long_as_it_has_a_dead_letter(
    store: tocsin.Store, store_dsn: str, chain: tocsin.Flow
) -> None:
    await store.queues.update("default", retention=60)
    a, b = await find(store, chain, "a"), await find(store, chain, "b")
    await lease(store_dsn, a.id)
    async with open_connection(store_dsn) as connection:
        await end(connection, a.id, succeeds=False)
    await b.cancel()
    await store.maintain()
    for days in 2, 4:
        await move_clock(store_dsn, days * 86400)
        await store.maintain()
        assert [flow.id for flow in await store.flows.list()] == [chain.id]
    await store.dead_letters.purge("default")
    await move_clock(store_dsn, 6 * 86400)
    await store.maintain()
    assert await store.flows.list() == []
    assert await query(store_dsn, "select * from tocsin.flow_jobs") == []
    assert await query(store_dsn, "select * from tocsin.edges") == []


async def test_any_number_of_flows_is_ended_in_parts(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    for n in range(7):
        async with store.flow(f"{n}") as flow:
            flow.add(tasks.double.call(n))
        if n % 2:
            await store.flows.cancel(flow.id)
    rounds = 0
    while await query(store_dsn, ENDED) != [("1",), ("3",), ("5",)]:
        await query(store_dsn, "select tocsin._end_flows(2)")
        rounds += 1
        assert rounds < 1000
    assert rounds > 1


ENDED = "select name from tocsin.flows where ended_at is not null order by id"
SUBMISSIONS = {
    "": "must have a name",
    "name": "the same name",
    "task": "must have a task",
    "rule": "on_failure",
    "parent": "come after its parents",
    "nothing": "come after its parents",
}


@pytest.mark.parametrize("fault", SUBMISSIONS)
async def test_sql_is_told_what_is_wrong_with_a_flow(
    store: tocsin.Store, store_dsn: str, fault: str
) -> None:
    await store.queues.ensure("default")
    first = {"queue": "default", "task": "t", "payload": [], "name": "a"}
    parent: dict[str, object] = {"job": 0}
    second = first | {"name": "b", "parents": [parent]}
    match fault:
        case "name":
            second["name"] = "a"
        case "task":
            del second["task"]
        case "rule":
            parent["on_failure"] = "go"
        case "parent":
            parent["job"] = 1
        case "nothing":
            del parent["job"]
    with pytest.raises(psycopg.Error, match=SUBMISSIONS[fault]) as refused:
        await query(
            store_dsn,
            "select tocsin.submit_flow(%s, %s::jsonb)",
            fault,
            json.dumps([first, second]),
        )
    assert refused.value.sqlstate == "TC022"
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(0,)]
