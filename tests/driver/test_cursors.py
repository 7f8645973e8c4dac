"""What psycopg promises about cursors, rows and types holds on trio."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from decimal import Decimal

import attrs
import psycopg
import pytest
import trio
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from tests.driver.helpers import Connection, closing, is_idle, value
from tocsin.driver import TrioConnection


async def test_rows_come_back_in_order(connection: Connection) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute("select n, 'row ' || n from generate_series(1, 5) n")
        assert cursor.rowcount == 5
        assert await cursor.fetchone() == (1, "row 1")
        assert await cursor.fetchmany(2) == [(2, "row 2"), (3, "row 3")]
        assert [row async for row in cursor] == [(4, "row 4"), (5, "row 5")]


async def test_types_survive_the_round_trip(connection: Connection) -> None:
    values = (
        1,
        "ä",
        b"\x00\xff",
        True,
        None,
        Decimal("1.50"),
        uuid.uuid4(),
        datetime(2026, 11, 22, 4, 6, 15, 123456, tzinfo=UTC),
        [1, 2, 3],
    )
    columns = "%s, %s::text, %s::bytea, %s, %s::text, %s, %s, %s, %s::int[]"
    for binary in (False, True):
        cursor = await connection.execute(
            f"select {columns}, %s::jsonb".encode(), (*values, Jsonb({"a": [1]})), binary=binary
        )
        assert await cursor.fetchone() == (*values, {"a": [1]})


@attrs.frozen
class Point:
    x: int
    y: int


async def test_row_factories(dsn: str, connection: Connection) -> None:
    async with connection.cursor(row_factory=class_row(Point)) as cursor:
        assert await (await cursor.execute("select 1 as x, 2 as y")).fetchone() == Point(1, 2)
    async with await TrioConnection.connect(dsn, row_factory=dict_row) as other:
        assert await (await other.execute("select 1 as x")).fetchone() == {"x": 1}


async def test_executemany_returns_every_result(connection: Connection) -> None:
    await connection.execute("create table numbers (n int)")
    async with connection.cursor() as cursor:
        await cursor.executemany(
            "insert into numbers values (%s) returning n * 2",
            [(n,) for n in range(100)],
            returning=True,
        )
        doubled = [await result.fetchone() async for result in cursor.results()]
    assert doubled == [(2 * n,) for n in range(100)]
    assert await value(connection, "select count(*) from numbers") == 100


async def test_repeated_statements_are_prepared(connection: Connection) -> None:
    for n in range(10):
        assert await value(connection, "select %s::int + 1", (n,)) == n + 1
    assert (
        await value(
            connection, "select count(*) from pg_prepared_statements where statement like '%%+ 1%%'"
        )
        == 1
    )


async def test_server_side_cursor_fetches_in_pages(connection: Connection) -> None:
    async with connection.transaction(), connection.cursor("pages") as cursor:
        cursor.itersize = 10
        await cursor.execute("select generate_series(1, 25)")
        assert [row[0] async for row in cursor] == list(range(1, 26))


async def test_stream_gives_rows_one_by_one(connection: Connection) -> None:
    async with connection.cursor() as cursor:
        assert [row[0] async for row in cursor.stream("select generate_series(1, 1000)")] == list(
            range(1, 1001)
        )


async def test_stream_left_early_leaves_the_connection_usable(connection: Connection) -> None:
    async with (
        connection.cursor() as cursor,
        closing(cursor.stream("select generate_series(1, 1000000)")) as rows,
    ):
        async for _ in rows:
            break
    assert await is_idle(connection)


async def test_errors_are_psycopgs(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.execute("select 1 / 0")
    assert await is_idle(connection)


async def test_statements_of_several_tasks_take_turns(connection: Connection) -> None:
    seen: list[int] = []

    async def ask(n: int) -> None:
        seen.append(await value(connection, "select %s::int", (n,)))

    async with trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(ask, n)
    assert sorted(seen) == list(range(50))
