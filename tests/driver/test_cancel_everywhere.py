"""Every operation, cancelled at every one of its checkpoints, leaves a connection that
is usable or closed.

And nothing else: no session on the server, no open file, no half of a transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import attrs
import psycopg
import pytest
import trio

from tests.driver.helpers import (
    SAFETY_NET,
    Connection,
    closing,
    is_idle,
    open_files,
    until,
    until_alone,
    value,
)
from tests.support.cancel_sweep import cancel_sweep
from tocsin.driver import TrioConnection, _waiting, open_pool


@pytest.fixture(autouse=True)
def _table(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table numbers (n int)")


@attrs.define
class Subject:
    """The connection that is used until it is closed, and then replaced."""

    dsn: str
    connection: Connection
    replaced: int = 0

    async def check(self) -> None:
        """Usable or closed, nothing in between; and usable again for the next run."""
        if self.connection.closed:
            self.connection = await TrioConnection.connect(self.dsn, autocommit=True)
            self.replaced += 1
        assert await is_idle(self.connection)


@pytest.fixture
async def subject(dsn: str) -> AsyncIterator[Subject]:
    subject = Subject(dsn, await TrioConnection.connect(dsn, autocommit=True))
    with trio.fail_after(SAFETY_NET):
        yield subject
    subject.connection.finish()


async def execute(connection: Connection) -> None:
    await connection.execute("select pg_sleep(0.001)")


async def prepared(connection: Connection) -> None:
    await connection.execute("select pg_sleep(%s)", (0.001,), prepare=True)


async def transaction(connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("insert into numbers values (1)")
        async with connection.transaction():
            await connection.execute("insert into numbers values (2)")
        await connection.execute("insert into numbers values (3)")


async def failing_transaction(connection: Connection) -> None:
    with suppress(psycopg.errors.DivisionByZero):
        async with connection.transaction():
            await connection.execute("insert into numbers values (1)")
            await connection.execute("select 1 / 0")


async def executemany(connection: Connection) -> None:
    async with connection.cursor() as cursor:
        await cursor.executemany("insert into numbers values (%s)", [(n,) for n in range(3)])


async def pipeline(connection: Connection) -> None:
    async with connection.pipeline() as pipeline:
        await connection.execute("insert into numbers values (1)")
        await connection.execute("insert into numbers values (2)")
        await pipeline.sync()
        await (await connection.execute("insert into numbers values (3) returning n")).fetchone()


async def transaction_in_pipeline(connection: Connection) -> None:
    async with connection.pipeline(), connection.transaction():
        for n in range(3):
            await connection.execute("insert into numbers values (%s)", (n,))


async def copy_in(connection: Connection) -> None:
    async with connection.cursor() as cursor, cursor.copy("copy numbers from stdin") as copy:
        for n in range(3):
            await copy.write_row((n,))
            await trio.lowlevel.checkpoint()


async def copy_out(connection: Connection) -> None:
    query = "copy (select generate_series(1, 20)) to stdout"
    async with (
        connection.cursor() as cursor,
        cursor.copy(query) as copy,
        closing(copy.rows()) as rows,
    ):
        async for _ in rows:
            await trio.lowlevel.checkpoint()


async def stream(connection: Connection) -> None:
    async with (
        connection.cursor() as cursor,
        closing(cursor.stream("select generate_series(1, 20)")) as rows,
    ):
        async for _ in rows:
            await trio.lowlevel.checkpoint()


async def server_side_cursor(connection: Connection) -> None:
    async with connection.transaction(), connection.cursor("pages") as cursor:
        await cursor.execute("select generate_series(1, 30)")
        cursor.itersize = 20
        async for _ in cursor:
            pass


# How many rows the operation inserts, all or none of them.
OPERATIONS: list[tuple[Callable[[Connection], Awaitable[None]], int]] = [
    (execute, 0),
    (prepared, 0),
    (transaction, 3),
    (failing_transaction, 0),
    # outside a transaction PostgreSQL may have committed the first of its statements
    (executemany, 0),
    (transaction_in_pipeline, 3),
    (copy_in, 3),
    (copy_out, 0),
    (stream, 0),
    (server_side_cursor, 0),
]


@pytest.mark.parametrize(
    ("operation", "rows"), [pytest.param(*each, id=each[0].__name__) for each in OPERATIONS]
)
async def test_usable_or_closed_and_all_or_nothing(
    operation: Callable[[Connection], Awaitable[None]],
    rows: int,
    subject: Subject,
    observer: Connection,
) -> None:
    async def check() -> None:
        await subject.check()
        if rows:
            assert await value(observer, "select count(*) from numbers") in (0, rows)
            await observer.execute("truncate numbers")

    assert await cancel_sweep(lambda: operation(subject.connection), check) >= 2
    subject.connection.finish()
    await until_alone(observer)


@pytest.mark.parametrize("operation", [executemany, pipeline, transaction_in_pipeline])
async def test_a_pipeline_that_is_left_at_any_checkpoint_reports_no_error_later(
    operation: Callable[[Connection], Awaitable[None]],
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine psycopg's generators can be left before they have sent all;
    they would fetch the results when the garbage collector closes them."""
    monkeypatch.setattr(_waiting, "MAX_TURN", 0.0)
    assert await cancel_sweep(lambda: operation(subject.connection), subject.check) >= 4


async def test_pipeline(subject: Subject, observer: Connection) -> None:
    # Its first part is a transaction of its own, so it may stay without the second.
    async def check() -> None:
        await subject.check()
        assert await value(observer, "select count(*) from numbers") in (0, 2, 3)
        await observer.execute("truncate numbers")

    assert await cancel_sweep(lambda: pipeline(subject.connection), check) >= 2
    assert subject.replaced
    subject.connection.finish()
    await until_alone(observer)


@pytest.mark.parametrize(
    "operation", [execute, prepared, transaction, copy_in, copy_out, stream, server_side_cursor]
)
async def test_a_session_survives(
    operation: Callable[[Connection], Awaitable[None]], subject: Subject
) -> None:
    await cancel_sweep(lambda: operation(subject.connection), subject.check)
    assert not subject.replaced


async def test_connect(dsn: str, observer: Connection) -> None:
    async def connect() -> None:
        async with await TrioConnection.connect(dsn, autocommit=True) as connection:
            await connection.execute("select 1")

    await connect()
    before = open_files()

    async def check() -> None:
        assert open_files() == before

    with trio.fail_after(SAFETY_NET):
        assert await cancel_sweep(connect, check) >= 4
        await until_alone(observer)


async def test_pool(dsn: str, observer: Connection) -> None:
    async def check_out() -> None:
        async with pool.connection() as connection:
            await connection.execute("select 1")

    async def check_out_both() -> None:
        async with pool.connection() as connection, pool.connection() as other:
            await connection.execute("begin")
            await other.execute("select 1")

    async def check() -> None:
        statistics = pool.statistics()
        assert statistics.in_use == statistics.waiting == 0
        assert statistics.size == statistics.idle <= 2
        await until(
            observer,
            "select count(*) <= 2 from pg_stat_activity where datname = current_database()"
            " and backend_type = 'client backend' and pid <> pg_backend_pid()",
        )
        await check_out()

    def connect() -> Awaitable[Connection]:
        return TrioConnection.connect(dsn, autocommit=True)

    with trio.fail_after(SAFETY_NET):
        for operation in (check_out, check_out_both):
            # With no idle connection to begin with, a pool opens one in each run that
            # is cancelled in time.
            async with open_pool(connect, min_size=0, max_size=2) as pool:
                assert await cancel_sweep(operation, check) >= 3
                # Both slots are there.
                await check_out_both()
        await until_alone(observer)


async def test_pool_being_opened_and_closed(dsn: str, observer: Connection) -> None:
    async def live() -> None:
        async with (
            open_pool(lambda: TrioConnection.connect(dsn, autocommit=True), min_size=2) as pool,
            pool.connection() as connection,
        ):
            await connection.execute("select 1")

    await live()
    before = open_files()

    async def check() -> None:
        assert open_files() == before

    with trio.fail_after(SAFETY_NET):
        assert await cancel_sweep(live, check) >= 4
        await until_alone(observer)


async def test_pool_with_other_tasks_waiting(dsn: str, observer: Connection) -> None:
    async def check_out() -> None:
        async with pool.connection() as connection:
            await connection.execute("select pg_sleep(0.001)")

    async def crowd() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(check_out)
            await check_out()

    async def check() -> None:
        statistics = pool.statistics()
        assert statistics.in_use == statistics.waiting == 0
        assert statistics.size == statistics.idle == 1

    async with open_pool(lambda: TrioConnection.connect(dsn, autocommit=True), max_size=1) as pool:
        with trio.fail_after(SAFETY_NET):
            assert await cancel_sweep(crowd, check) >= 4
    await until_alone(observer)


async def test_pool_where_the_server_gives_no_more(dsn: str, observer: Connection) -> None:
    opened: list[Connection] = []

    async def connect() -> Connection:
        if opened and not opened[-1].closed:
            await trio.lowlevel.checkpoint()
            raise psycopg.OperationalError("no more")
        opened.append(connection := await TrioConnection.connect(dsn, autocommit=True))
        return connection

    async def check_out() -> None:
        async with pool.connection() as connection:
            await connection.execute("select pg_sleep(0.001)")

    async def crowd() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(check_out)
            await check_out()

    async def check() -> None:
        statistics = pool.statistics()
        assert statistics.in_use == statistics.waiting == 0
        assert statistics.size == statistics.idle == 1

    async with open_pool(connect, max_size=4) as pool:
        with trio.fail_after(SAFETY_NET):
            assert await cancel_sweep(crowd, check) >= 4
    await until_alone(observer)
