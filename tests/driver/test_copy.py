"""COPY in both directions, with rows and with large buffers."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import trio
from psycopg.copy import AsyncLibpqWriter, AsyncQueuedLibpqWriter

from tests.driver.helpers import Connection, closing, is_idle, until_running, value

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _table(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table items (n int, t text)")


async def test_rows_in_and_out(connection: Connection) -> None:
    rows = [(1, "a\tb"), (2, None), (3, "\\")]
    async with connection.cursor() as cursor:
        async with cursor.copy("copy items from stdin") as copy:
            for row in rows:
                await copy.write_row(row)
        assert cursor.rowcount == 3
        async with cursor.copy("copy items to stdout") as copy:
            copy.set_types(["int4", "text"])
            async with closing(copy.rows()) as received:
                assert [row async for row in received] == rows
    assert await is_idle(connection)


async def test_large_buffers_in_and_out(connection: Connection) -> None:
    line = b"1\t" + b"x" * (MEGABYTE - 3) + b"\n"
    async with connection.cursor() as cursor:
        async with cursor.copy("copy items from stdin") as copy:
            await copy.write(line * 20)
        async with cursor.copy("copy items to stdout") as copy:
            received = 0
            while data := await copy.read():
                received += len(data)
    assert received == 20 * MEGABYTE


async def test_large_parameters(connection: Connection) -> None:
    # More than the socket takes at once: psycopg waits for "readable or writable".
    assert await value(connection, "select length(%s)", ("x" * (20 * MEGABYTE),)) == 20 * MEGABYTE


async def test_other_tasks_run_during_a_long_copy(connection: Connection) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with connection.cursor() as cursor, cursor.copy("copy items from stdin") as copy:
            for n in range(200_000):
                await copy.write_row((n, "x"))
        nursery.cancel_scope.cancel()
    assert ticks > 10


async def test_an_error_in_the_block_fails_the_copy(connection: Connection) -> None:
    async def write() -> None:
        async with connection.cursor() as cursor, cursor.copy("copy items from stdin") as copy:
            await copy.write_row((1, "a"))
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await write()
    assert await value(connection, "select count(*) from items") == 0
    assert await is_idle(connection)


async def test_bad_data_is_an_error_at_the_end(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        async with connection.cursor() as cursor, cursor.copy("copy items from stdin") as copy:
            await copy.write("not a number\ta\n")
    assert await is_idle(connection)


async def test_reading_stopped_early(connection: Connection) -> None:
    async def read() -> None:
        query = "copy (select generate_series(1, 1000000)) to stdout"
        async with connection.cursor() as cursor, cursor.copy(query) as copy:
            await copy.read()
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await read()
    assert await is_idle(connection)


async def test_cancelled_while_the_server_is_busy_with_the_rows(
    connection: Connection, observer: Connection
) -> None:
    await connection.execute("""
        create function doze() returns trigger language plpgsql as $$
            begin perform pg_sleep(60); return new; end $$;
        create trigger doze before insert on items for each row execute function doze()
        """)

    async def write() -> None:
        with scope:
            async with connection.cursor() as cursor, cursor.copy("copy items from stdin") as copy:
                await copy.write_row((1, "a"))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await until_running(observer, "copy items from")
        scope.cancel()
    assert scope.cancelled_caught
    assert await value(observer, "select count(*) from items") == 0
    assert await is_idle(connection)


@pytest.mark.parametrize(
    "make", [psycopg.AsyncCursor, psycopg.AsyncRawCursor, psycopg.AsyncClientCursor]
)
async def test_a_writer_that_needs_asyncio_is_refused_before_the_copy_begins(
    make: type[psycopg.AsyncCursor[Any]], connection: Connection
) -> None:
    class OnesOwn(AsyncQueuedLibpqWriter):
        pass

    for writer in (AsyncQueuedLibpqWriter, OnesOwn):
        cursor = make(connection)
        with pytest.raises(psycopg.NotSupportedError, match="AsyncLibpqWriter"):
            async with cursor.copy("copy items from stdin", writer=writer(cursor)):
                pytest.fail("the COPY has begun")
        assert await is_idle(connection)


async def test_the_other_writer_is_not_refused(connection: Connection) -> None:
    cursor = connection.cursor()
    async with cursor.copy("copy items from stdin", writer=AsyncLibpqWriter(cursor)) as copy:
        await copy.write_row((1, "a"))
    assert await value(connection, "select count(*) from items") == 1
