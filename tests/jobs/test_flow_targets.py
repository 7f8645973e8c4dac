"""Flows on connections: with trio, on asyncio, and of blocking programs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
import trio
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import tocsin
from tests.jobs import tasks
from tests.support import PATIENCE, next_event, query
from tests.support.jobs import working
from tocsin.telemetry import EnqueueCall, Enqueued

FLOWS = "select name from tocsin.flows order by id"


@pytest.fixture
async def store(store: tocsin.Store) -> tocsin.Store:
    """A store with the queue of the tasks."""
    await store.queues.ensure("default")
    return store


async def test_a_blocking_program_submits_a_flow(store: tocsin.Store, store_dsn: str) -> None:
    def program() -> tuple[int, str]:
        with psycopg.connect(store_dsn) as connection:
            with tocsin.BlockingFlow(connection, "blocking") as flow:
                number = flow.add(tasks.double.call(2))
                both = flow.add(tasks.double.call(number))
            assert connection.execute(FLOWS).fetchall() == [("blocking",)]
            connection.rollback()
            with tocsin.BlockingFlow(connection, "again") as flow:
                number = flow.add(tasks.double.call(2))
                both = flow.add(tasks.double.call(number))
            connection.commit()
            job: tocsin.BlockingJob[int] = flow.job(both)
            return job.result(timeout=PATIENCE), job.info().state

    async with working(store, tasks.double):
        assert await trio.to_thread.run_sync(program) == (8, "succeeded")
    assert await query(store_dsn, FLOWS) == [("again",)]


async def test_a_refused_flow_leaves_the_transaction_usable(
    store: tocsin.Store, store_dsn: str
) -> None:
    def program() -> None:
        with psycopg.connect(store_dsn) as connection:
            connection.execute("create table effects (number integer)")
            with (
                pytest.raises(tocsin.QueueNotFound),
                tocsin.BlockingFlow(connection, "refused") as flow,
            ):
                flow.add(tasks.double.call(1))
                flow.add(tasks.elsewhere.call(1))
            with pytest.raises(LookupError), tocsin.BlockingFlow(connection, "raises") as flow:
                flow.add(tasks.double.call(1))
                raise LookupError
            with pytest.raises(RuntimeError, match="at the end of its block"):
                _ = flow.id
            with tocsin.BlockingFlow(connection, "taken") as flow:
                flow.add(tasks.double.call(1))

    await trio.to_thread.run_sync(program)
    assert await query(store_dsn, FLOWS) == [("taken",)]
    assert await query(store_dsn, "select * from effects") == []


async def test_sqlalchemy_submits_a_flow(store: tocsin.Store, store_dsn: str) -> None:
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(store_dsn)
    )

    def program() -> int:
        with orm.Session(engine) as session:
            with tocsin.BlockingFlow(session, "session") as flow:
                planned = flow.add(tasks.double.call(2))
            session.commit()
            return flow.job(planned).result(timeout=PATIENCE)

    async with working(store, tasks.double):
        assert await trio.to_thread.run_sync(program) == 4
    engine.dispose()


async def test_asyncio_submits_a_flow(store: tocsin.Store, store_dsn: str) -> None:
    """On psycopg, and in a session of SQLAlchemy."""

    async def program() -> list[int]:
        engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=lambda: psycopg.AsyncConnection.connect(store_dsn),
        )
        async with (
            await psycopg.AsyncConnection.connect(store_dsn) as connection,
            AsyncSession(engine) as session,
        ):
            jobs: list[tocsin.Job[int]] = []
            for target in connection, session:
                async with tocsin.Flow(target, "asyncio", on_failure="hold") as flow:
                    number = flow.add(tasks.double.call(len(jobs)))
                    planned = flow.add(tasks.double.call(number))
                await target.commit()
                jobs.append(flow.job(planned))
            results = [await job.result(timeout=PATIENCE) for job in jobs]
        await engine.dispose()
        return results

    async with working(store, tasks.double):
        assert await trio.to_thread.run_sync(asyncio.run, program()) == [0, 4]


async def test_a_connection_of_a_store_leads_to_the_store(store: tocsin.Store) -> None:
    async with store.transaction() as connection:
        async with tocsin.Flow(connection, "lent") as flow:
            planned = flow.add(tasks.double.call(3))
        assert await store.flows.list() == []
    async with working(store, tasks.double):
        assert await flow.job(planned).result(timeout=PATIENCE) == 6


async def test_a_flow_knows_its_target(store: tocsin.Store, store_dsn: str) -> None:
    with pytest.raises(TypeError, match="psycopg connection"):
        async with tocsin.Flow(object(), "nowhere"):  # type: ignore[arg-type]
            pass
    with psycopg.connect(store_dsn) as connection:
        with pytest.raises(TypeError, match="blocking"):
            async with tocsin.Flow(connection, "blocking"):  # type: ignore[arg-type]
                pass
        with (
            pytest.raises(tocsin.SchemaMissing),
            tocsin.BlockingFlow(connection, "elsewhere", schema="elsewhere"),
        ):
            pass


class Tracing:
    """Instruments that give each message a header."""

    def __init__(self) -> None:
        self.calls: list[EnqueueCall] = []

    @contextmanager
    def enqueueing(self, call: EnqueueCall) -> Iterator[None]:
        call.headers = {"trace": call.queue}
        self.calls.append(call)
        yield

    @contextmanager
    def handling(self, call: Any) -> Iterator[None]:
        yield


async def test_instruments_and_events_tell_of_the_jobs_of_a_flow(store_dsn: str) -> None:
    tracing = Tracing()
    async with tocsin.connect(store_dsn, instruments=[tracing]) as store:
        for queue in "default", "other":
            await store.queues.ensure(queue)
        with store.events.subscribe(Enqueued) as events:
            async with store.flow("traced") as flow:
                planned = [
                    flow.add(tasks.double.call(1)),
                    flow.add(tasks.elsewhere.call(1)),
                    flow.add(tasks.double.call(2)),
                ]
            ids = [flow.job(job).id for job in planned]
            told = [await next_event(events) for _ in range(2)]
        assert [(event.queue, event.ids) for event in told] == [
            ("default", (ids[0], ids[2])),
            ("other", (ids[1],)),
        ]
        assert [call.ids for call in tracing.calls] == [[ids[0], ids[2]], [ids[1]]]
    assert await query(store_dsn, "select headers from tocsin.messages order by id") == [
        ({"trace": queue},) for queue in ("default", "other", "default")
    ]
