"""Jobs of programs without a store: submitted on their own connection, whose session
waits for the outcome."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
import pytest
import sqlalchemy
import trio
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import tocsin
from tests.support import PATIENCE, open_connection, query, until_true
from tests.support.cancel_sweep import cancel_sweep
from tests.support.jobs import working
from tocsin._jobs import session_wait

from . import tasks

T = TypeVar("T")

SESSIONS = "count(*) = 1 from tocsin.awaited where process_id < 0"
LEFT = (
    "(select count(*) from tocsin.awaited) = 0 and (select count(*) from pg_locks"
    " where locktype = 'advisory' and pid = {pid}) = 0"
)


@pytest.fixture
async def store(store: tocsin.Store) -> tocsin.Store:
    """A store with the queue of the tasks."""
    await store.queues.ensure("default")
    return store


async def on_asyncio(
    dsn: str, use: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]], **options: Any
) -> T:
    """Run a program on asyncio, in a thread."""

    async def main() -> T:
        async with await psycopg.AsyncConnection.connect(dsn, **options) as connection:
            return await use(connection)

    return await trio.to_thread.run_sync(asyncio.run, main())


async def blocking(dsn: str, use: Callable[[psycopg.Connection[Any]], T], **options: Any) -> T:
    """Run a blocking program, in a thread."""

    def main() -> T:
        with psycopg.connect(dsn, **options) as connection:
            return use(connection)

    return await trio.to_thread.run_sync(main)


# Results


@pytest.mark.parametrize("autocommit", [False, True])
async def test_asyncio_waits_for_a_result(
    store: tocsin.Store, store_dsn: str, autocommit: bool
) -> None:
    async def program(connection: psycopg.AsyncConnection[Any]) -> tuple[int, str]:
        async with connection.transaction():
            job = await tasks.double.submit(connection, 21)
        return await job.result(timeout=PATIENCE), (await job.info()).state

    results: list[tuple[int, str]] = []

    async def wait() -> None:
        results.append(await on_asyncio(store_dsn, program, autocommit=autocommit))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await until_true(store_dsn, SESSIONS)
        async with store.worker([tasks.double]) as worker:
            with pytest.raises(tocsin.Suspended):
                await worker.run(once=True)
    assert results == [(42, "succeeded")]
    assert await query(store_dsn, "select * from tocsin.awaited") == []


@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_blocking_program_waits_for_a_result(
    store: tocsin.Store, store_dsn: str, autocommit: bool
) -> None:
    def program(connection: psycopg.Connection[Any]) -> tuple[int, str]:
        with connection.transaction():
            job = tasks.double.submit_blocking(connection, 21)
        return job.result(timeout=PATIENCE), job.info().state

    results: list[tuple[int, str]] = []

    async def wait() -> None:
        results.append(await blocking(store_dsn, program, autocommit=autocommit))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await until_true(store_dsn, SESSIONS)
        async with store.worker([tasks.double]) as worker:
            with pytest.raises(tocsin.Suspended):
                await worker.run(once=True)
    assert results == [(42, "succeeded")]
    assert await query(store_dsn, "select * from tocsin.awaited") == []


async def test_a_wait_has_a_limit_and_leaves_nothing(store: tocsin.Store, store_dsn: str) -> None:
    async def program(connection: psycopg.AsyncConnection[Any]) -> None:
        job = await tasks.double.submit(connection, 1)
        await connection.commit()
        with pytest.raises(TimeoutError, match="it goes on"):
            await job.result(timeout=0.01)
        await query_left(connection)
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.05):
                await job.result()
        await query_left(connection)
        await job.cancel()
        await connection.commit()
        with pytest.raises(tocsin.JobCancelled):
            await job.result(timeout=PATIENCE)

    async def query_left(connection: psycopg.AsyncConnection[Any]) -> None:
        pid = connection.info.backend_pid
        cursor = await connection.execute(f"select {LEFT.format(pid=pid)}".encode())
        assert await cursor.fetchone() == (True,)
        await connection.commit()

    await on_asyncio(store_dsn, program)


async def test_a_wait_that_is_cancelled_anywhere_leaves_nothing(
    store: tocsin.Store, store_dsn: str
) -> None:
    job = await tasks.double.submit(store, 1)
    async with open_connection(store_dsn) as connection:
        pid = connection.info.backend_pid
        waiting = tasks.double.job(connection, job.id)

        async def wait() -> None:
            with pytest.raises(TimeoutError, match="it goes on"):
                await waiting.result(timeout=0.05)

        async def check() -> None:
            cursor = await connection.execute(f"select {LEFT.format(pid=pid)}".encode())
            assert await cursor.fetchone() == (True,)

        assert await cancel_sweep(wait, check) > 10


async def test_a_wait_without_time_only_looks(store: tocsin.Store, store_dsn: str) -> None:
    job = await tasks.double.submit(store, 1)
    numbers = "select last_value, is_called from tocsin.lifelines"
    before = await query(store_dsn, numbers)
    async with open_connection(store_dsn) as connection:
        with pytest.raises(TimeoutError):
            await tasks.double.job(connection, job.id).result(timeout=0)
    assert await query(store_dsn, numbers) == before


async def test_a_blocking_wait_has_a_limit(store: tocsin.Store, store_dsn: str) -> None:
    def program(connection: psycopg.Connection[Any]) -> None:
        job = tasks.double.submit_blocking(connection, 1)
        connection.commit()
        with pytest.raises(TimeoutError, match="it goes on"):
            job.result(timeout=0.01)
        job.cancel()
        connection.commit()
        with pytest.raises(tocsin.JobCancelled):
            job.result(timeout=0)
        with pytest.raises(tocsin.JobNotFound):
            tasks.double.job_blocking(connection, 10**9).info()
        assert "BlockingJob" in repr(job)

    await blocking(store_dsn, program)


async def test_a_wait_in_a_transaction_is_refused(store: tocsin.Store, store_dsn: str) -> None:
    async def program(connection: psycopg.AsyncConnection[Any]) -> None:
        job = await tasks.double.submit(connection, 1)
        with pytest.raises(RuntimeError, match="outside of a transaction"):
            await job.result(timeout=PATIENCE)

    await on_asyncio(store_dsn, program)


async def test_a_transaction_that_is_open_at_the_beginning_is_seen(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_wait, "LOOK_AGAIN", 10 * PATIENCE)
    job = await tasks.double.submit(store, 1)
    with psycopg.connect(store_dsn) as other:
        other.execute("select tocsin.cancel(%s)", [job.id])

        def program(connection: psycopg.Connection[Any]) -> None:
            with pytest.raises(tocsin.JobCancelled):
                tasks.double.job_blocking(connection, job.id).result(timeout=PATIENCE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocking, store_dsn, program)
            await until_true(store_dsn, SESSIONS)
            other.commit()


async def test_a_session_that_has_ended_is_forgotten(store: tocsin.Store, store_dsn: str) -> None:
    job = await tasks.double.submit(store, 1)
    with psycopg.connect(store_dsn) as connection:
        connection.execute("select * from tocsin.await_job(%s)", [job.id])
        connection.commit()
        await store.maintain()
        assert len(await query(store_dsn, "select * from tocsin.awaited")) == 1
    await until_true(
        store_dsn,
        "count(*) = 0 from pg_stat_activity where query like '%await_job%'"
        " and pid <> pg_backend_pid()",
    )
    await store.maintain()
    assert await query(store_dsn, "select * from tocsin.awaited") == []


async def test_a_session_ends_only_its_own_wait(store: tocsin.Store, store_dsn: str) -> None:
    job = await tasks.double.submit(store, 1)
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        ((number, queue_id),) = connection.execute(
            "select * from tocsin.await_job(%s)", [job.id]
        ).fetchall()
        leave = "select tocsin.leave_job(%s, %s, false)"
        assert await query(store_dsn, leave, number, queue_id) == [(False,)]
        assert len(await query(store_dsn, "select * from tocsin.awaited")) == 1
        assert connection.execute(leave.encode(), [number, queue_id]).fetchall() == [(True,)]


# Submitting


async def test_a_transaction_of_a_store_leads_to_the_store(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with store.transaction() as connection:
        jobs = await tasks.double.submit_many(connection, [tasks.double.call(n) for n in range(3)])
        assert await query(store_dsn, "select 1 from tocsin.messages") == []
    async with working(store, tasks.double):
        assert [await job.result(timeout=PATIENCE) for job in jobs] == [0, 2, 4]
    assert connection.checked_out_by is None


async def test_many_are_submitted_on_a_connection(store: tocsin.Store, store_dsn: str) -> None:
    async def program(connection: psycopg.AsyncConnection[Any]) -> list[int]:
        calls = [tasks.double.call(n) for n in range(3)]
        return [job.id for job in await tasks.double.submit_many(connection, calls)]

    def blocking_program(connection: psycopg.Connection[Any]) -> list[int]:
        calls = [tasks.double.call(n) for n in range(3)]
        return [job.id for job in tasks.double.submit_many_blocking(connection, calls)]

    ids = await on_asyncio(store_dsn, program) + await blocking(store_dsn, blocking_program)
    async with working(store, tasks.double):
        found = [await tasks.double.job(store, i).result(timeout=PATIENCE) for i in ids]
    assert found == [0, 2, 4, 0, 2, 4]


async def test_a_connection_may_have_another_schema(dsn: str) -> None:
    async with tocsin.connect(dsn, schema="jobs_here") as store:
        await store.install()
        await store.queues.ensure("default")

        def program(connection: psycopg.Connection[Any]) -> int:
            job = tasks.double.using(schema="jobs_here").submit_blocking(connection, 4)
            connection.commit()
            return job.result(timeout=PATIENCE)

        async with working(store, tasks.double):
            assert await blocking(dsn, program) == 8
        with pytest.raises(TypeError, match="a store has its own"):
            await tasks.double.using(schema="jobs_here").submit(store, 4)
        calls = [tasks.double.call(1), tasks.double.using(schema="x").call(1)]
        with pytest.raises(ValueError, match="several schemas: tocsin, x"):
            await blocking(dsn, lambda c: tasks.double.submit_many_blocking(c, calls))


async def test_a_target_of_the_wrong_kind_is_refused(store: tocsin.Store, store_dsn: str) -> None:
    with (
        psycopg.connect(store_dsn) as connection,
        pytest.raises(TypeError, match="submit_blocking takes a Connection"),
    ):
        await tasks.double.submit(connection, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="call the SQL function"):
        await tasks.double.submit(5, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="call the SQL function"):
        tasks.double.submit_blocking(5, 1)  # type: ignore[arg-type]

    async def program(connection: psycopg.AsyncConnection[Any]) -> None:
        with pytest.raises(TypeError, match="submit takes a AsyncConnection"):
            tasks.double.submit_blocking(connection, 1)

    await on_asyncio(store_dsn, program)


async def test_a_target_that_is_left_out_is_said_to_be_missing(store: tocsin.Store) -> None:
    """The first argument of the function is in its place."""
    submit: Any
    for submit in tasks.double.submit, tasks.double.using(delay=1).submit:
        with pytest.raises(TypeError, match=r"the first argument is the store .* not int"):
            await submit(21)
    for submit in tasks.double.submit_blocking, tasks.double.using(delay=1).submit_blocking:
        with pytest.raises(TypeError, match=r"the first argument is the store .* not int"):
            submit(21)
    with pytest.raises(tocsin.ArgumentsInvalid):
        await tasks.double.submit(store)  # type: ignore[call-arg]


# SQLAlchemy


async def test_sqlalchemy_submits_and_waits(store: tocsin.Store, store_dsn: str) -> None:
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(store_dsn)
    )

    def program() -> list[int]:
        with orm.Session(engine) as session, engine.connect() as connection:
            jobs = [
                tasks.double.submit_blocking(session, 4),
                tasks.double.submit_blocking(connection, 5),
            ]
            dropped = tasks.double.using(key="x").submit_blocking(connection, 6)
            session.commit()
            connection.rollback()
            with pytest.raises(tocsin.JobNotFound):
                dropped.info()
            connection.rollback()
            jobs[1] = tasks.double.submit_blocking(connection, 5)
            connection.commit()
            return [job.result(timeout=PATIENCE) for job in jobs]

    async with working(store, tasks.double):
        assert await trio.to_thread.run_sync(program) == [8, 10]
    engine.dispose()


async def test_sqlalchemy_on_asyncio_submits_and_waits(store: tocsin.Store, store_dsn: str) -> None:
    async def program() -> list[int]:
        engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=lambda: psycopg.AsyncConnection.connect(store_dsn),
        )
        async with AsyncSession(engine) as session, engine.connect() as connection:
            jobs = [
                await tasks.double.submit(session, 4),
                await tasks.double.submit(connection, 5),
            ]
            await session.commit()
            await connection.commit()
            results = [await job.result(timeout=PATIENCE) for job in jobs]
        await engine.dispose()
        return results

    async with working(store, tasks.double):
        assert await trio.to_thread.run_sync(asyncio.run, program()) == [8, 10]


# Another process

PROGRAM = """
import sys
import psycopg
from tests.jobs import tasks

with psycopg.connect(sys.argv[1]) as connection:
    with connection.transaction():
        job = tasks.double.submit_blocking(connection, 21)
    print(job.result(timeout=60))
"""


@pytest.mark.slow
async def test_a_blocking_program_is_another_process(store: tocsin.Store, store_dsn: str) -> None:
    async with working(store, tasks.double):
        ended = await trio.run_process(
            [sys.executable, "-c", PROGRAM, store_dsn], capture_stdout=True
        )
    assert ended.stdout == b"42\n"


async def test_a_role_waits_only_for_what_it_may_submit(
    store: tocsin.Store, store_dsn: str
) -> None:
    job = await tasks.double.submit(store, 1)
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        connection.execute("create role waiter")
        try:
            connection.execute("grant usage on schema tocsin to waiter")
            connection.execute("grant execute on all functions in schema tocsin to waiter")
            connection.execute("set role waiter")
            rows = connection.execute("select * from tocsin.await_job(%s)", [job.id]).fetchall()
            assert rows == []
            with pytest.raises(tocsin.JobNotFound):
                tasks.double.job_blocking(connection, job.id).result(timeout=0)
        finally:
            connection.execute("reset role")
            connection.execute("drop owned by waiter")
            connection.execute("drop role waiter")
