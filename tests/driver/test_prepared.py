"""Statements without a cursor, alone and several in one request."""

from __future__ import annotations

from itertools import count

import psycopg
import pytest
import trio

from tests.driver.helpers import Connection, is_idle, until_alone, until_running, value
from tests.support.cancel_sweep import cancel_sweep
from tests.support.sweeps import sweep
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin.driver._prepared import Prepared, Statement


async def test_a_statement_is_prepared_once_and_gives_rows(connection: Connection) -> None:
    for n in (b"1", b"22", None):
        rows = await connection.run_prepared(b"select $1::int * 2, $2", [n, "ü".encode()])
        assert rows.load(0, 1) == [(None if n is None else 2 * int(n), "ü")]
    assert (
        await value(
            connection,
            "select count(*) from pg_prepared_statements where left(name, 7) = '_tocsin'",
        )
        == 1
    )


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
    await connection.execute(
        "create temp table children (id int references parents deferrable initially deferred)"
    )
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await connection.run_prepared(b"insert into children values (1) returning id", [])
    assert len(await connection.run_prepared(b"select from children", [])) == 0


async def test_what_was_discarded_is_prepared_again(connection: Connection) -> None:
    for command in ("discard all", "deallocate all"):
        for _ in range(2):
            assert (await connection.run_prepared(b"select $1", [b"x"])).load(0, 1) == [("x",)]
        await connection.execute(command.encode())


async def test_a_connection_where_nothing_stays_prepared_gives_up_preparing(
    connection: Connection,
) -> None:
    """A pooler that runs each transaction on another connection has this effect."""
    prepared = "select count(*) from pg_prepared_statements where left(name, 7) = '_tocsin'"
    for _ in range(Prepared.GIVE_UP):
        assert (await connection.run_prepared(b"select $1", [b"x"])).load(0, 1) == [("x",)]
        assert await value(connection, prepared) == 1
        await connection.execute("deallocate all")
        assert (await connection.run_prepared(b"select $1", [b"x"])).load(0, 1) == [("x",)]
    assert (await connection.run_prepared(b"select $1", [b"x"])).load(0, 1) == [("x",)]
    assert await value(connection, prepared) == 0


async def test_a_statement_cancelled_at_every_checkpoint_can_be_run_again(
    connection: Connection,
) -> None:
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


async def test_a_statement_cancelled_while_it_runs_is_cancelled_on_the_server(
    connection: Connection, observer: Connection
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run_prepared, b"select pg_sleep($1)", [b"1000"])
        await until_running(observer, "pg_sleep")
        nursery.cancel_scope.cancel()
    assert await is_idle(connection)


# Several in one request

BEGIN: Statement = (b"begin", ())
COMMIT: Statement = (b"commit", ())
XID = b"select pg_current_xact_id()::text"
INSERT = b"insert into notes values ($1)"


def in_two(first: bytes, second: bytes) -> list[Statement]:
    """Two statements that note something, each in a transaction of its own."""
    return [BEGIN, (INSERT, [first]), COMMIT, (INSERT, [second])]


@pytest.fixture
async def notes(connection: Connection) -> Connection:
    """The connection, with a table of which psycopg knows nothing."""
    await connection.execute("create table notes (note text)")
    return connection


async def noted(connection: Connection) -> list[str]:
    return list(await value(connection, "select coalesce(array_agg(note), '{}') from notes"))


async def test_the_rows_of_one_of_them_are_the_answer(connection: Connection) -> None:
    statements: list[Statement] = [
        (b"select $1", [b"x"]),
        (b"select n from generate_series(1, 9) n", []),
        (b"select 1 where false", []),
    ]
    for _ in range(2):
        assert (await connection.run_together(statements, 0, 9)).load(0, 1) == [("x",)]
        assert len(await connection.run_together(statements, 1, 9)) == 9
        assert len(await connection.run_together(statements, 2, 9)) == 0
        assert await is_idle(connection)


async def test_the_transactions_are_as_they_say(notes: Connection) -> None:
    statements: list[Statement] = [
        BEGIN,
        (XID, []),
        (XID, []),
        (b"commit and chain", ()),
        (XID, []),
        COMMIT,
        (XID, []),
    ]
    xids = [(await notes.run_together(statements, n, 9)).load(0, 1)[0][0] for n in (1, 2, 4, 6)]
    assert len(set(xids)) == 4
    await notes.run_together(
        [*in_two(b"a", b"b"), (b"select pg_current_xact_id_if_assigned() is null", [])], 4, 9
    )
    assert await noted(notes) == ["a", "b"]


@pytest.mark.parametrize(
    ("statements", "kept"),
    [
        ([BEGIN, (INSERT, [b"a"]), (b"select 1 / $1::int", [b"0"]), COMMIT, (INSERT, [b"b"])], []),
        (
            [BEGIN, (INSERT, [b"a"]), COMMIT, (INSERT, [b"b"]), (b"select 1 / $1::int", [b"0"])],
            ["a"],
        ),
        (
            [
                BEGIN,
                (INSERT, [b"a"]),
                (b"commit and chain", ()),
                (INSERT, [b"b"]),
                (b"select 1 / $1::int", [b"0"]),
                COMMIT,
            ],
            ["a"],
        ),
    ],
)
async def test_nothing_is_run_behind_an_error(
    notes: Connection, statements: list[Statement], kept: list[str]
) -> None:
    for n in (1, 2):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await notes.run_together(statements, 0, 9)
        assert await is_idle(notes)
        assert await noted(notes) == n * kept


async def test_an_error_behind_what_settles_it(notes: Connection) -> None:
    for settled, error in (
        (3, psycopg.errors.DivisionByZero),
        (2, psycopg.errors.TransactionResolutionUnknown),
    ):
        with pytest.raises(error, match="division by zero"):
            await notes.run_together(
                [BEGIN, (INSERT, [b"a"]), COMMIT, (b"select 1 / $1::int", [b"0"])], 1, settled
            )
        assert await is_idle(notes)
    assert await noted(notes) == ["a", "a"]


async def test_a_commit_among_them_that_fails(connection: Connection) -> None:
    await connection.execute("create temp table parents (id int primary key)")
    await connection.execute(
        "create temp table children (id int references parents deferrable initially deferred)"
    )
    insert: Statement = (b"insert into children values (1) returning id", ())
    for statements in ([BEGIN, insert, COMMIT, insert], [insert]):
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            await connection.run_together(statements, 0, 9)
        assert await is_idle(connection)
    assert await value(connection, "select count(*) from children") == 0


async def test_what_cannot_be_sent_or_prepared_is_refused_before_anything_is_run(
    notes: Connection,
) -> None:
    with pytest.raises(psycopg.DataError, match="NUL"):
        await notes.run_together(in_two(b"a", b"\0"), 0, 9)
    with pytest.raises(psycopg.errors.SyntaxError):
        await notes.run_together([*in_two(b"a", b"b"), (b"nonsense", [])], 0, 9)
    assert await noted(notes) == []
    assert await is_idle(notes)


async def test_all_are_prepared_again_when_they_were_discarded(notes: Connection) -> None:
    for n, command in enumerate(("discard all", "deallocate all"), 1):
        await notes.run_together(in_two(b"a", b"b"), 0, 9)
        await notes.execute(command.encode())
        await notes.run_together(in_two(b"a", b"b"), 0, 9)
        assert len(await noted(notes)) == 4 * n


async def test_nothing_is_run_twice_when_only_one_was_forgotten(notes: Connection) -> None:
    await notes.run_together(in_two(b"a", b"b"), 0, 9)
    name = await value(notes, "select name from pg_prepared_statements where statement = 'commit'")
    await notes.execute(f"deallocate {name}".encode())
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        await notes.run_together(in_two(b"c", b"d"), 0, 9)
    assert await noted(notes) == ["a", "b"]
    assert await is_idle(notes)


@pytest.mark.slow
async def test_more_than_the_sockets_take_at_once(notes: Connection) -> None:
    large = b"x" * 20_000_000
    rows = await notes.run_together(
        [(b"select $1", [large]), *in_two(large, large), (b"select $1", [large])], 0, 9
    )
    assert rows.load(0, 1) == [(large.decode(),)]
    assert await value(notes, "select sum(octet_length(note)) from notes") == 2 * len(large)


async def test_cancelled_at_every_checkpoint_the_connection_is_usable_and_each_transaction_whole(
    notes: Connection,
) -> None:
    statements = count()

    async def run() -> None:
        # prepared again each time
        await notes.run_together([*in_two(b"a", b"b"), (b"select %d" % next(statements), [])], 0, 9)

    async def check() -> None:
        assert await is_idle(notes)
        assert (await noted(notes)).count("b") <= (await noted(notes)).count("a")

    assert await cancel_sweep(run, check)
    assert await noted(notes)


@pytest.mark.parametrize(("held", "kept"), [(1, []), (4, ["a"])])
async def test_cancelled_while_they_run_the_one_that_runs_is_cancelled_on_the_server(
    notes: Connection, observer: Connection, held: int, kept: list[str]
) -> None:
    statements = in_two(b"a", b"b")
    statements.insert(held, (b"select pg_sleep($1)", [b"1000"]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.run_together, statements, 0, 9)
        await until_running(observer, "pg_sleep")
        nursery.cancel_scope.cancel()
    assert await is_idle(notes)
    assert await noted(notes) == kept


@pytest.mark.parametrize("held", [1, 4])
async def test_lost_while_they_run(notes: Connection, observer: Connection, held: int) -> None:
    statements = in_two(b"a", b"b")
    statements.insert(held, (b"select pg_sleep($1)", [b"1000"]))
    with pytest.raises(psycopg.OperationalError):
        async with open_nursery_bare() as nursery:
            nursery.start_soon(notes.run_together, statements, 0, 9)
            await until_running(observer, "pg_sleep")
            await observer.execute("select pg_terminate_backend(%s)", [notes.info.backend_pid])
    assert notes.closed
    await until_alone(observer)
    assert await value(observer, "select count(*) from notes") == (held == 4)


@sweep("together", [False, True], quick=1)
async def test_cancelled_at_every_checkpoint_of_sending_much_the_connection_is_usable(
    notes: Connection, together: bool
) -> None:
    large = b"x" * 5_000_000

    async def run() -> None:
        if together:
            await notes.run_together(in_two(large, b"b"), 0, 9)
        else:
            await notes.run_prepared(INSERT, [large])

    async def check() -> None:
        assert await is_idle(notes)

    assert await cancel_sweep(run, check)
