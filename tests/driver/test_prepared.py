"""Statements without a cursor."""

from __future__ import annotations

from itertools import count

import psycopg
import pytest
import trio
from cancel_sweep import cancel_sweep

from tocsin.driver.prepared import Prepared

from .helpers import Connection, is_idle, until_running, value


async def test_it_is_prepared_once_and_gives_rows(connection: Connection) -> None:
    for n in (b"1", b"22", None):
        rows = await connection.run_prepared(b"select $1::int * 2, $2", [n, "ü".encode()])
        assert rows.load(0, 1) == [(None if n is None else 2 * int(n), "ü")]
    assert await value(connection, "select count(*) from pg_prepared_statements where left(name, 7) = '_tocsin'") == 1


async def test_rows_are_loaded_as_they_are_asked_for(connection: Connection) -> None:
    rows = await connection.run_prepared(b"select n, n::text from generate_series(1, 5) n", [])
    assert len(rows) == 5
    assert rows.load(1, 3) == [(2, "2"), (3, "3")]
    assert rows.load(0, 0) == []


async def test_errors_are_psycopgs(connection: Connection) -> None:
    for _ in range(2):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.run_prepared(b"select 1 / $1::int", [b"0"])
        with pytest.raises(psycopg.errors.SyntaxError):
            await connection.run_prepared(b"nonsense", [])
    with pytest.raises(psycopg.DataError, match="NUL"):
        await connection.run_prepared(b"select $1", [b"a\0b"])
    assert await is_idle(connection)


async def test_a_commit_that_fails_after_the_rows_were_sent(connection: Connection) -> None:
    await connection.execute("create temp table parents (id int primary key)")
    await connection.execute("create temp table children (id int references parents deferrable initially deferred)")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await connection.run_prepared(b"insert into children values (1) returning id", [])
    assert len(await connection.run_prepared(b"select from children", [])) == 0


async def test_what_was_discarded_is_prepared_again(connection: Connection) -> None:
    for command in ("discard all", "deallocate all"):
        for _ in range(2):
            assert (await connection.run_prepared(b"select $1", [b"x"])).load(0, 1) == [("x",)]
        await connection.execute(command.encode())


async def test_where_nothing_stays_prepared_it_gives_up_preparing(connection: Connection) -> None:
    """As behind a pooler that runs each transaction on another connection."""
    prepared = "select count(*) from pg_prepared_statements where left(name, 7) = '_tocsin'"
    for _ in range(Prepared.GIVE_UP):
        assert (await connection.run_prepared(b"select $1", [b"x"])).load(0, 1) == [("x",)]
        assert await value(connection, prepared) == 1
        await connection.execute("deallocate all")
        assert (await connection.run_prepared(b"select $1", [b"x"])).load(0, 1) == [("x",)]
    assert (await connection.run_prepared(b"select $1", [b"x"])).load(0, 1) == [("x",)]
    assert await value(connection, prepared) == 0


async def test_cancelled_at_every_checkpoint_it_can_be_run_again(connection: Connection) -> None:
    statements = count()
    statement = b""

    async def run() -> None:
        nonlocal statement
        statement = b"select $1, %d" % next(statements)
        await connection.run_prepared(statement, [b"x"])

    async def check() -> None:
        assert await is_idle(connection)
        assert (await connection.run_prepared(statement, [b"x"])).load(0, 1)[0][0] == "x"

    assert await cancel_sweep(run, check)


async def test_cancelled_while_it_runs_it_is_cancelled_on_the_server(connection: Connection, observer: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run_prepared, b"select pg_sleep($1)", [b"1000"])
        await until_running(observer, "pg_sleep")
        nursery.cancel_scope.cancel()
    assert await is_idle(connection)
