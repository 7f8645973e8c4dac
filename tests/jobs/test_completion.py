"""A job that its function finishes in a transaction: effects and result together."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
import pytest
import trio

import tocsin
from tests.support import PATIENCE, query, until_query
from tests.support.child import run_script
from tests.support.jobs import working

EFFECT = "insert into effects (job_id) values (%s)"
Effects = Callable[[], Awaitable[list[int]]]


@pytest.fixture
async def effects(store: tocsin.Store, store_dsn: str) -> Effects:
    """A table of the program's own, and what is in it; no constraint hides a second
    effect of a job."""
    await query(store_dsn, "create table effects (job_id bigint not null)")
    await store.queues.ensure("q")

    async def read() -> list[int]:
        rows = await query(store_dsn, "select job_id from effects order by job_id")
        return [job_id for (job_id,) in rows]

    return read


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


@tocsin.task(name="note", queue="q")
async def note(number: int) -> int:
    job = tocsin.current_job()
    async with job.transaction() as connection:
        await connection.execute(EFFECT, [job.id])
        await job.done(2 * number)
    return 2 * number


@pytest.mark.parametrize("kind", ["trio", "blocking", "thread"])
async def test_effects_and_result_are_committed_together(
    store: tocsin.Store,
    store_dsn: str,
    effects: Effects,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    @tocsin.task(name="blocking", queue="q")
    async def note_blocking(number: int) -> int | None:
        job = tocsin.current_job()
        with psycopg.connect(store_dsn) as connection:
            connection.execute(EFFECT, [job.id])
            await job.done(2 * number, connection=connection)
        return None

    @tocsin.task(name="thread", queue="q")
    def note_in_thread(number: int) -> int | None:
        job = tocsin.current_job()
        with psycopg.connect(store_dsn) as connection:
            connection.execute(EFFECT, [job.id])
            trio.from_thread.run(partial(job.done, 2 * number, connection=connection))
        return None

    task: Any = {"trio": note, "blocking": note_blocking, "thread": note_in_thread}[kind]
    async with store.worker([task]) as worker:
        job = await tocsin.task(name=task.name, queue="q")(_returns_int).submit(store, 21)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                assert await job.result(timeout=PATIENCE) == 42

            with pytest.raises(tocsin.Suspended) as end:
                await worker.run(once=True)
    assert (end.value.handled, end.value.failed, end.value.released) == (1, 0, 0)
    assert await effects() == [job.id]
    assert (await job.info()).attempts == 1
    assert warnings(caplog) == []


async def _returns_int(number: int) -> int:
    return number


async def test_an_error_undoes_effects_and_completion(
    store: tocsin.Store, effects: Effects
) -> None:
    @tocsin.task(name="fails", queue="q", retry=0, max_attempts=2)
    async def fail() -> str:
        job = tocsin.current_job()
        async with job.transaction() as connection:
            await connection.execute(EFFECT, [job.id])
            await job.done(f"attempt {job.attempt}")
            if job.attempt == 1:
                raise OSError("lost")
        return f"attempt {job.attempt}"

    async with working(store, fail):
        job = await fail.submit(store)
        assert await job.result(timeout=PATIENCE) == "attempt 2"
    assert await effects() == [job.id]


async def test_a_function_that_returns_after_a_rollback_is_not_done(
    store: tocsin.Store, effects: Effects
) -> None:
    @tocsin.task(name="goes on", queue="q", retry=0, max_attempts=2)
    async def go_on() -> str:
        job = tocsin.current_job()
        with suppress(OSError):
            async with job.transaction() as connection:
                await connection.execute(EFFECT, [job.id])
                await job.done("done")
                if job.attempt == 1:
                    raise OSError("lost")
        return "returned" if job.attempt == 1 else "done"

    async with working(store, go_on):
        job = await go_on.submit(store)
        assert await job.result(timeout=PATIENCE) == "done"
    assert (await job.info()).attempts == 2
    assert await effects() == [job.id]


async def test_a_second_transaction_may_finish_what_the_first_one_has_not(
    store: tocsin.Store, effects: Effects
) -> None:
    @tocsin.task(name="repeats", queue="q")
    async def repeat() -> str:
        job = tocsin.current_job()
        for number in range(2):
            with suppress(OSError):
                async with job.transaction() as connection:
                    await connection.execute(EFFECT, [job.id])
                    await job.done(f"transaction {number}")
                    if number == 0:
                        raise OSError("lost")
        return "transaction 1"

    async with working(store, repeat):
        job = await repeat.submit(store)
        assert await job.result(timeout=PATIENCE) == "transaction 1"
    assert (await job.info()).attempts == 1
    assert await effects() == [job.id]


@pytest.mark.parametrize("what", ["raises", "times out", "snoozes"])
async def test_what_a_function_does_after_the_commit_changes_nothing(
    store: tocsin.Store, effects: Effects, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    @tocsin.task(name="goes on", queue="q", retry=0, timeout=1, max_attempts=50)
    async def go_on(number: int) -> int:
        await note.function(number)  # type: ignore[misc]
        if what == "raises":
            raise OSError("lost")
        if what == "snoozes":
            raise tocsin.Snooze(0)
        await trio.sleep_forever()
        raise AssertionError

    async with store.worker([go_on]) as worker:
        job = await go_on.submit(store, 1)
        with pytest.raises(tocsin.Suspended) as end:
            await worker.run(once=True)
    assert end.value.handled == 1
    assert (await job.info()).state == "succeeded"
    assert await job.result() == 2
    assert await effects() == [job.id]
    if what != "snoozes":
        assert "a transaction of the handler has settled it" in warnings(caplog)[-1]


async def test_a_worker_that_ends_after_the_commit_changes_nothing(
    store: tocsin.Store, effects: Effects
) -> None:
    committed = trio.Event()

    @tocsin.task(name="stays", queue="q")
    async def stay(number: int) -> int:
        await note.function(number)  # type: ignore[misc]
        committed.set()
        await trio.sleep_forever()
        return number

    job = await stay.submit(store, 1)
    async with store.worker([stay]) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        with trio.fail_after(PATIENCE):
            await committed.wait()
        nursery.cancel_scope.cancel()
    assert ((await job.info()).state, await job.result()) == ("succeeded", 2)
    assert await effects() == [job.id]


async def test_the_result_that_counts_is_the_one_that_was_committed(
    store: tocsin.Store, effects: Effects, caplog: pytest.LogCaptureFixture
) -> None:
    @tocsin.task(name="differs", queue="q")
    async def differ() -> int:
        async with tocsin.current_job().transaction():
            await tocsin.current_job().done(1)
        return 2

    async with working(store, differ):
        job = await differ.submit(store)
        assert await job.result(timeout=PATIENCE) == 1
    (warning,) = warnings(caplog)
    assert "the result of done() is stored" in warning


async def test_an_attempt_that_no_longer_has_the_job_cannot_finish_it(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    errors: list[str] = []

    @tocsin.task(name="late", queue="q")
    async def late() -> str:
        job = tocsin.current_job()
        try:
            async with job.transaction() as connection:
                await connection.execute(EFFECT, [job.id])
                if job.attempt == 1:  # as a claim does when the lease is over
                    await query(
                        store_dsn,
                        "update tocsin.messages set state = 'ready', lease = lease + 1, due = now()"
                        " where id = %s",
                        job.id,
                    )
                await job.done(f"attempt {job.attempt}")
        except tocsin.LeaseLost as lost:
            errors.append(type(lost).__name__)
            raise
        return f"attempt {job.attempt}"

    async with working(store, late):
        job = await late.submit(store)
        await until_query(store_dsn, "select 1 from tocsin.archive", gives=[(1,)])
        assert await job.result(timeout=PATIENCE) == "attempt 2"
    assert errors == ["LeaseLost"]
    assert await effects() == [job.id]


@pytest.mark.parametrize("ends", ["raises", "goes on"])
async def test_a_job_that_was_cancelled_is_not_done(
    store: tocsin.Store, effects: Effects, ends: str
) -> None:
    """The function notices no cancellation before `done`."""

    @tocsin.task(name="cancelled", queue="q")
    async def cancelled() -> str:
        job = tocsin.current_job()
        with trio.CancelScope(shield=True):
            try:
                async with job.transaction() as connection:
                    await connection.execute(EFFECT, [job.id])
                    await cancelled.job(store, job.id).cancel("withdrawn")
                    await job.done("done")
            except tocsin.LeaseLost:
                if ends == "raises":
                    raise
        return "returned"

    async with working(store, cancelled):
        job = await cancelled.submit(store)
        with pytest.raises(tocsin.JobCancelled, match="withdrawn"):
            await job.result(timeout=PATIENCE)
    assert await effects() == []
    assert (await job.info()).attempts == 1


async def test_a_cancellation_within_the_transaction_undoes_it(
    store: tocsin.Store, effects: Effects
) -> None:
    written = trio.Event()

    @tocsin.task(name="waits", queue="q")
    async def wait() -> None:
        job = tocsin.current_job()
        async with job.transaction() as connection:
            await connection.execute(EFFECT, [job.id])
            written.set()
            await trio.sleep_forever()

    async with working(store, wait):
        job = await wait.submit(store)
        await written.wait()
        await job.cancel("withdrawn")
        with pytest.raises(tocsin.JobCancelled, match="withdrawn"):
            await job.result(timeout=PATIENCE)
    assert await effects() == []
    assert [a.outcome for a in await job.attempts()] == ["cancelled"]


async def test_done_is_called_once_and_in_a_transaction(
    store: tocsin.Store, effects: Effects
) -> None:
    said: list[str] = []

    @tocsin.task(name="misuses", queue="q")
    async def misuse() -> int:
        job = tocsin.current_job()
        with pytest.raises(RuntimeError) as outside:
            await job.done(1)
        async with job.transaction():
            with pytest.raises(RuntimeError) as nested:
                async with job.transaction():
                    pass
            with pytest.raises(tocsin.ResultInvalid):
                await job.done("one")
            await job.done(1)
            with pytest.raises(RuntimeError) as twice:
                await job.done(1)
        said.extend(str(each.value) for each in (outside, nested, twice))
        return 1

    async with working(store, misuse):
        assert await (await misuse.submit(store)).result(timeout=PATIENCE) == 1
    assert [text.split(";")[0].split(":")[0] for text in said] == [
        "call done() in a transaction",
        "a transaction of this job is open",
        "the job is done",
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("jobs", "kills"), [(4, 1), (400, 300)])
async def test_under_kills_each_job_has_its_effect_exactly_once(
    store: tocsin.Store, effects: Effects, store_dsn: str, jobs: int, kills: int
) -> None:
    dice = random.Random(4711)
    names = ["note", "note_in_thread"]
    killed = 0
    submitted: list[tocsin.Job[int]] = []
    for task in [tocsin.task(name=name, queue="q", max_attempts=10_000) for name in names]:
        of_task = task(_returns_int)
        submitted += [await of_task.submit(store, n) for n in range(jobs // 2)]

    async def kill_again_and_again() -> None:
        nonlocal killed
        while True:
            async with run_script("complete_jobs.py", store_dsn) as child:
                steps = dice.randint(1, 8) if killed < kills else 10**6
                for _ in range(steps):
                    await child.line()
            killed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(kill_again_and_again)
        await until_query(
            store_dsn, "select 1 from tocsin.messages limit 1", gives=[], patience=800
        )
        nursery.cancel_scope.cancel()
    assert await effects() == [job.id for job in submitted]
    assert killed >= kills // 2
    results = [await job.result() for job in submitted]
    assert results == 2 * list(range(jobs // 2))
    assert await store.dead_letters.list("q") == []
