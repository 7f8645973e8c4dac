"""Waiting for the outcome of a job: the transaction that finishes it tells, and no
outcome is missed."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import trio
import trio.testing

import tocsin
from tests.support import (
    PATIENCE,
    nodes,
    open_connection,
    query,
    since,
    statements,
    until,
    until_true,
)
from tests.support.jobs import working
from tests.support.queues import open_transaction

from . import tasks

REGISTERED = "count(*) = 1 from tocsin.awaited"


@pytest.fixture
async def job(store: tocsin.Store) -> tocsin.Job[int]:
    """A job that no worker runs."""
    await store.queues.ensure("default")
    return await tasks.double.submit(store, 21)


async def run_once(store: tocsin.Store, *run: tocsin.Task[..., Any]) -> None:
    """Run what is due."""
    async with store.worker(run or [tasks.double]) as worker:
        with pytest.raises(tocsin.Suspended):
            await worker.run(once=True)


# What a wait ends with


async def test_another_process_tells_of_the_result(store: tocsin.Store, store_dsn: str) -> None:
    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as waiting,
        tocsin.connect(store_dsn, heartbeat=3600) as other,
    ):
        await store.queues.ensure("default")
        job = await tasks.double.submit(waiting, 21)
        results: list[int] = []

        async def wait() -> None:
            results.append(await job.result(timeout=PATIENCE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until_true(store_dsn, REGISTERED)
            await run_once(other)
        assert results == [42]


async def test_a_finished_job_needs_no_wait(store: tocsin.Store, job: tocsin.Job[int]) -> None:
    await run_once(store)
    assert await job.result(timeout=0.0001 + PATIENCE) == 42
    assert not store._process.outcomes.wanted


async def test_a_wait_without_time_looks_once(store: tocsin.Store, job: tocsin.Job[int]) -> None:
    with pytest.raises(trio.TooSlowError):
        await job.result(timeout=0)
    await run_once(store)
    assert await job.result(timeout=0) == 42


async def test_tasks_that_wait_look_with_one_statement(dsn_of_quiet_store: str) -> None:
    async with tocsin.connect(dsn_of_quiet_store, heartbeat=3600) as store:
        await store.queues.ensure("default")
        jobs = [await tasks.double.submit(store, n) for n in range(20)]
        before = await statements(dsn_of_quiet_store)
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job.info)
        looks = since(before, await statements(dsn_of_quiet_store))
        assert [n for text, n in looks.items() if "job_outcomes" in text] == [1]


async def test_a_lookup_that_is_cancelled_passes_its_turn_on(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    job = await tasks.double.submit(store, 1)
    found: list[str] = []

    async def look() -> None:
        found.append((await job.info()).state)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            first.cancel()
            await job.info()
        nursery.start_soon(look)
        nursery.start_soon(look)
    assert found == ["waiting", "waiting"]


async def test_a_wait_has_a_limit(store: tocsin.Store, job: tocsin.Job[int]) -> None:
    with pytest.raises(trio.TooSlowError, match=r"not finished yet \(waiting\); it goes on"):
        await job.result(timeout=0.01)
    assert (await job.info()).state == "waiting"


async def test_any_job_is_waited_for_by_its_id(store: tocsin.Store, job: tocsin.Job[int]) -> None:
    """Whatever its task is, and however it ends."""
    with pytest.raises(trio.TooSlowError):
        await store.jobs.wait(job.id, timeout=0)
    async with working(store, tasks.double, tasks.leave):
        assert (await store.jobs.wait(job.id, timeout=PATIENCE)).result == 42
        failing = await tasks.leave.submit(store, 1)
        failed = await store.jobs.wait(failing.id, timeout=PATIENCE)
        assert (failed.state, failed.error) == ("failed", "SystemExit: 1")
    with pytest.raises(tocsin.JobNotFound):
        await store.jobs.wait(10**9)


async def test_a_cancelled_job_has_no_result(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(tocsin.JobCancelled, match="was cancelled") as raised:
                await job.result(timeout=PATIENCE)
            assert (raised.value.job_id, raised.value.task) == (job.id, tasks.double.name)

        nursery.start_soon(wait)
        await until_true(store_dsn, REGISTERED)
        await job.cancel()
    assert (await job.info()).state == "cancelled"


async def test_a_job_that_is_deleted_is_not_found(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    await query(store_dsn, "delete from tocsin.messages")
    with pytest.raises(tocsin.JobNotFound) as raised:
        await job.result(timeout=PATIENCE)
    assert raised.value.job_id == job.id
    with pytest.raises(tocsin.JobNotFound):
        await store.jobs.get(10**9)


async def test_a_plain_message_is_no_job(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    with pytest.raises(tocsin.JobNotFound):
        await store.jobs.get(await store.produce("default", 1))


async def test_a_job_whose_queue_keeps_nothing_has_no_result(store: tocsin.Store) -> None:
    await store.queues.ensure("default", retention=0)
    job = await tasks.double.submit(store, 1)
    await run_once(store)
    with pytest.raises(tocsin.JobNotFound, match="keep what is finished for a shorter time"):
        await job.result(timeout=PATIENCE)


async def test_a_failed_job_that_is_replayed_can_succeed(store: tocsin.Store) -> None:
    broken = True

    @tocsin.task(name="mended", max_attempts=1)
    async def run() -> str:
        await trio.lowlevel.checkpoint()
        if broken:
            raise OSError("broken")
        return "done"

    async with working(store, run):
        job = await run.submit(store)
        with pytest.raises(tocsin.JobFailed):
            await job.result(timeout=PATIENCE)
        assert (await job.info()).state == "failed"
        assert (await store.dead_letters.get(job.id)).reason == "handler_failed"
        broken = False
        await store.dead_letters.replay(job.id)
        assert await job.result(timeout=PATIENCE) == "done"


async def test_many_waits_at_once(store: tocsin.Store) -> None:
    results: dict[int, int] = {}

    async def wait(number: int) -> None:
        job = await tasks.double.submit(store, number)
        results[number] = await job.result(timeout=PATIENCE)

    async with working(store, tasks.double, concurrency=4), trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(wait, number)
    assert results == {n: 2 * n for n in range(100)}


async def test_two_tasks_may_wait_for_one_job(store: tocsin.Store, job: tocsin.Job[int]) -> None:
    results: list[int] = []

    async def wait() -> None:
        results.append(await job.result(timeout=PATIENCE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await run_once(store)
    assert results == [42, 42]


def test_a_look_at_unfinished_jobs_reads_nothing_of_finished_ones(plans: Any) -> None:
    plans("select tocsin.enqueue('q', '[]', task => 't'), tocsin.enqueue('q', '[]', task => 't')")

    def read(statement: str) -> set[str]:
        found = plans(statement).values()
        tables = {node.get("Relation Name", "") for plan in found for node in nodes(plan)}
        return {name.partition("_")[0] for name in tables} & {"messages", "archive", "dead"}

    look = "select * from tocsin.job_outcomes(array[{}]::bigint[])"
    assert read(look.format("1, 2")) == {"messages"}
    assert read(look.format("1, 3")) == {"messages", "archive", "dead"}


async def test_the_end_of_a_job_that_its_consumer_deletes_is_told(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("default")
        job = await tasks.double.submit(store, 1)

        async def wait() -> None:
            with pytest.raises(tocsin.JobNotFound):
                await job.result(timeout=PATIENCE)

        async with trio.open_nursery() as nursery, store.consumer("default") as consumer:
            nursery.start_soon(wait)
            await until_true(store_dsn, REGISTERED)
            (message,) = await consumer.dequeue()
            await message.delete()


async def test_the_end_of_a_job_that_is_purged_is_found_with_the_heartbeat(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.1) as store:
        await store.queues.ensure("default")
        job = await tasks.double.submit(store, 1)

        async def wait() -> None:
            with pytest.raises(tocsin.JobNotFound):
                await job.result(timeout=PATIENCE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until_true(store_dsn, REGISTERED)
            await store.queues.purge("default", ready=True)


# What a wait leaves behind


async def test_a_wait_that_ends_leaves_nothing(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    with trio.move_on_after(PATIENCE) as scope:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await job.result()

            nursery.start_soon(wait)
            await until_true(store_dsn, REGISTERED)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    await until_true(store_dsn, "count(*) = 0 from tocsin.awaited")
    assert (await job.info()).state == "waiting"


async def test_a_process_that_ends_leaves_nothing(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("default")
        job = await tasks.double.submit(store, 1)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(job.result)
                await until_true(store_dsn, REGISTERED)
                scope.cancel()
    assert await query(store_dsn, "select count(*)::int from tocsin.awaited") == [(0,)]


async def test_no_notification_without_a_wait(dsn_of_quiet_store: str) -> None:
    """For NOTIFY makes the commits of all sessions wait for each other."""
    dsn = dsn_of_quiet_store
    await query(
        dsn,
        "do $$ begin execute format('alter database %I set pg_stat_statements.track = %L',"
        " current_database(), 'all'); end $$",
    )
    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("default")

        async def notify_while_jobs_run() -> int:
            for number in range(5):
                await tasks.double.submit(store, number)
            before = await statements(dsn)
            await run_once(store)
            ran = since(before, await statements(dsn))
            return sum(n for text, n in ran.items() if "pg_notify" in text and "awaited" in text)

        assert await notify_while_jobs_run() == 0
        async with tocsin.connect(dsn, heartbeat=3600) as other, trio.open_nursery() as nursery:
            job = await tasks.double.submit(store, 1)
            nursery.start_soon(tasks.double.job(other, job.id).result)
            await until_true(dsn, REGISTERED)
            assert await notify_while_jobs_run() > 0


async def test_waiting_sends_nothing(dsn_of_quiet_store: str) -> None:
    dsn = dsn_of_quiet_store
    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("default")
        job = await tasks.double.submit(store, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job.result)
            await until(lambda: _confirmed(store))
            before = await statements(dsn)
            await trio.testing.wait_all_tasks_blocked(0.3)
            assert since(before, await statements(dsn)) == {}
            nursery.cancel_scope.cancel()


async def test_a_wait_for_a_job_just_submitted_looks_when_it_is_registered(
    dsn_of_quiet_store: str,
) -> None:
    dsn = dsn_of_quiet_store
    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("default")
        await (await tasks.double.submit(store, 1)).cancel()  # connects
        first = await tasks.double.submit(store, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.result)
            await until(lambda: _confirmed(store))
            job = await tasks.double.submit(store, 2)
            await trio.testing.wait_all_tasks_blocked(0.1)
            before = await statements(dsn)
            nursery.start_soon(job.result)
            await until(lambda: store._process.outcomes._registrations.is_safe(job.id))
            await trio.testing.wait_all_tasks_blocked(0.1)
            sent = since(before, await statements(dsn))
            nursery.cancel_scope.cancel()
    waits = {name: n for text, n in sent.items() if (name := _wait_function(text)) is not None}
    assert waits == {"await_jobs": 1, "begin_awaiting_jobs": 1, "job_outcomes": 1}


def _wait_function(statement: str) -> str | None:
    """Return the function of the protocol that a statement calls."""
    called = re.search(r"(await_jobs|begin_awaiting\w*|job_outcomes|leave_jobs)\(", statement)
    return None if called is None else called[1]


def _confirmed(store: tocsin.Store) -> bool:
    return store._process.outcomes.wanted and store._process.outcomes.safe


# No outcome is missed


async def test_a_transaction_that_was_open_before_the_wait_is_seen(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as waiting:
        handle = tocsin.Job(waiting._database, waiting._process, job.id, tasks.double.definition)
        async with open_transaction(store_dsn) as transaction:
            await transaction.execute("select tocsin.cancel(%s)", [job.id])

            async def wait() -> None:
                with pytest.raises(tocsin.JobCancelled):
                    await handle.result(timeout=PATIENCE)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await until(lambda: waiting._process.outcomes.recheck.at < math.inf)
                await transaction.execute("commit")


async def test_a_transaction_that_is_open_delays_no_other_wait(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    async with working(store, tasks.halve):
        other = await tasks.halve.submit(store, 4)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(job.result)
                await until_true(store_dsn, "count(*) > 0 from tocsin.awaited")
                async with open_transaction(store_dsn) as transaction:
                    await transaction.execute("select tocsin.cancel(%s)", [job.id])
                    assert await other.result() == 2
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_strict_transaction_is_found_with_the_heartbeat(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int], level: str
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.1) as waiting:
        handle = tocsin.Job(waiting._database, waiting._process, job.id, tasks.double.definition)
        async with open_connection(store_dsn) as connection, trio.open_nursery() as nursery:
            await connection.execute(f"begin isolation level {level}".encode())
            await connection.execute("select count(*) from tocsin.messages")

            async def wait() -> None:
                with pytest.raises(tocsin.JobCancelled):
                    await handle.result(timeout=PATIENCE)

            nursery.start_soon(wait)
            await until(lambda: _confirmed(waiting))
            await connection.execute("select tocsin.cancel(%s)", [job.id])
            await connection.execute("commit")


async def test_a_lost_connection_misses_nothing(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as waiting:
        handle = tocsin.Job(waiting._database, waiting._process, job.id, tasks.double.definition)
        results: list[int] = []

        async def wait() -> None:
            results.append(await handle.result(timeout=PATIENCE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until(lambda: _confirmed(waiting))
            await query(
                store_dsn,
                "select pg_terminate_backend(pid) from pg_stat_activity where datname ="
                " current_database() and pid <> pg_backend_pid() and pid in (select pid from"
                " pg_locks where locktype = 'advisory')",
            )
            await until(lambda: _confirmed(waiting))
            await run_once(store)
        assert results == [42]


async def test_a_process_declared_dead_waits_on(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.1) as waiting:
        handle = tocsin.Job(waiting._database, waiting._process, job.id, tasks.double.definition)
        results: list[int] = []

        async def wait() -> None:
            results.append(await handle.result(timeout=PATIENCE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until(lambda: _confirmed(waiting))
            process_id = waiting._process._membership.process.id
            await query(store_dsn, "select tocsin.unregister_process(%s, died => true)", process_id)
            await until(lambda: waiting._process._membership.process.id != process_id)
            await until(lambda: _confirmed(waiting))
            await run_once(store)
        assert results == [42]


async def test_a_dead_process_is_told_nothing(store: tocsin.Store, store_dsn: str) -> None:
    await query(store_dsn, "insert into tocsin.awaited values (1, 77)")
    await query(store_dsn, "select tocsin._end_process(77, true)")
    assert await query(store_dsn, "select * from tocsin.awaited") == []


async def test_a_process_is_at_rest_after_a_wait(store: tocsin.Store) -> None:
    async with working(store, tasks.double):
        for number in range(5):
            job = await tasks.double.submit(store, number)
            assert await job.result(timeout=PATIENCE) == 2 * number
            with trio.fail_after(PATIENCE):  # a loop that spins is never blocked
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert store._process.outcomes.recheck.at == math.inf


async def test_an_abandoned_wait_leaves_the_process_at_rest(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    async with open_transaction(store_dsn) as transaction:
        await transaction.execute("select tocsin.cancel(%s)", [job.id])
        with trio.move_on_after(0.05):
            await job.result()
        with trio.fail_after(PATIENCE):
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert store._process.outcomes.recheck.at == math.inf


async def test_a_wait_that_ends_without_a_connection_leaves_nothing(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int]
) -> None:
    other = await tasks.double.submit(store, 1)
    outcomes = store._process.outcomes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job.result)
        await until(lambda: outcomes.wanted and outcomes.safe)
        outcomes.lost()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.result)
        await until_true(
            store_dsn, "array_agg(job_id) = array[%s::bigint] from tocsin.awaited", other.id
        )
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("payload", ["job ", "job x", "job -1", f"job {'9' * 5000}", "jobs"])
async def test_any_role_may_notify_and_ends_no_process(
    store: tocsin.Store, store_dsn: str, job: tocsin.Job[int], payload: str
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job.result)
        await until(lambda: store._process.outcomes.wanted and store._process.outcomes.safe)
        channel = store._process._membership.process.channel
        await query(store_dsn, "select pg_notify(%s, %s)", channel, payload)
        await run_once(store)
