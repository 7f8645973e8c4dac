"""Enqueueing in the caller's transaction: blocking psycopg, psycopg on asyncio and on
trio, with and without a store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

import tocsin
from bench import proxy
from tests.support import PATIENCE, connect_blocking, open_connection, query, until_blocked
from tests.support.cancel_sweep import cancel_sweep
from tests.support.runs import running
from tocsin.driver import TrioConnection

Blocking = psycopg.Connection[Any]
Async = psycopg.AsyncConnection[Any]

PAYLOADS = "select payload from tocsin.messages order by id"
IDLE, INTRANS, INERROR = (
    TransactionStatus.IDLE,
    TransactionStatus.INTRANS,
    TransactionStatus.INERROR,
)


class Through:
    """The two functions on one of the kinds of connections, called from a test that is
    neither."""

    def __init__(self, kind: str, dsn: str) -> None:
        self._kind = kind
        self._dsn = dsn

    def run(
        self, body: Callable[[Blocking | Async, Session], Awaitable[None]], **options: Any
    ) -> None:
        """Run the body with a connection that is not in autocommit mode, and close
        that; what is open then is rolled back."""

        async def with_async(connect: Callable[..., Awaitable[Async]]) -> None:
            connection = await connect(self._dsn, **options)
            try:
                await body(connection, Session(connection))
            finally:
                await connection.close()

        if self._kind == "blocking":
            connection = psycopg.connect(self._dsn, **options)
            try:
                drive(body(connection, Session(connection)))
            finally:
                connection.close()
        elif self._kind == "asyncio":
            asyncio.run(with_async(psycopg.AsyncConnection.connect))
        else:
            trio.run(with_async, TrioConnection.connect)


def drive(body: Awaitable[object]) -> None:
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration):
        body.__await__().__next__()


class Session:
    """The same calls for each kind."""

    def __init__(self, connection: Blocking | Async) -> None:
        self._connection = connection

    async def enqueue(self, *arguments: Any, **options: Any) -> int:
        if isinstance(self._connection, psycopg.Connection):
            return tocsin.enqueue(self._connection, *arguments, **options)
        return await tocsin.enqueue_async(self._connection, *arguments, **options)

    async def enqueue_many(self, *arguments: Any, **options: Any) -> list[int]:
        if isinstance(self._connection, psycopg.Connection):
            return tocsin.enqueue_many(self._connection, *arguments, **options)
        return await tocsin.enqueue_many_async(self._connection, *arguments, **options)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of psycopg's."""
        result = getattr(self._connection, method)(*arguments)
        return result if isinstance(self._connection, psycopg.Connection) else await result

    @property
    def status(self) -> TransactionStatus:
        return self._connection.info.transaction_status


@pytest.fixture(params=["blocking", "asyncio", "trio"])
def through(request: pytest.FixtureRequest, store_dsn: str) -> Through:
    """Each kind of connection, to a database with a queue."""
    with connect_blocking(store_dsn) as connection:
        connection.execute("select tocsin.ensure_queue('q', max_payload => 1000)")
    return Through(request.param, store_dsn)


def rows(dsn: str, statement: str = PAYLOADS) -> list[tuple[Any, ...]]:
    with connect_blocking(dsn) as connection:
        return connection.execute(statement.encode()).fetchall()


def test_in_the_callers_own_transaction_enqueued_when_that_commits(
    through: Through, store_dsn: str
) -> None:
    async def body(_: object, session: Session) -> None:
        await session.enqueue("q", "rolled back")
        await session.enqueue_many("q", ["rolled back"] * 5000)
        await session.call("rollback")
        # the first statement of its transaction
        await session.enqueue_many("q", ["rolled back", "too"])
        await session.call("rollback")
        first = await session.enqueue("q", "a")
        assert await session.enqueue_many("q", (n for n in range(5000))) == [
            *range(first + 1, first + 5001)
        ]
        assert session.status == INTRANS
        assert rows(store_dsn) == []
        await session.call("commit")
        assert rows(store_dsn) == [("a",), *((n,) for n in range(5000))]
        await session.enqueue("q", "left behind")

    through.run(body)
    assert len(rows(store_dsn)) == 5001


def test_each_call_is_a_transaction_of_its_own_with_autocommit(
    through: Through, store_dsn: str
) -> None:
    async def body(_: object, session: Session) -> None:
        await session.enqueue("q", 1)
        assert rows(store_dsn) == [(1,)]
        await session.enqueue_many("q", [2, 3])
        assert rows(store_dsn) == [(1,), (2,), (3,)]
        with pytest.raises(tocsin.PayloadTooLarge):
            await session.enqueue_many("q", [*range(4500), "x" * 1000])
        assert session.status == IDLE
        assert len(rows(store_dsn)) == 3
        assert len(await session.enqueue_many("q", range(4500))) == 4500
        assert len(rows(store_dsn)) == 4503

    through.run(body, autocommit=True)


def test_the_options_are_those_of_a_producer(through: Through, store_dsn: str) -> None:
    at = datetime(2100, 1, 1, tzinfo=UTC)

    async def body(_: object, session: Session) -> None:
        first = await session.enqueue(
            "q", 1, key="k", priority=3, headers={"h": 1}, expires_in=60, max_deliveries=2
        )
        assert await session.enqueue("q", 2, key="k") == first
        await session.enqueue("q", 3, at=at)
        await session.enqueue_many(
            "q", [4], delay=3600, priority=-1, headers=["h"], expires_in=60, max_deliveries=2
        )
        await session.call("commit")

    through.run(body)
    assert rows(
        store_dsn,
        "select payload, key, priority, headers, expires_at - enqueued_at = '1 min',"
        " max_deliveries, state::text, due = '2100-01-01 UTC', due - enqueued_at = '1 h',"
        " producer_worker_id from tocsin.messages order by payload",
    ) == [
        (1, "k", 3, {"h": 1}, True, 2, "ready", False, False, None),
        (3, None, 0, None, None, None, "delayed", True, False, None),
        (4, None, -1, ["h"], True, 2, "delayed", False, True, None),
    ]


def test_what_is_wrong_is_refused_before_anything_is_sent(through: Through) -> None:
    async def body(_: object, session: Session) -> None:
        with pytest.raises(tocsin.PayloadInvalid) as refused:
            await session.enqueue("q", {"a": {1}})
        assert refused.value.path == "$.a"
        with pytest.raises(tocsin.PayloadInvalid) as refused:
            await session.enqueue_many("q", [1, {2}])
        assert refused.value.index == 1
        with pytest.raises(ValueError, match="delay"):
            await session.enqueue("q", 1, delay=-1)
        with pytest.raises(tocsin.ConfigError, match="not a valid name"):
            await session.enqueue("q", 1, schema="no such; --")
        with pytest.raises(TypeError, match="delai"):
            await session.enqueue("q", 1, delai=1)
        with pytest.raises(TypeError, match="key"):
            await session.enqueue_many("q", [1], key="k")
        assert session.status == IDLE

    through.run(body)


def test_a_refused_message_fails_the_transaction(through: Through, store_dsn: str) -> None:
    async def body(_: object, session: Session) -> None:
        await session.enqueue("q", 1)
        with pytest.raises(tocsin.QueueNotFound) as unknown:
            await session.enqueue("nothing", 2)
        assert unknown.value.queue == "nothing"
        assert session.status == INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await session.enqueue("q", 3)
        await session.call("rollback")
        with pytest.raises(tocsin.PayloadTooLarge) as large:
            await session.enqueue("q", "x" * 1000)
        assert (large.value.actual, large.value.maximum) == (1002, 1000)

    through.run(body)
    assert rows(store_dsn) == []


def test_after_a_refused_batch_the_transaction_goes_on(through: Through, store_dsn: str) -> None:
    def payloads() -> Iterator[object]:
        yield from range(4500)
        raise LookupError

    async def body(_: object, session: Session) -> None:
        await session.enqueue("q", "before")
        with pytest.raises(tocsin.PayloadTooLarge) as large:
            await session.enqueue_many("q", [*range(4500), "x" * 1000])
        assert large.value.index == 4500
        with pytest.raises(tocsin.QueueNotFound):
            await session.enqueue_many("nothing", [1])
        with pytest.raises(tocsin.PayloadInvalid) as invalid:
            await session.enqueue_many("q", [*range(4500), {1}])
        assert invalid.value.index == 4500
        with pytest.raises(LookupError):
            await session.enqueue_many("q", payloads())
        assert session.status == INTRANS
        await session.enqueue("q", "after")
        await session.call("commit")

    through.run(body)
    assert rows(store_dsn) == [("before",), ("after",)]


def test_the_connections_own_factories_do_not_count(through: Through, store_dsn: str) -> None:
    async def body(connection: Blocking | Async, session: Session) -> None:
        connection.row_factory = dict_row
        raw = (
            psycopg.RawCursor
            if isinstance(connection, psycopg.Connection)
            else psycopg.AsyncRawCursor
        )
        connection.cursor_factory = raw
        first = await session.enqueue("q", 1)
        assert await session.enqueue_many("q", [2, 3]) == [first + 1, first + 2]
        await session.call("commit")

    through.run(body)
    assert len(rows(store_dsn)) == 3


def test_a_schema_that_is_not_there_is_named(through: Through, store_dsn: str) -> None:
    async def body(_: object, session: Session) -> None:
        for schema in ("elsewhere", "empty"):
            for attempt in (
                partial(session.enqueue, "q", 1),
                partial(session.enqueue_many, "q", [1]),
            ):
                with pytest.raises(tocsin.SchemaMissing) as missing:
                    await attempt(schema=schema)
                assert missing.value.schema == schema
                await session.call("rollback")

    with connect_blocking(store_dsn) as connection:
        connection.execute("create schema empty")
    through.run(body)


def test_another_schema(through: Through, store_dsn: str) -> None:
    async def install() -> None:
        async with tocsin.connect(store_dsn, schema="Other") as store:
            await store.install()
            await store.queues.ensure("q")

    async def body(_: object, session: Session) -> None:
        await session.enqueue("q", 1, schema="Other")
        await session.enqueue_many("q", [2], schema="Other")
        await session.call("commit")

    trio.run(install)
    through.run(body)
    assert rows(store_dsn) == []
    assert rows(store_dsn, 'select payload from "Other".messages order by id') == [(1,), (2,)]


def test_a_function_of_the_users_that_is_missing_is_not_tocsins(
    through: Through, store_dsn: str
) -> None:
    async def body(_: object, session: Session) -> None:
        with pytest.raises(psycopg.errors.UndefinedFunction, match="forgotten"):
            await session.enqueue("q", 1)

    with connect_blocking(store_dsn) as connection:
        connection.execute(
            "create function mine() returns trigger language plpgsql as $$ begin perform"
            " forgotten(); return new; end $$;create trigger mine before insert on tocsin.messages"
            " for each row execute function mine()"
        )
    through.run(body)


def test_a_lost_connection_says_so(through: Through, store_dsn: str) -> None:
    async def body(connection: Blocking | Async, session: Session) -> None:
        with connect_blocking(store_dsn) as other:
            other.execute("select pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
        for attempt in (partial(session.enqueue, "q", 1), partial(session.enqueue_many, "q", [1])):
            # at first, and then for a connection that is known to be closed
            with pytest.raises(tocsin.ConnectionLost):
                await attempt()

    through.run(body)


def test_the_wrong_kind_of_connection_is_named(store_dsn: str) -> None:
    async def on_asyncio() -> None:
        async with await psycopg.AsyncConnection.connect(store_dsn) as connection:
            with pytest.raises(
                TypeError,
                match=r"psycopg\.Connection, not a AsyncConnection; use tocsin\.enqueue_async",
            ):
                tocsin.enqueue(connection, "q", 1)  # type: ignore[arg-type]

    asyncio.run(on_asyncio())
    with connect_blocking(store_dsn) as connection:
        for attempt in (
            tocsin.enqueue_async(connection, "q", 1),  # type: ignore[arg-type]
            tocsin.enqueue_many_async(connection, "q", [1]),  # type: ignore[arg-type]
        ):
            with pytest.raises(
                TypeError, match=r"psycopg\.AsyncConnection, not a Connection; use tocsin\.enqueue "
            ):
                drive(attempt)
    with pytest.raises(TypeError, match=r"not a str$"):
        tocsin.enqueue_many(store_dsn, "q", [1])  # type: ignore[arg-type]


# A producer that is given a connection


async def test_a_producer_enqueues_on_a_blocking_connection(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    with psycopg.connect(store_dsn) as connection:
        async with (
            store.producer("q") as producer,
            store.consumer("q") as consumer,
            running(consumer) as run,
        ):
            await producer.enqueue("rolled back", connection=connection)
            await producer.enqueue_many(["rolled back"] * 5000, connection=connection)
            connection.rollback()
            await producer.enqueue("a", connection=connection)
            await producer.enqueue_many(["b", "c"], connection=connection)
            await store.produce("q", "d", connection=connection)
            assert run.handled.messages == []
            connection.commit()
            await run.handled.wait(4)
        assert run.handled.payloads == ["a", "b", "c", "d"]
        assert [m.producer_worker_id for m in run.handled.messages] == [producer.worker_id] * 3 + [
            None
        ]


async def test_a_connection_not_in_autocommit_mode_is_the_callers_to_commit(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    connection: TrioConnection[Any] = await TrioConnection.connect(store_dsn)
    async with store.producer("q") as producer:
        await producer.enqueue_many([1], connection=connection)
        await connection.rollback()
        await producer.enqueue(2, connection=connection)
        await connection.commit()
    await connection.close()
    assert await query(store_dsn, PAYLOADS) == [(2,)]


async def test_another_loops_connection_is_refused(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    with pytest.raises(TypeError, match="not int"):
        await store.produce("q", 1, connection=5)  # type: ignore[arg-type]
    async with store.producer("q") as producer:
        with pytest.raises(TypeError, match="not int"):
            await producer.enqueue_many([1], connection=5)  # type: ignore[arg-type]


async def test_a_blocking_connection_blocks_a_thread_only_and_is_free_after_cancellation(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    before = threading.active_count()
    async with open_connection(store_dsn) as other, other.transaction():
        await other.execute("select tocsin.enqueue('q', '1', key => 'k')")
        with psycopg.connect(store_dsn) as connection:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: store.produce("q", 2, key="k", connection=connection))
                await until_blocked(store_dsn)  # while this goes on, trio does
                nursery.cancel_scope.cancel()
            assert connection.info.transaction_status == INERROR
            assert not connection.lock.locked()
            connection.rollback()
            await store.produce("q", 3, connection=connection)
            connection.commit()
    assert await query(store_dsn, PAYLOADS) == [(1,), (3,)]
    assert threading.active_count() <= before + 2  # trio keeps its threads for a while


async def test_cancelled_anywhere_a_blocking_connection_is_free(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    with psycopg.connect(store_dsn) as connection:

        async def operation() -> None:
            await store.produce("q", 1, connection=connection)

        async def check() -> None:
            assert connection.info.transaction_status in (IDLE, INTRANS, INERROR)
            connection.rollback()

        assert await cancel_sweep(operation, check)


async def test_cancelled_before_its_thread_begins_nothing_is_done(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    limiter = trio.to_thread.current_default_thread_limiter()
    with psycopg.connect(store_dsn) as connection:
        for _ in range(int(limiter.total_tokens)):
            await limiter.acquire_on_behalf_of(object())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: store.produce("q", 1, connection=connection))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert connection.info.transaction_status == IDLE


async def test_a_silent_server_costs_a_blocking_connection(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._database.blocking_connection.GRACE", 0.3)
    await store.queues.ensure("q")
    async with (
        proxy.running(store_dsn) as server,
        open_connection(store_dsn) as other,
        other.transaction(),
    ):
        await other.execute("select tocsin.enqueue('q', '1', key => 'k')")
        connection: Blocking = await trio.to_thread.run_sync(psycopg.connect, server.dsn())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: store.produce("q", 2, key="k", connection=connection))
            await until_blocked(store_dsn)
            server.silence_all()
            nursery.cancel_scope.cancel()
        assert connection.closed
        connection.close()


async def test_produce_leaves_nothing_behind(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    for n in range(3):
        await store.produce("q", n)
    with psycopg.connect(store_dsn) as connection:
        await store.produce("q", 3, connection=connection)
    assert await query(store_dsn, PAYLOADS) == [(0,), (1,), (2,), (3,)]
    assert await query(
        store_dsn,
        "select (select count(*) from tocsin.workers) + (select count(*) from tocsin.processes)",
    ) == [(0,)]


async def test_a_payload_that_hangs_in_the_thread_does_not_hold_up_a_cancellation(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._database.blocking_connection.GRACE", 0.2)
    await store.queues.ensure("q")
    began, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def payloads() -> Iterator[int]:
        yield from range(5000)  # the first two statements are written at once, not in the thread
        token.run_sync_soon(began.set)
        go_on.wait(PATIENCE)

    connection = psycopg.connect(store_dsn)
    try:
        with trio.fail_after(PATIENCE / 2):
            async with store.producer("q") as producer, trio.open_nursery() as nursery:
                nursery.start_soon(lambda: producer.enqueue_many(payloads(), connection=connection))
                await began.wait()
                nursery.cancel_scope.cancel()
        assert not go_on.is_set()
    finally:
        go_on.set()
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]


async def test_enqueue_in_the_callers_transaction(store: tocsin.Store) -> None:
    await store.queues.ensure("tasks")
    async with (
        store.producer("tasks") as producer,
        store.consumer("tasks") as consumer,
        running(consumer) as run,
    ):
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as connection:
                await producer.enqueue("rolled back", connection=connection)
                await producer.enqueue_many(["rolled back"] * 3, connection=connection)
                raise ZeroDivisionError
        async with store.transaction() as connection:
            await producer.enqueue("committed", connection=connection)
            await producer.enqueue_many(["too"] * 2, connection=connection)
            assert run.handled.messages == []
        await run.handled.wait(3)
    assert run.handled.payloads == ["committed", "too", "too"]


async def test_produce_many_in_a_transaction(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.create("q")
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as connection:
            assert await store.produce_many("q", ["a", "b"], connection=connection, priority=3) == [
                1,
                2,
            ]
            raise ZeroDivisionError
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]
    # and no worker is registered
    assert await query(store_dsn, "select count(*)::int from tocsin.workers") == [(0,)]
