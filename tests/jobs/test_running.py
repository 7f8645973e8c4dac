"""A worker runs jobs: each attempt, what it comes to, and when the next one is."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, move_clock, query, until, until_idle
from tests.support.jobs import working

from . import tasks
from .tasks import Order


async def finished(job: tocsin.Job[Any]) -> tocsin.JobInfo:
    """How the job stands when it has come to its end."""
    with suppress(tocsin.JobError):
        await job.result(timeout=PATIENCE)
    return await job.info()


# What a function returns


async def test_a_job_returns_what_its_function_returns(store: tocsin.Store) -> None:
    async with working(store, tasks.double, tasks.halve, tasks.ship):
        assert await (await tasks.double.submit(store, 42)).result(timeout=PATIENCE) == 84
        assert await (await tasks.halve.submit(store, 3)).result(timeout=PATIENCE) == 1.5
        job = await tasks.ship.submit(store, Order(7, total=1.5))
        assert await job.result(timeout=PATIENCE) == Order(7, total=6.5)


async def test_a_result_of_none_is_a_result(store: tocsin.Store, store_dsn: str) -> None:
    async with working(store, tasks.nothing):
        job = await tasks.nothing.submit(store)
        info = await finished(job)
        assert (info.state, info.result) == ("succeeded", None)
    assert await query(store_dsn, "select result::text from tocsin.archive") == [("null",)]


async def test_many_jobs_run_each_once_by_several_workers(store_dsn: str) -> None:
    ran: list[int] = []

    @tocsin.task(name="note")
    async def note(number: int) -> int:
        ran.append(number)
        await trio.lowlevel.checkpoint()
        return number

    async with (
        tocsin.connect(store_dsn) as submitter,
        tocsin.connect(store_dsn) as one,
        tocsin.connect(store_dsn) as another,
        working(one, note, concurrency=4),
        working(another, note, concurrency=4),
    ):
        jobs = [await note.submit(submitter, n) for n in range(40)]
        assert [await job.result(timeout=PATIENCE) for job in jobs] == list(range(40))
    assert sorted(ran) == list(range(40))


async def test_functions_run_at_the_same_time_up_to_the_concurrency(store: tocsin.Store) -> None:
    inside = 0
    full = trio.Event()
    go_on = trio.Event()

    @tocsin.task(name="stay")
    async def stay() -> None:
        nonlocal inside
        inside += 1
        if inside == 3:
            full.set()
        await go_on.wait()

    async with working(store, stay, concurrency=3):
        jobs = [await stay.submit(store) for _ in range(5)]
        with trio.fail_after(PATIENCE):
            await full.wait()
        await until_idle(store)
        assert inside == 3
        go_on.set()
        for job in jobs:
            await job.result(timeout=PATIENCE)


async def test_a_plain_function_runs_in_a_thread(store: tocsin.Store) -> None:
    @tocsin.task(name="where")
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    async with working(store, where):
        assert not await (await where.submit(store)).result(timeout=PATIENCE)


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_a_worker_runs_one_job_at_a_time_at_least(
    store: tocsin.Store, concurrency: int
) -> None:
    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        async with store.worker([tasks.double], concurrency=concurrency):
            pass


# Attempts that fail


async def test_a_job_that_fails_is_tried_again(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(store, tasks.fail_until):
        job = await tasks.fail_until.submit(store, 3)
        assert await job.result(timeout=PATIENCE) == 3
    info = await job.info()
    assert (info.attempts, info.error) == (3, "OSError: attempt 2")
    failed = [r for r in caplog.records if "failed with message" in r.message]
    assert len(failed) == 2
    assert failed[0].message.startswith("tests.jobs.tasks.fail_until failed with message")


async def test_a_job_that_always_fails_is_a_dead_letter_with_its_error(
    store: tocsin.Store,
) -> None:
    async with working(store, tasks.fail_until):
        job = await tasks.fail_until.using(max_attempts=2).submit(store, 9)
        with pytest.raises(
            tocsin.JobFailed, match="after 2 attempts: OSError: attempt 2"
        ) as raised:
            await job.result(timeout=PATIENCE)
    failed = raised.value
    assert (failed.job_id, failed.task, failed.attempts) == (job.id, tasks.fail_until.name, 2)
    assert (failed.reason, failed.error) == ("handler_failed", "OSError: attempt 2")
    assert "in fail_until" in failed.traceback
    letter = await store.dead_letters.get(job.id)
    assert (letter.reason, letter.read_ct) == ("handler_failed", 2)
    assert [d.outcome for d in letter.history] == ["handler_failed"] * 2


async def test_the_policy_says_when_the_next_attempt_is(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with working(store, tasks.fail_slowly):
        job = await tasks.fail_slowly.submit(store)

        async def failed_once() -> bool:
            return (await job.info()).error is not None

        await until(failed_once)
        message = await store.messages.get(job.id)
        info = await job.info()
        assert (message.state, info.state, info.attempts) == ("delayed", "waiting", 1)
        assert message.due is not None
        assert message.dequeued_at is not None
        assert 3590 < (message.due - message.dequeued_at).total_seconds() < 3660
        await move_clock(store_dsn, 3700)
        assert (await finished(job)).attempts == 2


@pytest.mark.parametrize(("error", "attempts"), [("KeyError", 1), ("ValueError", 3)])
async def test_the_policy_says_after_which_errors_there_is_another_attempt(
    store: tocsin.Store, error: str, attempts: int
) -> None:
    async with working(store, tasks.fail_with):
        info = await finished(await tasks.fail_with.submit(store, error))
    assert (info.state, info.attempts, info.reason) == ("failed", attempts, "handler_failed")


async def test_a_function_that_exits_fails_its_attempt_alone(store: tocsin.Store) -> None:
    async with working(store, tasks.leave, tasks.double):
        info = await finished(await tasks.leave.submit(store, 3))
        assert (info.state, info.attempts, info.error) == ("failed", 2, "SystemExit: 3")
        assert await (await tasks.double.submit(store, 1)).result(timeout=PATIENCE) == 2


async def test_a_policy_that_raises_hides_no_error(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The next attempt comes as without a policy, so a second later."""

    def broken(attempt: int, error: BaseException) -> float:
        raise ZeroDivisionError

    @tocsin.task(name="broken", retry=broken, max_attempts=2)
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("lost")

    await store.queues.ensure("default")
    job = await fail.submit(store)
    async with store.worker([fail]) as worker:
        assert await worker.process_one()
    info, message = await job.info(), await store.messages.get(job.id)
    assert (info.state, info.attempts, info.error) == ("waiting", 1, "OSError: lost")
    assert message.due is not None
    assert message.dequeued_at is not None
    assert message.due > message.dequeued_at
    assert any("the retry policy of task broken has raised" in r.message for r in caplog.records)


# Time


async def test_an_attempt_that_takes_too_long_is_ended(store: tocsin.Store) -> None:
    async with working(store, tasks.hang):
        job = await tasks.hang.submit(store)
        with pytest.raises(tocsin.JobTimedOut, match=r"taken longer than 0\.05 s") as raised:
            await job.result(timeout=PATIENCE)
    assert (raised.value.reason, raised.value.attempts) == ("timed_out", 2)


async def test_a_call_may_have_a_timeout_of_its_own(store: tocsin.Store) -> None:
    async with working(store, tasks.wait_forever):
        job = await tasks.wait_forever.using(timeout=0.01, max_attempts=1).submit(store)
        assert (await finished(job)).reason == "timed_out"


async def test_what_a_function_finishes_too_late_does_not_count(store: tocsin.Store) -> None:
    late = threading.Event()
    ended = threading.Event()

    @tocsin.task(name="late", timeout=0.05, max_attempts=2, retry=0)
    def stay() -> str:
        if tocsin.current_job().attempt == 1:
            late.wait(PATIENCE)
            ended.set()
        return f"attempt {tocsin.current_job().attempt}"

    async with working(store, stay):
        job = await stay.submit(store)
        assert await job.result(timeout=PATIENCE) == "attempt 2"
        late.set()
        await trio.to_thread.run_sync(ended.wait, PATIENCE)
        assert await job.result(timeout=PATIENCE) == "attempt 2"


async def test_a_plain_function_can_ask_whether_it_is_to_end(store: tocsin.Store) -> None:
    ends: list[str] = []

    @tocsin.task(name="asks", timeout=0.05, max_attempts=1)
    def ask() -> None:
        try:
            while True:
                tocsin.current_job().check_cancelled()
        except BaseException as end:
            ends.append(type(end).__name__)
            raise

    async with working(store, ask):
        assert (await finished(await ask.submit(store))).reason == "timed_out"
        await until(lambda: ends)
    assert ends == ["Cancelled"]


# What a function decides


@pytest.mark.parametrize(
    ("verdict", "state", "attempts"),
    [("retry", "succeeded", 2), ("reject", "failed", 1)],
)
async def test_a_function_decides_by_what_it_raises(
    store: tocsin.Store, verdict: str, state: str, attempts: int
) -> None:
    async with working(store, tasks.decide):
        info = await finished(await tasks.decide.submit(store, verdict))
    assert (info.state, info.attempts) == (state, attempts)


async def test_a_snooze_costs_no_attempt(store: tocsin.Store) -> None:
    calls: list[int] = []

    @tocsin.task(name="snoozes", max_attempts=1)
    async def snooze() -> int:
        calls.append(tocsin.current_job().attempt)
        await trio.lowlevel.checkpoint()
        if len(calls) < 3:
            raise tocsin.Snooze(0)
        return tocsin.current_job().attempt

    async with working(store, snooze):
        assert await (await snooze.submit(store)).result(timeout=PATIENCE) == 1
    assert calls == [1, 1, 1]


async def test_the_current_job_tells_what_runs(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[Any] = []

    @tocsin.task(name="looks", timeout=60)
    async def look() -> None:
        job = tocsin.current_job()
        found.append((job.id, job.task, job.attempt, job.max_attempts, job.timeout))
        found.append(59 < job.deadline - trio.current_time() <= 60)
        job.log.warning("looked")
        await trio.lowlevel.checkpoint()

    async with working(store, look):
        job = await look.submit(store)
        await job.result(timeout=PATIENCE)
    assert found == [(job.id, "looks", 1, 3, 60), True]
    (record,) = [r for r in caplog.records if r.name == "tocsin.job.looks"]
    assert (record.job_id, record.task, record.attempt) == (job.id, "looks", 1)  # type: ignore[attr-defined]
    with pytest.raises(LookupError, match="only a worker runs jobs"):
        tocsin.current_job()


# What cannot be run


async def test_arguments_from_sql_that_do_not_fit_are_rejected(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with working(store, tasks.ship):
        ((job_id,),) = await query(
            store_dsn, 'select tocsin.submit(%s, \'{"order": {"id": "7"}}\')', tasks.ship.name
        )

        async def dead() -> bool:
            return (await store.jobs.get(job_id)).state == "failed"

        await until(dead)
        info = await store.jobs.get(job_id)
    assert (info.reason, info.attempts) == ("rejected", 1)
    assert "$.order.id" in (info.error or "")


async def test_a_result_that_cannot_be_kept_fails_the_job_for_good(store: tocsin.Store) -> None:
    async with working(store, tasks.return_set):
        info = await finished(await tasks.return_set.submit(store))
    assert (info.state, info.attempts) == ("failed", 1)
    assert "ResultInvalid" in (info.error or "")


async def test_a_task_that_a_worker_does_not_know_is_left_to_another_worker(
    store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with tocsin.connect(store_dsn) as store, tocsin.connect(store_dsn) as other:
        async with working(store, tasks.double):
            jobs = [await tasks.halve.submit(store, n) for n in range(3)]
            await store.produce("default", "a plain message")

            async def all_left() -> bool:
                return len(await store.messages.list("default", state="delayed")) == 4

            await until(all_left)
        warned = [r.message for r in caplog.records if "left to other workers" in r.message]
        assert sorted(w.split(" of queue")[0] for w in warned) == [
            "a plain message",
            "task 'tests.jobs.tasks.halve'",
        ]
        await move_clock(store_dsn, 11)
        async with working(other, tasks.halve):
            assert [await job.result(timeout=PATIENCE) for job in jobs] == [0, 0.5, 1]
        assert (await jobs[0].info()).attempts == 1


async def test_a_worker_needs_tasks_of_different_names(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    with pytest.raises(ValueError, match="at least one task"):
        async with store.worker([]):
            pass
    double = tocsin.task(name=tasks.double.name)(tasks.halve.function)
    with pytest.raises(ValueError, match="two tasks have the name"):
        async with store.worker([tasks.double, double]):
            pass


async def test_the_queue_of_a_task_has_to_exist(store: tocsin.Store) -> None:
    with pytest.raises(tocsin.QueueNotFound):
        async with store.worker([tasks.double]):
            pass
    with pytest.raises(tocsin.QueueNotFound):
        await tasks.double.submit(store, 1)


# The end of a worker


async def test_an_interrupted_worker_finishes_what_runs_and_leaves_the_rest(
    store: tocsin.Store,
) -> None:
    began, go_on = trio.Event(), trio.Event()

    @tocsin.task(name="stays")
    async def stay() -> str:
        began.set()
        await go_on.wait()
        return "done"

    await store.queues.ensure("default")
    ends: list[tocsin.Suspended] = []
    async with store.worker([stay]) as worker, trio.open_nursery() as nursery:

        async def run() -> None:
            try:
                await worker.run()
            except tocsin.Suspended as end:
                ends.append(end)

        jobs = [await stay.submit(store) for _ in range(3)]
        nursery.start_soon(run)
        with trio.fail_after(PATIENCE):
            await began.wait()
        await worker.interrupt()
        go_on.set()
    assert [(await job.info()).state for job in jobs] == ["succeeded", "waiting", "waiting"]
    assert [(await job.info()).attempts for job in jobs] == [1, 0, 0]
    (end,) = ends
    assert (end.reason, end.handled) == ("interrupted", 1)


async def test_a_cancelled_worker_costs_its_jobs_no_attempt(store: tocsin.Store) -> None:
    began = trio.Event()

    @tocsin.task(name="stays")
    async def stay() -> None:
        began.set()
        await trio.sleep_forever()

    await store.queues.ensure("default")
    job = await stay.submit(store)
    async with store.worker([stay]) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        with trio.fail_after(PATIENCE):
            await began.wait()
        nursery.cancel_scope.cancel()
    info = await job.info()
    assert (info.state, info.attempts) == ("waiting", 0)


async def test_a_worker_can_run_what_is_due_and_end(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    await store.queues.ensure("other")
    jobs = [await tasks.double.submit(store, n) for n in range(3)]
    later = await tasks.double.using(delay=3600).submit(store, 9)
    jobs.append(await tasks.elsewhere.submit(store, 5))
    async with store.worker([tasks.double, tasks.elsewhere]) as worker:
        with trio.fail_after(PATIENCE), pytest.raises(tocsin.Suspended) as end:
            await worker.run(once=True)
    assert end.value.handled == 4
    assert [(await job.info()).result for job in jobs] == [0, 2, 4, -5]
    assert (await later.info()).state == "waiting"


# Several queues


async def test_a_worker_serves_all_queues_of_its_tasks(store: tocsin.Store) -> None:
    async with working(store, tasks.double, tasks.elsewhere) as worker:
        assert {c.queue for c in worker.consumers} == {"default", "other"}
        assert await (await tasks.double.submit(store, 4)).result(timeout=PATIENCE) == 8
        assert await (await tasks.elsewhere.submit(store, 4)).result(timeout=PATIENCE) == -4


async def test_the_queues_of_a_worker_share_its_concurrency(store: tocsin.Store) -> None:
    inside, most = 0, 0

    async def stay() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await trio.lowlevel.checkpoint()
        inside -= 1

    here = tocsin.task(name="here")(stay)
    there = tocsin.task(name="there", queue="other")(stay)
    async with working(store, here, there, concurrency=2):
        jobs = [await task.submit(store) for _ in range(20) for task in (here, there)]
        for job in jobs:
            await job.result(timeout=PATIENCE)
    assert most == 2


async def test_a_busy_queue_leaves_slots_to_another(store: tocsin.Store) -> None:
    async with working(store, tasks.double, tasks.elsewhere):
        busy = [await tasks.double.submit(store, n) for n in range(50)]
        job = await tasks.elsewhere.submit(store, 1)
        assert await job.result(timeout=PATIENCE) == -1
        for each in busy:
            await each.result(timeout=PATIENCE)


async def test_logs_name_the_task(store: tocsin.Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tocsin")
    async with working(store, tasks.fail_until):
        await (await tasks.fail_until.submit(store, 2)).result(timeout=PATIENCE)
    assert any(tasks.fail_until.name in r.message for r in caplog.records)


async def test_a_cancelled_worker_of_two_queues_ends(store: tocsin.Store) -> None:
    began = trio.Event()

    async def stay() -> None:
        began.set()
        await trio.sleep_forever()

    here = tocsin.task(name="here")(stay)
    there = tocsin.task(name="there", queue="other")(stay)
    for queue in "default", "other":
        await store.queues.ensure(queue)
    job = await here.submit(store)
    async with store.worker([here, there]) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        with trio.fail_after(PATIENCE):
            await began.wait()
        nursery.cancel_scope.cancel()
    assert (await job.info()).attempts == 0


@pytest.mark.slow
@pytest.mark.parametrize("delay", [float("nan"), -1.0, "1s"])
async def test_an_answer_of_a_policy_that_makes_no_sense_is_replaced(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture, delay: Any
) -> None:
    class Policy:
        def delay(self, attempt: int, error: BaseException) -> float | None:
            return delay  # type: ignore[no-any-return]

    @tocsin.task(name="fails", retry=Policy(), max_attempts=1)
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("lost")

    async with working(store, fail):
        info = await finished(await fail.submit(store))
    assert (info.state, info.attempts, info.error) == ("failed", 1, "OSError: lost")
    assert any("the retry policy of task fails" in r.message for r in caplog.records)


async def test_a_policy_may_answer_with_a_timedelta(store: tocsin.Store) -> None:
    class Policy:
        def delay(self, attempt: int, error: BaseException) -> Any:
            return timedelta(0)

    @tocsin.task(name="fails", retry=Policy(), max_attempts=2)
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("lost")

    async with working(store, fail):
        assert (await finished(await fail.submit(store))).attempts == 2


async def test_a_policy_is_asked_of_the_single_error_of_a_group(store: tocsin.Store) -> None:
    @tocsin.task(name="fails", retry=tocsin.fixed(0, on=OSError), max_attempts=2)
    async def fail() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raise_lost)

    async def raise_lost() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("lost")

    async with working(store, fail):
        assert (await finished(await fail.submit(store))).attempts == 2
