"""Workers next to each other, and the end of a worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio

import tocsin
from tests.support import PATIENCE, until_idle, until_true
from tests.support.jobs import working

from . import tasks


@contextmanager
def set_at_end(event: threading.Event) -> Iterator[None]:
    """Let a thread go on at the end of the block, also after a failed assertion."""
    try:
        yield
    finally:
        event.set()


async def run_to_the_end(
    worker: tocsin.JobWorker,
    ends: list[tocsin.Suspended],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    try:
        await worker.run(task_status=task_status)
    except tocsin.Suspended as end:
        ends.append(end)


async def test_a_job_that_takes_longer_than_its_lease_runs_once(store_dsn: str) -> None:
    """Its worker extends the lease, so an idle worker never gets the job."""
    began, go_on = trio.Event(), trio.Event()
    attempts: list[int] = []

    @tocsin.task(name="long")
    async def run_long() -> None:
        attempts.append(tocsin.current_job().attempt)
        began.set()
        await go_on.wait()

    async with (
        tocsin.connect(store_dsn, heartbeat=0.1) as one,
        tocsin.connect(store_dsn, heartbeat=0.1) as another,
    ):
        await one.queues.ensure("default", vt=0.2)
        async with working(one, run_long), working(another, run_long):
            job = await run_long.submit(one)
            with trio.fail_after(PATIENCE):
                await began.wait()
            await until_true(store_dsn, "vt - dequeued_at > '0.5 s' from tocsin.messages")
            go_on.set()
            await job.result(timeout=PATIENCE)
    assert attempts == [1]


async def test_an_idle_worker_ends_at_once(store_dsn: str) -> None:
    """Not with the next heartbeat, which comes in an hour."""
    ends: list[tocsin.Suspended] = []
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("default")
        async with store.worker([tasks.double]) as worker, trio.open_nursery() as nursery:
            await nursery.start(partial(run_to_the_end, worker, ends))
            await until_idle(store)
            await worker.interrupt()
            nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
    assert [(end.reason, end.handled) for end in ends] == [("interrupted", 0)]


async def test_a_function_that_asks_for_nothing_does_not_keep_its_worker(
    store: tocsin.Store,
) -> None:
    """A thread cannot be ended, so the worker leaves it behind after the grace."""
    began, go_on = trio.Event(), threading.Event()
    ends: list[tocsin.Suspended] = []

    @tocsin.task(name="deaf", timeout=None)
    def hang() -> None:
        trio.from_thread.run_sync(began.set)
        go_on.wait(10 * PATIENCE)

    await store.queues.ensure("default")
    job = await hang.submit(store)
    with set_at_end(go_on):
        async with store.worker([hang]) as worker, trio.open_nursery() as nursery:
            nursery.start_soon(run_to_the_end, worker, ends)
            with trio.fail_after(PATIENCE):
                await began.wait()
            await worker.interrupt(grace=0)
            nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
        assert [(end.reason, end.released) for end in ends] == [("interrupted", 1)]
        assert ((await job.info()).state, (await job.info()).attempts) == ("waiting", 0)
