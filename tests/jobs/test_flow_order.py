"""When each job of a flow is its turn, and what a flow can be made of."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE

from . import tasks


@tocsin.task(name="next", max_attempts=2, retry=0)
async def next_number(number: int, *, fails: bool = False) -> int:
    await trio.lowlevel.checkpoint()
    if fails and tocsin.current_job().attempt == 1:
        raise OSError("lost")
    return number + 1


# Turns


async def test_a_job_waits_until_the_one_before_it_has_succeeded(store: tocsin.Store) -> None:
    """Also through the attempts of the other one."""
    await store.queues.ensure("default")
    async with store.flow("chain") as flow:
        first = flow.add(next_number.call(1))
        second = flow.add(next_number.call(first, fails=True))
        third = flow.add(next_number.call(second))
    jobs = [flow.job(planned) for planned in (first, second, third)]
    succeeded: list[int] = []
    async with store.worker([next_number]) as worker:
        while await worker.process_one():
            states = [(await job.info()).state for job in jobs]
            succeeded.append(states.count("succeeded"))
            assert states == sorted(states), "one of them has run before its turn"
    assert succeeded == [1, 1, 2, 3]
    assert [await job.result(timeout=PATIENCE) for job in jobs] == [2, 3, 4]


async def test_jobs_that_wait_for_parents_hide_no_job_that_is_ready(store: tocsin.Store) -> None:
    """However many there are, and however urgent."""
    await store.queues.ensure("default")
    async with store.flow("wide") as flow:
        parent = flow.add(tasks.double.using(delay=3600).call(1))
        for n in range(300):
            flow.add(next_number.using(priority=-100).call(n), after=[parent])
    job = await tasks.halve.using(priority=100).submit(store, 3)
    async with store.worker([tasks.double, tasks.halve, next_number]) as worker:
        assert await worker.process_one()
        assert await job.result(timeout=PATIENCE) == 1.5
        assert not await worker.process_one()


async def test_a_freed_job_overtakes_a_backlog_of_lower_priority(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    backlog = await store.jobs.submit_many(
        [tasks.halve.using(priority=5).call(n) for n in range(300)]
    )
    async with store.flow("urgent") as flow:
        parent = flow.add(next_number.call(1))
        child = flow.add(next_number.call(parent))
    async with store.worker([tasks.halve, next_number]) as worker:
        for _ in range(2):
            assert await worker.process_one()
    assert await flow.job(child).result(timeout=PATIENCE) == 3
    assert {job.state for job in await store.jobs.list(task=tasks.halve.name, limit=300)} == {
        "waiting"
    }
    assert len(backlog) == 300


# Parts of a flow


async def test_a_flow_has_the_jobs_that_were_added(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    call = next_number.call(1)
    ids: list[int] = []
    for name in "one", "another":
        async with store.flow(name) as flow:
            top = flow.add(call)
            flow.add(tasks.double.call(top), name="left")
            flow.add(tasks.double.call(top), name="right")
        info = await store.flows.get(flow.id)
        assert (info.summary.name, info.summary.state) == (name, "running")
        assert [job.name for job in info.jobs] == ["next", "left", "right"]
        assert sorted((edge.parent, edge.child) for edge in info.edges) == [
            (info.jobs[0].id, info.jobs[1].id),
            (info.jobs[0].id, info.jobs[2].id),
        ]
        ids += [job.id for job in info.jobs]
    assert len(set(ids)) == 6  # a call may be in two flows, as two jobs


async def test_a_flow_without_jobs_has_ended(store: tocsin.Store) -> None:
    async with store.flow("empty") as flow:
        pass
    info = await store.flows.get(flow.id)
    assert (info.summary.state, info.jobs, info.edges) == ("succeeded", (), ())
    await store.maintain()
    with pytest.raises(tocsin.FlowNotFound):
        await store.flows.get(flow.id)


async def test_a_name_stands_for_one_job_of_a_flow(store: tocsin.Store) -> None:
    with pytest.raises(tocsin.FlowInvalid, match="two jobs of flow 'twins' have the name 'a'"):
        async with store.flow("twins") as flow:
            flow.add(next_number.call(1), name="a")
            flow.add(next_number.call(2), name="a")
    assert await store.flows.list() == []


@pytest.mark.parametrize(
    "added",
    [next_number, next_number.function, "next", None],
    ids=["task", "function", "text", "None"],
)
async def test_what_is_no_call_is_no_job(store: tocsin.Store, added: Any) -> None:
    """In a flow, alone, among many and in a schedule."""
    said = "a job is a call of a task, as Task.call returns it"
    with pytest.raises(TypeError, match=said):
        async with store.flow("wrong") as flow:
            flow.add(added)
    with pytest.raises(TypeError, match=said):
        await store.jobs.submit(added)
    with pytest.raises(TypeError, match=said):
        await store.jobs.submit_many([next_number.call(1), added])
    if not isinstance(added, str):  # which names a task
        with pytest.raises(TypeError, match=said):
            await store.schedules.set("s", added, every=60)
    assert await store.flows.list() == []
    assert await store.jobs.list() == []
