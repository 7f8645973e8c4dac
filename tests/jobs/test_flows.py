"""Flows: graphs of jobs that are submitted together, and run in their order."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, nodes, open_connection, query, until
from tests.support.flows import end, lease, states
from tests.support.jobs import working

ran: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    ran.clear()


class Reversed:
    """A codec."""

    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes) -> bytes:
        return data[::-1]


@tocsin.task(name="number", max_attempts=1)
async def number(value: int) -> int:
    ran.append(f"number {value}")
    return value


@tocsin.task(name="add", max_attempts=1)
async def add(left: int, right: int) -> int:
    ran.append("add")
    return left + right


@tocsin.task(name="total", max_attempts=1)
async def total(values: list[int]) -> int:
    ran.append("total")
    return sum(values)


@tocsin.task(name="fail", max_attempts=1)
async def fail(*, really: bool = True) -> int:
    ran.append("fail")
    if really:
        raise ValueError("no")
    return 1


@tocsin.task(name="optional", max_attempts=1)
async def optional(value: int | None) -> str:
    ran.append("optional")
    return repr(value)


TASKS = number, add, total, fail, optional


async def until_ended(store: tocsin.Store, flow: tocsin.Flow) -> None:
    """Return when no job of the flow is unfinished."""

    async def ended() -> bool:
        return (await store.flows.get(flow.id)).summary.state != "running"

    await until(ended)


async def test_a_chain_runs_in_order(store: tocsin.Store) -> None:
    async with working(store, *TASKS, concurrency=3):
        async with store.flow("chain") as flow:
            flow.add(number.call(3), name="c", after=["b"])
            a = flow.add(number.call(1), name="a")
            flow.add(number.call(2), name="b", after=[a])
        await until_ended(store, flow)
    assert ran == ["number 1", "number 2", "number 3"]
    found = await store.flows.get(flow.id)
    assert [job.name for job in found.jobs] == ["a", "b", "c"]
    assert [(e.parent, e.child, e.on_failure, e.argument) for e in found.edges] == [
        (one.id, other.id, "cancel", ()) for one, other in pairwise(found.jobs)
    ]


async def test_a_diamond_joins_the_results_of_its_branches(store: tocsin.Store) -> None:
    async with working(store, *TASKS):
        async with store.flow("diamond") as flow:
            top = flow.add(number.call(2))
            left, right = flow.add(add.call(top, 1)), flow.add(add.call(top, 2))
            bottom = flow.add(add.call(left, right))
        job: tocsin.Job[int] = flow.job(bottom)
        assert await job.result(timeout=PATIENCE) == 7
    assert ran[0] == "number 2"
    assert (await store.flows.get(flow.id)).summary.state == "succeeded"


async def test_fan_out_over_a_list_and_fan_in(store: tocsin.Store) -> None:
    async with working(store, *TASKS, concurrency=5):
        async with store.flow("list") as flow:
            numbers = [flow.add(number.call(n)) for n in range(20)]
            whole = flow.add(total.call([1000, *numbers, 2000]))
        assert await flow.job(whole).result(timeout=PATIENCE) == 3000 + sum(range(20))


async def test_nothing_is_submitted_when_the_block_raises(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    with pytest.raises(LookupError):
        async with store.flow("raises") as flow:
            flow.add(number.call(1))
            raise LookupError
    with pytest.raises(RuntimeError):
        _ = flow.id
    with pytest.raises(tocsin.QueueNotFound):
        async with store.flow("half") as flow:
            flow.add(number.call(1))
            flow.add(number.using(queue="missing").call(2))
    counts = "select (select count(*) from tocsin.messages), (select count(*) from tocsin.flows)"
    assert await query(store_dsn, counts) == [(0, 0)]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_flow_in_the_transaction_of_a_connection(
    store: tocsin.Store, store_dsn: str, end: str
) -> None:
    await store.queues.ensure("default")
    async with open_connection(store_dsn) as connection:
        await connection.execute("begin")
        async with store.flow("mine", connection=connection) as flow:
            flow.add(number.call(1))
        assert await store.flows.list() == []
        await connection.execute(end.encode())
    assert [f.id for f in await store.flows.list()] == ([flow.id] if end == "commit" else [])


async def test_cycles_and_unknown_jobs_are_refused_by_name(store: tocsin.Store) -> None:
    with pytest.raises(tocsin.FlowInvalid, match=r"wait for each other: (a|b) → ") as refused:
        async with store.flow("cycle") as flow:
            flow.add(number.call(1), name="a", after=["b"])
            flow.add(number.call(1), name="b", after=["a"])
    assert set(refused.value.cycle) == {"a", "b"}
    with pytest.raises(tocsin.FlowInvalid, match="missing") as refused:
        async with store.flow("unknown") as flow:
            flow.add(number.call(1), after=["missing"])
    assert refused.value.unknown == ("missing",)


async def test_a_planned_job_belongs_to_its_flow(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    async with store.flow("one") as one:
        planned = one.add(number.call(1))
    with pytest.raises(tocsin.FlowInvalid, match="not in flow 'two'"):
        async with store.flow("two") as two:
            two.add(add.call(planned, 1))
    with pytest.raises(tocsin.FlowInvalid, match=r"Flow\.add"):
        await add.submit(store, planned, 1)
    with pytest.raises(tocsin.ArgumentsInvalid):
        total.call([planned, "text"])  # type: ignore[list-item]
    with pytest.raises(tocsin.FlowInvalid, match="must accept None"):
        async with store.flow("three") as three:
            three.add(add.call(three.add(number.call(1)), 1), on_failure="run")
    packed = tocsin.task(name="packed", packing=tocsin.Packing(codec=Reversed()))(number.function)
    with pytest.raises(tocsin.FlowInvalid, match="packing"):
        async with store.flow("packed") as flow:
            kept: Any = flow.add(packed.call(1))
            flow.add(add.call(kept, 1))
    for single in "number", planned:
        with pytest.raises(TypeError, match="after must be a list"):
            async with store.flow("single") as flow:
                flow.add(number.call(1), after=single)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="'one' is submitted already"):
        one.add(number.call(2))
    with pytest.raises(RuntimeError, match="'one' is submitted already"):
        async with one:
            pass
    with pytest.raises(TypeError, match="key"):
        async with store.flow("four") as four:
            four.add(number.using(key="k").call(1))
    assert [f.name for f in await store.flows.list()] == ["one"]


async def test_a_failure_cancels_what_is_behind_it_over_all_levels(store: tocsin.Store) -> None:
    async with working(store, *TASKS):
        async with store.flow("cascade") as flow:
            a = flow.add(fail.call(), name="a")
            b = flow.add(add.call(a, 1), name="b")
            c = flow.add(add.call(b, 1), name="c")
            flow.add(add.call(c, 1), name="d")
            other = flow.add(number.call(3), name="other")
        job = flow.job(c)
        with pytest.raises(tocsin.JobCancelled, match="before it has not succeeded"):
            await job.result(timeout=PATIENCE)
        assert await flow.job(other).result(timeout=PATIENCE) == 3
    assert await states(store, flow) == {
        "a": "failed",
        "b": "cancelled",
        "c": "cancelled",
        "d": "cancelled",
        "other": "succeeded",
    }
    assert (await store.flows.get(flow.id)).summary.state == "failed"


async def test_a_child_may_run_without_its_parent(store: tocsin.Store) -> None:
    async with working(store, *TASKS):
        async with store.flow("run", on_failure="run") as flow:
            a = flow.add(fail.call(), name="a")
            b = flow.add(optional.call(a), name="b")
            flow.add(number.call(1), name="c", after=[a])
        assert await flow.job(b).result(timeout=PATIENCE) == "None"
        await until_ended(store, flow)
    assert await states(store, flow) == {"a": "failed", "b": "succeeded", "c": "succeeded"}


async def test_a_child_may_be_held_until_its_parent_succeeds(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with working(store, *TASKS):
        async with store.flow("hold", on_failure="hold") as flow:
            a = flow.add(fail.call(), name="a")
            b = flow.add(optional.call(a), name="b")
        with pytest.raises(tocsin.JobFailed):
            await flow.job(a).result(timeout=PATIENCE)
        assert await states(store, flow) == {"a": "failed", "b": "waiting"}
        await query(store_dsn, """update tocsin.dead_letters set payload = '{"really": false}'""")
        await store.dead_letters.replay("default")
        assert await flow.job(b).result(timeout=PATIENCE) == "1"


async def test_a_flow_is_requeued(store: tocsin.Store, store_dsn: str) -> None:
    """What has succeeded does not run again."""
    async with working(store, *TASKS):
        async with store.flow("again") as flow:
            one = flow.add(number.call(1), name="one")
            a = flow.add(fail.call(), name="a")
            b = flow.add(total.call([one, a]), name="b")
            c = flow.add(number.call(5), name="c", after=[b])
        await until_ended(store, flow)
        assert (await states(store, flow))["c"] == "cancelled"
        await store.maintain()
        await query(store_dsn, """update tocsin.dead_letters set payload = '{"really": false}'""")
        assert await store.flows.requeue(flow.id) == sorted(flow.job(x).id for x in (a, b, c))
        assert await flow.job(c).result(timeout=PATIENCE) == 5
        assert await flow.job(b).result(timeout=PATIENCE) == 2
    assert ran.count("number 1") == 1
    assert (await store.flows.get(flow.id)).summary.state == "succeeded"


async def test_a_job_that_is_requeued_is_of_its_flow_again(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    async with store.flow("one again") as flow:
        a = flow.add(number.call(1), name="a")
        b = flow.add(add.call(a, 1), name="b", on_failure="hold")
    await store.messages.cancel(flow.job(a).id)
    await query(store_dsn, "update tocsin.flows set ended_at = now(), keep_until = now()")
    await store.jobs.requeue(flow.job(a).id)
    ended = await query(store_dsn, "select ended_at, keep_until from tocsin.flows")
    assert ended == [(None, None)]
    async with working(store, *TASKS):
        assert await flow.job(b).result(timeout=PATIENCE) == 2
    assert await states(store, flow) == {"a": "succeeded", "b": "succeeded"}


async def test_a_flow_is_cancelled_while_a_job_runs(store: tocsin.Store) -> None:
    started = trio.Event()

    @tocsin.task(name="slow")
    async def slow() -> int:
        started.set()
        await trio.sleep_forever()
        return 1

    async with working(store, slow, *TASKS):
        async with store.flow("cancelled") as flow:
            a = flow.add(slow.call(), name="a")
            b = flow.add(add.call(a, 1), name="b")
            c = flow.add(number.using(delay=60).call(1), name="c")
        with trio.fail_after(PATIENCE):
            await started.wait()
        ids = sorted(flow.job(job).id for job in (a, b, c))
        assert sorted(await store.flows.cancel(flow.id)) == ids
        await until_ended(store, flow)
    assert set((await states(store, flow)).values()) == {"cancelled"}
    assert (await store.flows.get(flow.id)).summary.state == "cancelled"
    assert ran == []
    with pytest.raises(tocsin.FlowNotFound):
        await store.flows.cancel(flow.id + 1)
    with pytest.raises(tocsin.FlowNotFound):
        await store.flows.get(flow.id + 1)


@pytest.mark.parametrize("way", ["cancel", "purge", "expire", "delete"])
async def test_no_child_is_stranded_by_the_end_of_a_parent(
    store: tocsin.Store, store_dsn: str, way: str
) -> None:
    await store.queues.ensure("default")
    await store.queues.ensure("other")
    async with store.flow(way) as flow:
        a = flow.add(number.using(queue="other", expires_in=10).call(1), name="a")
        flow.add(add.call(a, 1), name="b")
    if way == "cancel":
        await store.messages.cancel(flow.job(a).id)
    elif way == "purge":
        await store.queues.purge("other", ready=True)
    elif way == "delete":
        await store.queues.delete("other", force=True)
    else:
        await query(store_dsn, "update tocsin.messages set expires_at = now() where queue_id = 2")
        async with store.consumer("other") as consumer:
            assert await consumer.dequeue() == []
    assert (await states(store, flow))["b"] == "cancelled"


async def test_results_are_kept_until_the_flow_has_ended(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Also in a queue that keeps nothing, whatever maintenance does."""
    await store.queues.ensure("default", retention=0)
    go_on = trio.Event()

    @tocsin.task(name="wait")
    async def wait(value: int) -> int:
        await go_on.wait()
        return value

    async with working(store, wait, *TASKS):
        async with store.flow("kept") as flow:
            a = flow.add(number.call(1))
            b = flow.add(wait.call(a))
        assert await flow.job(a).result(timeout=PATIENCE) == 1
        await store.maintain()
        assert (await flow.job(a).info()).result == 1
        go_on.set()
        assert await flow.job(b).result(timeout=PATIENCE) == 1
    # While the worker's process does its maintenance, this one does nothing.
    with trio.fail_after(PATIENCE):
        while await query(store_dsn, "select count(*) from tocsin.archive") != [(0,)]:
            await store.maintain()
    assert await query(store_dsn, "select tocsin.archived_count(1)") == [(0,)]
    assert await store.flows.list() == []


async def test_a_limit_holds_for_the_jobs_of_a_flow(store: tocsin.Store) -> None:
    """A job joins the line of its limit when its parents have succeeded."""
    inside = 0

    @tocsin.task(name="limited", limits=[tocsin.Limit("flow", 1)])
    async def limited(value: int) -> int:
        nonlocal inside
        inside += 1
        assert inside == 1
        await trio.testing.wait_all_tasks_blocked()
        inside -= 1
        return value

    async with working(store, limited, *TASKS, concurrency=4):
        async with store.flow("limited") as flow:
            first = flow.add(number.call(1))
            limiteds = [flow.add(limited.call(first)) for _ in range(3)]
            whole = flow.add(total.call(limiteds))
        assert await flow.job(whole).result(timeout=PATIENCE) == 3


async def test_dependents_run_by_priority(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    async with store.flow("priority") as flow:
        first = flow.add(number.call(0))
        for n, priority in ((1, 5), (2, -5), (3, 0)):
            flow.add(number.using(priority=priority).call(n), after=[first])
        flow.add(number.using(priority=1).call(9))
    job_id = flow.job(first).id
    await lease(store_dsn, job_id)
    async with open_connection(store_dsn) as connection:
        await end(connection, job_id, succeeds=True)
    async with working(store, *TASKS):
        await until_ended(store, flow)
    assert ran == ["number 2", "number 3", "number 9", "number 1"]


@pytest.mark.parametrize("rounds", [5, pytest.param(200, marks=pytest.mark.slow)])
async def test_parents_that_end_at_the_same_time_free_their_child_once(
    store: tocsin.Store, store_dsn: str, rounds: int
) -> None:
    """Four parents end in transactions of their own, and in every second round two of
    them fail. One child waits for success, and one runs in any case."""
    await store.queues.ensure("default")
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(open_connection(store_dsn)) for _ in range(4)
        ]
        for n in range(rounds):
            async with store.flow("round") as flow:
                jobs = [flow.add(number.call(p)) for p in range(4)]
                both = flow.add(total.call(jobs), name="both")
                any_way = flow.add(number.call(9), name="any", after=jobs, on_failure="run")
                last = flow.add(number.call(9), name="last", after=[both])
            ids = [flow.job(job).id for job in jobs]
            await lease(store_dsn, *ids)
            failing = 2 * (n % 2)
            async with trio.open_nursery() as nursery:
                for p, connection in enumerate(connections):
                    nursery.start_soon(partial(end, connection, ids[p], succeeds=p >= failing))
            found = await query(
                store_dsn, "select id, state::text, waits_for from tocsin.messages order by id"
            )
            rest: list[tuple[int, str, int | None]] = [(flow.job(any_way).id, "ready", None)]
            if not failing:
                rest += (flow.job(both).id, "ready", None), (flow.job(last).id, "held", 1)
            assert found == sorted(rest), n
            await query(store_dsn, "delete from tocsin.messages")


@pytest.mark.parametrize("planned", ["on the empty table", "on the full table"])
@pytest.mark.parametrize(
    "statement",
    [
        """select tocsin._end_parents('{"1": null}', true)""",
        """select tocsin._end_parents('{"1": null}', false)""",
    ],
)
def test_the_end_of_a_parent_reads_its_own_edges_and_children(
    plans: Any, statement: str, planned: str
) -> None:
    if planned == "on the empty table":
        for _ in range(8):
            plans(statement)
    plans(
        "insert into tocsin.edges (parent, child, flow_id, on_failure) select n, n + 1, 1,"
        " (array['run', 'cancel'])[1 + n % 2] from generate_series(1, 20000) n where n % 3 <> 0"
    )
    plans(
        "insert into tocsin.messages (queue_id, state, waits_for, flow_id, due, vt, enqueued_at,"
        " payload) select 1, 'held', 2, 1, now(), now(), now(), '[1]'"
        " from generate_series(1, 20000)"
    )
    found = plans(statement)
    read = [
        node
        for plan in found.values()
        for node in nodes(plan)
        if node.get("Relation Name") in ("messages", "edges") and "Actual Rows" in node
    ]
    assert {node["Relation Name"] for node in read} == {"messages", "edges"}
    assert not [node for node in read if node["Node Type"] == "Seq Scan"]
    assert max(node["Actual Rows"] * node["Actual Loops"] for node in read) <= 4
