"""Editing jobs that wait: priority, arguments and the keys of limits."""

from __future__ import annotations

from typing import Any

import pytest

import tocsin
from tests.jobs import tasks
from tests.support import PATIENCE, query
from tests.support.jobs import working

STATES = "select state::text, payload, priority from tocsin.messages order by id"


async def test_a_job_that_waits_is_edited(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    job = await tasks.double.using(delay=3600).submit(store, 1)
    await job.edit(priority=-3)
    assert await query(store_dsn, STATES) == [("delayed", {"number": 1}, -3)]
    await store.jobs.edit(job.id, arguments={"number": 4})
    assert await query(store_dsn, STATES) == [("delayed", {"number": 4}, -3)]
    await job.edit(priority=7, arguments={"number": 21})
    assert await query(store_dsn, STATES) == [("delayed", {"number": 21}, 7)]
    await job.reschedule(delay=0)
    async with working(store, tasks.double):
        assert await job.result(timeout=PATIENCE) == 42
    for edit in (job.edit(priority=1), store.jobs.edit(job.id, arguments={})):
        with pytest.raises(tocsin.MessageNotWaiting):
            await edit
    with pytest.raises(tocsin.JobNotFound):
        await store.jobs.edit(10**9, priority=1)


async def test_a_wrong_edit_changes_nothing(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default", max_payload=1000)
    job = await tasks.double.submit(store, 1)
    with pytest.raises(tocsin.ArgumentsInvalid, match="number"):
        await job.edit(arguments={"number": "5"})
    with pytest.raises(tocsin.ArgumentsInvalid):
        await job.edit(arguments={"numbers": 5})
    with pytest.raises(tocsin.PayloadTooLarge):
        await store.jobs.edit(job.id, arguments={"number": "5" * 1000})
    with pytest.raises(ValueError, match=r'a job of task "tests\.jobs\.tasks\.double"'):
        await tasks.halve.job(store, job.id).edit(arguments={"number": 2.0})
    with pytest.raises(ValueError, match="priority= or arguments="):
        await job.edit()
    with pytest.raises(ValueError, match="32 bits"):
        await job.edit(priority=2**31)
    async with store.producer("default") as producer:
        plain = await producer.enqueue({})
    with pytest.raises(ValueError, match="no job"):
        await store.jobs.edit(plain, priority=1)
    assert (await query(store_dsn, STATES))[0] == ("ready", {"number": 1}, 0)


async def test_an_edited_job_waits_for_the_slot_of_its_new_key(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A job whose slot a scan has granted already gives it back."""
    slots = """select m.id, m.state::text, s.key, s.slot from tocsin.slots s
               join tocsin.messages m on m.id = s.message_id where s.key <> '' order by m.id"""
    await store.queues.ensure("default")
    first, granted, waits = [
        await tasks.fetch.submit(store, host) for host in ("a.example", "b.example", "b.example")
    ]
    async with store.consumer("default") as consumer:
        (message,) = await consumer.dequeue()
        assert message.id == first.id
        assert await query(store_dsn, slots) == [
            (first.id, "leased", "a.example", 1),
            (granted.id, "ready", "b.example", 1),
            (waits.id, "held", "b.example", None),
        ]
        await granted.edit(arguments={"host": "a.example"})
        assert [m.id for m in await consumer.dequeue(10)] == [waits.id]
        assert await query(store_dsn, slots) == [
            (first.id, "leased", "a.example", 1),
            (granted.id, "held", "a.example", None),
            (waits.id, "leased", "b.example", 1),
        ]
        await message.archive()
        assert [m.id for m in await consumer.dequeue(10)] == [granted.id]


async def test_sql_edits_the_arguments_of_a_registered_task_with_limits(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    job = await tasks.fetch.using(delay=60).submit(store, "a.example")
    with pytest.raises(tocsin.TaskUnknown):
        await store.jobs.edit(job.id, arguments={"host": "b.example"})
    async with store.worker([tasks.fetch]):
        pass
    await store.jobs.edit(job.id, arguments={"host": "b.example"})
    assert await query(store_dsn, "select options #>> '{limits,1,key}' from tocsin.messages") == [
        ("b.example",)
    ]
    await job.reschedule(delay=0)
    async with working(store, tasks.fetch):
        assert await job.result(timeout=PATIENCE) == 1


async def test_the_arguments_of_a_job_are_edited_when_it_waits_for_no_parent(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("default")
    async with store.flow("edited") as flow:
        parent: Any = flow.add(tasks.double.call(1))
        child = flow.add(tasks.double.call(parent))
        after = flow.add(tasks.halve.call(1.0), after=[parent])
    with pytest.raises(ValueError, match="result of a job before it"):
        await flow.job(child).edit(arguments={"number": 5})
    await flow.job(child).edit(priority=1)
    await flow.job(after).edit(arguments={"number": 5.0})
    await flow.job(parent).edit(arguments={"number": 4})
    async with working(store, tasks.double, tasks.halve):
        assert await flow.job(child).result(timeout=PATIENCE) == 16
        assert await flow.job(after).result(timeout=PATIENCE) == 2.5
