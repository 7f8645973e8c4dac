"""Cancelling jobs that wait and jobs that run."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, query, until, until_true
from tests.support.jobs import working
from tocsin._queue.consuming import prefetch

from . import tasks

RUNNING = "exists (select from tocsin.messages where state = 'leased')"


@tocsin.task(runs="process", timeout=None)
def announce_and_loop(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while True:
        pass


async def outcome_of(job: tocsin.Job[Any]) -> str:
    """Wait until the job is cancelled, and return the reason."""
    with pytest.raises(tocsin.JobCancelled) as raised:
        await job.result(timeout=PATIENCE)
    return raised.value.reason


async def test_a_job_that_waits_is_cancelled_at_once(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    job = await tasks.double.using(key="k").submit(store, 1)
    await job.cancel("not needed")
    assert await outcome_of(job) == "not needed"
    with pytest.raises(tocsin.MessageNotWaiting):
        await job.cancel()
    again = await tasks.double.using(key="k").submit(store, 1)
    assert again.id != job.id
    await store.jobs.cancel(again.id)
    assert await outcome_of(again) == "cancelled"
    with pytest.raises(tocsin.JobNotFound):
        await store.jobs.cancel(10**9)


async def test_a_job_that_runs_ends_and_keeps_its_key_until_then(store: tocsin.Store) -> None:
    """Its process is told; the lease, whose extension would tell it, is long."""
    await store.queues.ensure("default", vt=3600)
    began = trio.Event()
    ended = trio.Event()
    cleaned_up = trio.Event()

    @tocsin.task(name="cleaning", timeout=None)
    async def run_until_cancelled() -> None:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                ended.set()
                await cleaned_up.wait()

    async with working(store, run_until_cancelled):
        job = await run_until_cancelled.using(key="k").submit(store)
        try:
            with trio.fail_after(PATIENCE):
                await began.wait()
            await job.cancel("the order was withdrawn")
            with trio.fail_after(PATIENCE):
                await ended.wait()
            await job.cancel("again")
            assert (await job.info()).state == "running"
            same = await run_until_cancelled.using(key="k").submit(store)
            assert same.id == job.id
        finally:
            cleaned_up.set()
        assert await outcome_of(job) == "the order was withdrawn"
        assert (await job.info()).attempts == 1
        another = await run_until_cancelled.using(key="k", delay=3600).submit(store)
        assert another.id != job.id


@pytest.mark.parametrize("ending", ["return", "error", "retry"])
async def test_an_attempt_that_ends_after_the_mark_ends_as_cancelled(
    store: tocsin.Store, ending: str
) -> None:
    """However it ends, and no attempt follows."""
    attempts = 0
    began = trio.Event()

    @tocsin.task(name="stubborn", retry=0)
    async def ignore_cancellation() -> str:
        nonlocal attempts
        attempts += 1
        began.set()
        with suppress(trio.Cancelled):
            await trio.sleep_forever()
        if ending == "error":
            raise OSError("on the way out")
        if ending == "retry":
            raise tocsin.Retry(0)
        return "done after all"

    async with working(store, ignore_cancellation):
        job = await ignore_cancellation.submit(store)
        with trio.fail_after(PATIENCE):
            await began.wait()
        await job.cancel("enough")
        assert await outcome_of(job) == "enough"
    assert attempts == 1
    assert (await job.info()).result is None
    assert await store.dead_letters.list("default") == []


async def test_a_function_in_a_thread_is_told_and_left_alone(store: tocsin.Store) -> None:
    began = trio.Event()
    go_on = threading.Event()
    told: list[str] = []

    @tocsin.task(name="in a thread", timeout=None)
    def run() -> str:
        trio.from_thread.run_sync(began.set)
        go_on.wait(PATIENCE)
        try:
            tocsin.current_job().check_cancelled()
        except trio.Cancelled:
            told.append("cancelled")
            raise
        return "done"

    try:
        async with working(store, run, concurrency=1):
            job = await run.submit(store)
            with trio.fail_after(PATIENCE):
                await began.wait()
            await job.cancel("stop")
            assert await outcome_of(job) == "stop"  # while the thread still runs
            go_on.set()
            # its slot is free
            assert await (await run.submit(store)).result(timeout=PATIENCE) == "done"
            await until(lambda: told)
    finally:
        go_on.set()
    assert told == ["cancelled"]


@pytest.mark.slow
async def test_a_function_in_a_process_is_ended(store: tocsin.Store, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    async with working(store, announce_and_loop):
        job = await announce_and_loop.submit(store, str(path))
        await until(lambda: path.exists() and path.read_text())
        await job.cancel("stop")
        assert await outcome_of(job) == "stop"
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


async def test_the_mark_outlives_a_dead_holder(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default", vt=3600)
    job = await tasks.double.submit(store, 1)
    await query(
        store_dsn,
        "update tocsin.messages set state = 'leased', lease = 7, read_ct = 1,"
        " consumer_worker_id = 10, vt = now() + interval '1 hour'",
    )
    await job.cancel("its worker is gone")
    assert (await job.info()).state == "running"
    await query(store_dsn, "update tocsin.messages set vt = now() - interval '1 second'")
    async with working(store, tasks.double):
        assert await outcome_of(job) == "its worker is gone"
    assert (await job.info()).attempts == 1


async def test_a_job_whose_lease_has_expired_is_cancelled_at_once(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    job = await tasks.double.submit(store, 1)
    await query(
        store_dsn,
        "update tocsin.messages set state = 'leased', lease = 7, read_ct = 1,"
        " vt = now() - interval '1 second'",
    )
    await job.cancel("late")
    assert await outcome_of(job) == "late"


async def test_the_first_of_two_statements_wins(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    for first in "cancel", "archive":
        job = await tasks.double.submit(store, 1)
        await query(
            store_dsn,
            "update tocsin.messages set state = 'leased', lease = 7, read_ct = 1,"
            " vt = now() + interval '1 hour'",
        )
        settle = "select tocsin.archive(array[%s], '{7}', '[2]')"
        if first == "archive":
            await query(store_dsn, settle, job.id)
            with pytest.raises(tocsin.MessageNotWaiting):
                await job.cancel()
            assert await job.result(timeout=PATIENCE) == 2
        else:
            await job.cancel("first")
            await query(store_dsn, settle, job.id)
            assert await outcome_of(job) == "first"


async def test_a_process_that_missed_the_notification_reads_the_mark(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with working(store, tasks.wait_forever):
        await store.queues.update("default", vt=0.2)
        job = await tasks.wait_forever.submit(store)
        await until_true(store_dsn, RUNNING)
        await query(store_dsn, "update tocsin.messages set cancel_reason = 'unheard'")
        assert await outcome_of(job) == "unheard"


async def test_a_prefetched_job_does_not_begin(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has claimed it while earlier jobs took little time."""
    monkeypatch.setattr(prefetch, "PATIENCE", 3600)
    last, go_on = trio.Event(), trio.Event()
    began: list[int] = []

    @tocsin.task(name="note", timeout=None)
    async def note(number: int) -> None:
        began.append(tocsin.current_job().id)
        await trio.lowlevel.checkpoint()
        if number == 200:
            last.set()
            await go_on.wait()

    await store.queues.ensure("default")
    jobs = await note.submit_many(store, [note.call(n) for n in range(221)])
    async with working(store, note) as worker:
        with trio.fail_after(PATIENCE):
            await last.wait()
        leased = await query(
            store_dsn, "select id from tocsin.messages where state = 'leased' order by id"
        )
        prefetched = [job for job in jobs if (job.id,) in leased and job.id not in began]
        job = prefetched[0]
        leases = worker.consumers[0]._parts.leases
        (message,) = [held.message for held in leases.all() if held.message.id == job.id]
        await job.cancel("not needed")
        assert (await job.info()).state == "running"
        await until(lambda: leases.is_cancelled(message))
        go_on.set()
        assert await outcome_of(job) == "not needed"
        for other in jobs:
            if other.id != job.id:
                await other.result(timeout=PATIENCE)
    assert len(began) == 220
    assert job.id not in began


async def test_a_plain_message_that_is_leased_is_not_cancelled(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    await store.produce("default", 1)
    async with store.consumer("default") as consumer:
        (message,) = await consumer.dequeue()
        with pytest.raises(tocsin.MessageNotWaiting):
            await store.messages.cancel(message.id)
