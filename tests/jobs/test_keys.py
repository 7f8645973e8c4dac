"""Keys of jobs: at most one unfinished job has a key, whatever happens at once."""

from __future__ import annotations

import pytest
import trio

import tocsin
from tests.support import PATIENCE, open_connection, query, until_blocked
from tests.support.jobs import working

from . import tasks


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_key_waits_for_the_open_transaction_that_has_it(
    store: tocsin.Store, store_dsn: str, end: str
) -> None:
    """Two transactions submit the same key; the second one does not race past the
    first one."""
    await store.queues.ensure("default")
    keyed = tasks.double.using(key="k")
    second: list[int] = []

    async def submit_too() -> None:
        async with open_connection(store_dsn) as connection:
            await connection.execute("begin")
            second.append((await keyed.submit(connection, 2)).id)
            await connection.execute("commit")

    async with open_connection(store_dsn) as connection:
        await connection.execute("begin")
        first = await keyed.submit(connection, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit_too)
            await until_blocked(store_dsn, "enqueue")
            assert second == []
            await connection.execute(end.encode())
    assert (second == [first.id]) == (end == "commit")
    found = await query(store_dsn, "select id, payload ->> 'number' from tocsin.messages")
    assert found == [(second[0], "1" if end == "commit" else "2")]


async def test_many_tasks_submit_a_key_at_once(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    ids: list[int] = []

    async def submit(number: int) -> None:
        async with open_connection(store_dsn) as connection:
            ids.append((await tasks.double.using(key="k").submit(connection, number)).id)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(submit, number)
    assert ids == [ids[0]] * 8


async def test_a_job_keeps_its_key_from_attempt_to_attempt(store: tocsin.Store) -> None:
    """The attempt that follows does not collide with the key of its own job."""
    await store.queues.ensure("default")
    keyed = tasks.fail_until.using(key="k")
    job = await keyed.submit(store, 3)
    async with store.worker([tasks.fail_until]) as worker:
        for attempt in 1, 2:
            assert await worker.process_one()
            assert ((await job.info()).state, (await job.info()).attempts) == ("waiting", attempt)
            assert (await keyed.submit(store, 3)).id == job.id
        assert await worker.process_one()
    assert await job.result(timeout=PATIENCE) == 3
    assert (await keyed.submit(store, 3)).id != job.id


async def test_a_job_takes_its_key_again_when_it_is_requeued(store: tocsin.Store) -> None:
    keyed = tasks.double.using(key="k")
    async with working(store, tasks.double):
        job = await keyed.submit(store, 1)
        assert await job.result(timeout=PATIENCE) == 2
        await job.requeue()
        assert await job.result(timeout=PATIENCE) == 2
    await job.requeue()
    assert (await keyed.submit(store, 5)).id == job.id
