"""The attempts of a job: when each begins, what ends it, and what it leaves behind."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, move_clock, query, until_query
from tests.support.child import run_script
from tests.support.jobs import working
from tocsin._queue.consuming import step_watch

from . import tasks

RUNNING = "select count(*) from tocsin.messages where state = 'leased'"


async def run_due(store: tocsin.Store, *of: tocsin.Task[..., Any]) -> int:
    """Run the jobs that are due, and return how many attempts have ended."""
    async with store.worker(of) as worker:
        with trio.fail_after(PATIENCE):
            count = 0
            while await worker.process_one():
                count += 1
    return count


@pytest.mark.slow
async def test_no_attempt_begins_before_its_time(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    job = await tasks.fail_slowly.submit(store)
    assert await run_due(store, tasks.fail_slowly) == 1
    due = (await store.messages.get(job.id)).due
    assert await run_due(store, tasks.fail_slowly) == 0
    assert ((await job.info()).attempts, (await store.messages.get(job.id)).due) == (1, due)
    await move_clock(store_dsn, 3700)
    assert await run_due(store, tasks.fail_slowly) == 1
    assert (await job.info()).state == "failed"


async def test_a_replayed_job_is_due_at_once_and_has_all_attempts(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    job = await tasks.fail_slowly.using(delay=60).submit(store)
    for seconds in 100, 4000:
        await move_clock(store_dsn, seconds)
        assert await run_due(store, tasks.fail_slowly) == 1
    assert (await job.info()).state == "failed"
    await store.dead_letters.replay(job.id)
    assert ((await job.info()).state, (await job.info()).attempts) == ("waiting", 0)
    assert await run_due(store, tasks.fail_slowly) == 1
    assert ((await job.info()).state, (await job.info()).attempts) == ("waiting", 1)


@pytest.mark.parametrize("concurrency", [1, 16])
async def test_each_of_many_jobs_has_its_own_attempts(
    store: tocsin.Store, concurrency: int
) -> None:
    ran = Counter[int]()

    @tocsin.task(name="fails_once", retry=0)
    async def fail_once(number: int) -> int:
        ran[number] += 1
        await trio.lowlevel.checkpoint()
        if tocsin.current_job().attempt == 1:
            raise OSError("lost")
        return number

    async with working(store, fail_once, concurrency=concurrency):
        jobs = [await fail_once.submit(store, n) for n in range(6)]
        assert [await job.result(timeout=PATIENCE) for job in jobs] == list(range(6))
    assert [(await job.info()).attempts for job in jobs] == [2] * 6
    assert ran == Counter(dict.fromkeys(range(6), 2))


async def test_an_async_function_is_cancelled_at_its_deadline(store: tocsin.Store) -> None:
    ended = trio.Event()

    @tocsin.task(name="hangs", timeout=0.05, max_attempts=1)
    async def hang() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            ended.set()
            raise

    async with working(store, hang):
        job = await hang.submit(store)
        with pytest.raises(tocsin.JobTimedOut):
            await job.result(timeout=PATIENCE)
        assert ended.is_set()


async def test_a_shorter_timeout_ends_before_a_longer_one(store: tocsin.Store) -> None:
    began = trio.Event()

    @tocsin.task(name="waits", max_attempts=1, timeout=3600)
    async def wait() -> None:
        began.set()
        await trio.sleep_forever()

    async with working(store, wait, concurrency=2):
        long = await wait.submit(store)
        await began.wait()
        short = await wait.using(timeout=0.01).submit(store)
        with pytest.raises(tocsin.JobTimedOut, match=r"longer than 0\.01 s"):
            await short.result(timeout=PATIENCE)
        assert (await long.info()).state == "running"
        await long.cancel()


async def test_what_a_late_function_raises_is_the_cause(store: tocsin.Store) -> None:
    @tocsin.task(name="late", timeout=0.01, max_attempts=1)
    async def be_late() -> None:
        async def clean_up() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("the disk is full")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean_up)
            await trio.sleep_forever()

    async with working(store, be_late):
        job = await be_late.submit(store)
        with pytest.raises(tocsin.JobTimedOut) as raised:
            await job.result(timeout=PATIENCE)
    assert "OSError: the disk is full" in raised.value.traceback


async def test_a_function_that_returns_too_late_has_succeeded(store: tocsin.Store) -> None:
    @tocsin.task(name="returns", timeout=0.01, max_attempts=1)
    async def return_late() -> str:
        with suppress(trio.Cancelled):
            await trio.sleep_forever()
        return "late"

    async with working(store, return_late, tasks.double):
        assert await (await return_late.submit(store)).result(timeout=PATIENCE) == "late"
        assert await (await tasks.double.submit(store, 1)).result(timeout=PATIENCE) == 2


async def test_an_interrupt_of_its_own_fails_the_attempt_alone(store: tocsin.Store) -> None:
    @tocsin.task(name="interrupts", max_attempts=2, retry=0)
    async def interrupt(*, in_nursery: bool) -> None:
        async def press() -> None:
            raise KeyboardInterrupt("pressed")

        if not in_nursery:
            await press()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(press)

    async with working(store, interrupt, tasks.double):
        for in_nursery in (False, True):
            job = await interrupt.submit(store, in_nursery=in_nursery)
            with pytest.raises(tocsin.JobFailed, match="KeyboardInterrupt: pressed") as raised:
                await job.result(timeout=PATIENCE)
            assert raised.value.attempts == 2
        assert await (await tasks.double.submit(store, 1)).result(timeout=PATIENCE) == 2


async def test_a_function_that_blocks_the_event_loop_is_named(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_watch, "LONG_STEP", 0.0)
    async with working(store, tasks.double):
        await (await tasks.double.submit(store, 1)).result(timeout=PATIENCE)
    assert f"handler {tasks.double.name} blocked the event loop" in caplog.text


async def test_the_time_of_an_attempt_ends_with_it(store: tocsin.Store) -> None:
    """The next job, which has any time, runs on in the same task of the worker."""
    deadlines: list[float] = []

    @tocsin.task(name="note", timeout=None, max_attempts=1)
    async def note(number: int) -> str:
        deadlines.append(tocsin.current_job().deadline)
        await trio.lowlevel.checkpoint()
        if number < 200:
            return "quick"
        assert deadlines.pop() == math.inf
        while trio.current_time() < max(deadlines) + 0.05:
            await trio.lowlevel.checkpoint()
        return "slow"

    await store.queues.ensure("default")
    calls = [note.using(timeout=0.3).call(n) for n in range(200)]
    jobs = await note.submit_many(store, [*calls, note.call(200)])
    async with working(store, note):
        assert await jobs[-1].result(timeout=PATIENCE) == "slow"


async def test_defaults_of_the_function_count_when_the_job_runs(store: tocsin.Store) -> None:
    @tocsin.task(name="greets")
    def greet(name: str, greeting: str = "Hello") -> str:
        return f"{greeting}, {name}!"

    async with working(store, greet):
        for job, said in (
            (await greet.submit(store, "Ada"), "Hello, Ada!"),
            (await greet.submit(store, "Ada", greeting="Goodbye"), "Goodbye, Ada!"),
        ):
            assert await job.result(timeout=PATIENCE) == said


async def test_a_purged_job_leaves_no_attempt_behind(store: tocsin.Store, store_dsn: str) -> None:
    async with working(store, tasks.leave):
        job = await tasks.leave.submit(store, 1)
        with pytest.raises(tocsin.JobFailed):
            await job.result(timeout=PATIENCE)
    assert [d.outcome for d in (await store.dead_letters.get(job.id)).history]
    await store.dead_letters.purge(job.id)
    with pytest.raises(tocsin.JobNotFound):
        await job.info()
    holders = await query(
        store_dsn,
        "select c.table_name, c.column_name from information_schema.columns c"
        " join information_schema.tables t using (table_schema, table_name)"
        " where c.table_schema = 'tocsin' and t.table_type = 'BASE TABLE'"
        " and (c.column_name in ('message_id', 'job_id') or (c.column_name = 'id'"
        " and c.table_name in ('messages', 'archive')))",
    )
    assert ("messages", "id") in holders
    for table, column in holders:
        left = await query(store_dsn, f"select 1 from tocsin.{table} where {column} = {job.id}")
        assert left == [], table


# What is kept of attempts


async def test_each_attempt_has_an_entry_with_its_outcome(store: tocsin.Store) -> None:
    async with working(store, tasks.fail_until, tasks.hang, name="w") as worker:
        (consumer,) = worker.consumers
        job = await tasks.fail_until.submit(store, 2)
        assert await job.result(timeout=PATIENCE) == 2
        first, second = await job.attempts()
        assert (first.number, first.worker_id, first.worker, first.outcome, first.error) == (
            1,
            consumer.worker_id,
            "w",
            "handler_failed",
            "OSError: attempt 1",
        )
        assert (second.number, second.outcome, second.error) == (2, "succeeded", None)
        assert first.ended_at is not None
        assert second.ended_at is not None
        assert first.began_at <= first.ended_at <= second.began_at <= second.ended_at
        late = await tasks.hang.submit(store)
        with pytest.raises(tocsin.JobTimedOut):
            await late.result(timeout=PATIENCE)
        assert [a.outcome for a in await store.jobs.attempts(late.id)] == ["timed_out"] * 2


async def test_an_attempt_that_runs_has_no_end_and_a_cancelled_one_has(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    job = await tasks.wait_forever.submit(store)
    for number in 1, 2:
        async with working(store, tasks.wait_forever):
            await until_query(store_dsn, RUNNING, gives=[(1,)])
            *before, running = await job.attempts()
            await job.cancel("enough")
            with pytest.raises(tocsin.JobCancelled):
                await job.result(timeout=PATIENCE)
        assert (running.number, running.ended_at, running.outcome) == (1, None, None)
        assert len(before) == number - 1
        cancelled = (await job.attempts())[-1]
        assert (cancelled.outcome, cancelled.began_at) == ("cancelled", running.began_at)
        await job.requeue()


async def test_a_job_that_was_never_run_has_no_attempts(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    job = await tasks.double.submit(store, 1)
    assert await job.attempts() == []
    await job.cancel()
    assert await job.attempts() == []
    message = await store.produce("default", "a plain message")
    for unknown in (message, 10**9):
        with pytest.raises(tocsin.JobNotFound):
            await store.jobs.attempts(unknown)


async def test_a_cancelled_job_is_kept_no_longer_than_any_other(store: tocsin.Store) -> None:
    await store.queues.ensure("default", retention=0)
    job = await tasks.double.submit(store, 1)
    await job.cancel()
    with pytest.raises(tocsin.JobNotFound):
        await job.info()


@pytest.mark.slow
async def test_the_job_of_a_killed_worker_runs_again_without_a_timeout(store_dsn: str) -> None:
    @tocsin.task(name="stay")
    async def stay() -> str:
        await trio.lowlevel.checkpoint()
        return f"attempt {tocsin.current_job().attempt}"

    async with tocsin.connect(store_dsn, heartbeat=0.1) as store:
        await store.queues.ensure("default", vt=43200)
        job = await stay.using(timeout=43000).submit(store)
        async with run_script("stay_in_job.py", store_dsn) as child:
            assert await child.line() == "began 1"
            child.process.kill()
            async with working(store, stay):
                assert await job.result(timeout=PATIENCE) == "attempt 2"
