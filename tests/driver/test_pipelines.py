"""Pipeline mode gives the right results, and does not starve other tasks."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest
import trio

from tests.driver.helpers import Connection, is_idle, value


async def test_results_belong_to_their_statements(connection: Connection) -> None:
    async with connection.pipeline():
        cursors = [await connection.execute("select %s::int", (n,)) for n in range(2000)]
        assert [(await cursor.fetchone()) for cursor in cursors] == [(n,) for n in range(2000)]
    assert await is_idle(connection)


async def test_more_than_the_sockets_take(connection: Connection) -> None:
    # Both sides have to read while they write, or neither gets on.
    text = "x" * 200_000
    async with connection.pipeline():
        cursors = [await connection.execute("select %s::text", (text,)) for _ in range(50)]
        for cursor in cursors:
            assert await cursor.fetchone() == (text,)
    assert await is_idle(connection)


async def test_an_error_aborts_up_to_the_next_sync(connection: Connection) -> None:
    async def fail(pipeline: psycopg.AsyncPipeline) -> None:
        await connection.execute("select 1")
        await connection.execute("select 1 / 0")
        await connection.execute("create table never (n int)")
        await pipeline.sync()

    async with connection.pipeline() as pipeline:
        # When the error comes back is a matter of chance; at the sync at the latest.
        with pytest.raises(psycopg.errors.DivisionByZero):
            await fail(pipeline)
        with suppress(psycopg.errors.PipelineAborted):
            await pipeline.sync()
        assert await value(connection, "select to_regclass('never') is null")
    assert await is_idle(connection)


async def test_a_transaction_in_a_pipeline(connection: Connection) -> None:
    await connection.execute("create table numbers (n int)")
    async with connection.pipeline(), connection.transaction():
        for n in range(10):
            await connection.execute("insert into numbers values (%s)", (n,))
    assert await value(connection, "select count(*) from numbers") == 10

    async def think_better_of_it() -> None:
        async with connection.pipeline(), connection.transaction():
            await connection.execute("delete from numbers")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await think_better_of_it()
    assert await value(connection, "select count(*) from numbers") == 10
    assert await is_idle(connection)


async def test_other_tasks_run_during_a_long_pipeline(connection: Connection) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with connection.pipeline():
            for _ in range(10_000):
                await connection.execute("select 1")
        nursery.cancel_scope.cancel()
    assert ticks > 10
