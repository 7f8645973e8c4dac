"""A worker of several queues: its slots by weight, `process_one` and `once`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, until
from tests.support.jobs import working

from . import tasks


async def test_process_one_runs_one_job_and_says_whether_there_was_one(
    store: tocsin.Store,
) -> None:
    for queue in "default", "other":
        await store.queues.ensure(queue)
    jobs = [await tasks.double.submit(store, 42), await tasks.elsewhere.submit(store, 1)]
    await tasks.halve.submit(store, 1)  # a task that this worker does not know
    async with store.worker([tasks.double, tasks.elsewhere]) as worker:
        with trio.fail_after(PATIENCE):
            assert await worker.process_one()
            assert [(await job.info()).finished for job in jobs].count(True) == 1
            assert [await worker.process_one() for _ in range(3)] == [True, False, False]
        assert [await job.result() for job in jobs] == [84, -1]


async def test_process_one_ends_with_the_attempt(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    job = await tasks.fail_until.submit(store, 2)
    async with store.worker([tasks.fail_until]) as worker:
        with trio.fail_after(PATIENCE):
            assert await worker.process_one()
            info = await job.info()
            assert (info.state, info.attempts, info.error) == ("waiting", 1, "OSError: attempt 1")
            assert await worker.process_one()
            assert not await worker.process_one()
    assert (await job.info()).attempts == 2


async def test_process_one_of_an_interrupted_worker_ends(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    async with store.worker([tasks.double]) as worker:
        await worker.interrupt()
        with pytest.raises(tocsin.Suspended, match="interrupted"):
            await worker.process_one()


async def test_process_one_takes_the_queues_in_turns(store: tocsin.Store) -> None:
    order: list[str] = []
    here, there = [_noting(queue, order) for queue in ("here", "there")]
    for task in here, there:
        await store.queues.ensure(task.options.queue)
        for _ in range(6):
            await task.submit(store)
    async with store.worker([here, there], queues={"here": 2, "there": 1}) as worker:
        for _ in range(6):
            assert await worker.process_one()
    assert sorted(order) == ["here"] * 4 + ["there"] * 2


async def test_once_goes_on_for_jobs_that_a_job_of_another_queue_submits(
    store: tocsin.Store,
) -> None:
    ran: list[int] = []

    @tocsin.task(name="ping", queue="here")
    async def ping(number: int) -> None:
        ran.append(number)
        if number:
            await pong.submit(store, number - 1)

    @tocsin.task(name="pong", queue="there")
    async def pong(number: int) -> None:
        ran.append(number)
        if number:
            await ping.submit(store, number - 1)

    for queue in "here", "there":
        await store.queues.ensure(queue)
    await pong.submit(store, 7)
    async with store.worker([ping, pong]) as worker:
        with trio.fail_after(PATIENCE), pytest.raises(tocsin.Suspended) as end:
            await worker.run(once=True)
    assert ran == [7, 6, 5, 4, 3, 2, 1, 0]
    assert end.value.handled == 8


async def test_once_serves_a_job_that_another_job_waits_for(store: tocsin.Store) -> None:
    @tocsin.task(name="asks", queue="here")
    async def ask() -> int:
        return await (await tasks.elsewhere.submit(store, 5)).result(timeout=PATIENCE)

    for queue in "here", "other":
        await store.queues.ensure(queue)
    job = await ask.submit(store)
    async with store.worker([ask, tasks.elsewhere], concurrency=2) as worker:
        with pytest.raises(tocsin.Suspended):
            await worker.run(once=True)
    assert await job.result() == -5


async def test_free_slots_go_to_queues_by_their_weights(store: tocsin.Store) -> None:
    order: list[str] = []
    gates: dict[int, trio.Event] = {}
    ids: set[int] = set()
    queues = {"here": 3, "there": 1}
    here, there = [_noting(queue, order, gates, ids) for queue in queues]
    for task in here, there:
        await store.queues.ensure(task.options.queue)

    def begun(count: int) -> bool:
        return len(order) == count

    jobs = [await task.submit(store) for _ in range(45) for task in (here, there)]
    async with working(store, here, there, queues=queues, concurrency=2):
        for number in range(40):
            await until(partial(begun, number + 2))
            held = {m.id for q in queues for m in await store.messages.list(q, state="leased")}
            assert held <= ids  # no job waits for a slot while its lease runs
            gates.pop(next(iter(gates))).set()
        first = order[:40]
        assert 28 <= first.count("here") <= 32
        for job in jobs:
            while not (await job.info()).finished:
                for key in list(gates):
                    gates.pop(key).set()


async def test_a_queue_alone_has_all_slots(store: tocsin.Store) -> None:
    inside = 0
    full = trio.Event()

    @tocsin.task(name="stays", queue="there")
    async def stay() -> None:
        nonlocal inside
        inside += 1
        if inside == 4:
            full.set()
        await full.wait()

    queues = {"default": 9, "there": 1}
    async with working(store, stay, tasks.double, queues=queues, concurrency=4):
        jobs = [await stay.submit(store) for _ in range(4)]
        for job in jobs:
            await job.result(timeout=PATIENCE)


async def test_a_suspended_queue_leaves_its_slots_to_other_queues(store: tocsin.Store) -> None:
    queues = {"default": 9, "other": 1}
    async with working(store, tasks.double, tasks.elsewhere, queues=queues) as worker:
        (consumer,) = [c for c in worker.consumers if c.queue == "default"]
        await consumer.suspend()
        waiting = [await tasks.double.submit(store, n) for n in range(3)]
        for number in range(3):
            job = await tasks.elsewhere.submit(store, number)
            assert await job.result(timeout=PATIENCE) == -number
        await consumer.resume()
        assert [await job.result(timeout=PATIENCE) for job in waiting] == [0, 2, 4]


@pytest.mark.parametrize(
    ("queues", "said"),
    [({}, "at least one queue"), ({"default": 0}, "weight of queue 'default' must be at least 1")],
)
async def test_weights_are_checked(store: tocsin.Store, queues: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        async with store.worker([tasks.double], queues=queues):
            pass


def _noting(
    queue: str,
    order: list[str],
    gates: dict[int, trio.Event] | None = None,
    ids: set[int] | None = None,
) -> tocsin.Task[[], None]:
    """A task of this queue that notes its begin, and perhaps waits at a gate."""

    @tocsin.task(name=queue, queue=queue)
    async def note() -> None:
        job = tocsin.current_job()
        order.append(queue)
        if ids is not None:
            ids.add(job.id)
        if gates is not None:
            gate = gates[job.id] = trio.Event()
            await gate.wait()
        await trio.lowlevel.checkpoint()

    return note
