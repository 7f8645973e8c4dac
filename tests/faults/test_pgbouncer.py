"""Scenario 13: PgBouncer in transaction mode, for everything but the LISTEN connection;
and what happens without that exception."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tocsin
from tests.support import PATIENCE, open_connection, poolers, query, servers, until_query
from tests.support.everyday_use import alter, use_everything
from tests.support.runs import running
from tocsin._database import session

pytestmark = [pytest.mark.fault, poolers.NEEDED]

Through = Callable[[str], str]


KEPT = pytest.mark.skipif(
    poolers.binary() is not None and not poolers.keeps_prepared_statements(),
    reason="this PgBouncer has no max_prepared_statements, as 1.21 and later have",
)


@pytest.fixture(
    params=[0, pytest.param(100, marks=KEPT)], ids=["no_prepared_statements", "prepared_statements"]
)
async def through(request: pytest.FixtureRequest, server: servers.Server) -> AsyncIterator[Through]:
    """A function that turns a connection string into one that leads through PgBouncer."""
    async with poolers.pgbouncer(server, request.param) as pooler:

        def lead_through(dsn: str) -> str:
            led = make_conninfo(pooler, dbname=str(conninfo_to_dict(dsn)["dbname"]))
            with all_sessions(led):  # from here on they take turns
                return led

        yield lead_through


@contextmanager
def all_sessions(dsn: str) -> Iterator[list[psycopg.Connection[Any]]]:
    """A connection to each session that the pool has, in a transaction."""
    with ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(dsn)) for _ in range(poolers.SESSIONS)]
        for connection in connections:
            connection.execute("select")
        yield connections


async def until_no_session_has_locks(dsn: str) -> None:
    """Return when no session holds a lock of Tocsin's; a LISTEN connection's end may
    take a moment."""
    kept = (
        "select a.query from pg_locks l join pg_database d on d.oid = l.database join"
        " pg_stat_activity a using (pid) where l.locktype = 'advisory' and d.datname ="
        " current_database()"
    )
    await until_query(dsn, kept, gives=[])


async def test_everything_goes_through_pgbouncer_but_the_listen_connection(
    dsn: str, through: Through, caplog: pytest.LogCaptureFixture
) -> None:
    async with tocsin.connect(through(dsn), listen_dsn=dsn, heartbeat=3600) as store:
        await store.install()
        assert await store.verify() == ()
        await store.queues.ensure("q", vt=0.5)
        async with store.producer("q") as producer, store.consumer("q") as consumer:
            # By hand, and each several times: a statement is prepared when it has been
            # run before.
            for n in range(8):
                first = await producer.enqueue(n, key="k")
                assert await store.produce("q", n, key="k") == first
                await producer.enqueue_many([n] * 3, headers={"n": n})
                async with store.transaction() as connection:
                    await producer.enqueue(n, connection=connection)
                    await producer.enqueue_many([n] * 2500, connection=connection, delay=3600)
                messages = await consumer.dequeue(9, vt=60)
                assert [m.payload for m in messages] == [n] * 5
                await messages[0].extend(100)
                await messages[0].release()
                assert await consumer.release_many(messages[1:3]) == [True] * 2
                await messages[3].archive()
                await messages[4].delete()
                assert await consumer.archive_many(await consumer.dequeue(9)) == [True] * 3
                await consumer.suspend()
                await consumer.resume()
            assert await query(dsn, "select count(*) from tocsin.archive") == [(8 * 4,)]

            # In a run; some sleep, and are woken through the line.
            over = trio.Event()

            async def outlive_the_lease(message: tocsin.Message) -> None:
                if message.payload == "long":
                    async with open_connection(dsn) as observer:
                        ends = list[Any]()
                        while len(ends) < 4:
                            cursor = await observer.execute(
                                "select vt from tocsin.messages where id = %s", [message.id]
                            )
                            (end,) = await cursor.fetchall()
                            if not ends or end > ends[-1]:
                                ends.append(end)
                    over.set()

            async with running(consumer, outlive_the_lease, concurrency=5) as run:
                async with trio.open_nursery() as producers:
                    for n in range(50):
                        producers.start_soon(producer.enqueue, n)
                await producer.enqueue("long")
                await run.handled.wait(51)
                with trio.fail_after(PATIENCE):
                    await over.wait()
                await store.queues.pause("q")
                await store.queues.resume("q")
                await producer.enqueue("delayed", delay=0.1)
                await run.handled.wait(52)
                assert store.statistics().listening
                await (await store.workers.get(consumer.worker_id)).interrupt()
                assert (await run.wait()).handled == 52
            assert {m.read_ct for m in run.handled.messages} == {1}
        assert [w.status for w in await store.workers.list()] == ["stopped", "stopped"]
        await store.maintain()
    async with tocsin.connect(through(dsn)) as store:
        await store.uninstall()
    await until_no_session_has_locks(dsn)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_it_is_really_another_session_each_time(dsn: str, through: Through) -> None:
    async with tocsin.connect(through(dsn)) as store:
        sessions = set()
        for _ in range(poolers.SESSIONS):
            async with store.transaction() as connection:
                sessions.add(
                    (await (await connection.execute("select pg_backend_pid()")).fetchall())[0]
                )
                await session.set_up(connection)
                assert not connection.has_own_session
    assert len(sessions) == poolers.SESSIONS
    async with open_connection(dsn) as direct:
        await session.set_up(direct)
        assert direct.has_own_session


async def test_a_lent_connection_repeats_statements_as_often_as_it_likes(
    dsn: str, through: Through
) -> None:
    """psycopg would prepare them, and not find them where the next transaction is run."""
    async with tocsin.connect(through(dsn)) as store:
        for _ in range(5):
            async with store.transaction() as connection:
                for n in range(10):
                    assert await (
                        await connection.execute("select %s::int + 1", [n])
                    ).fetchall() == [(n + 1,)]


async def test_without_listen_dsn_it_says_so_once_and_lives_by_its_heartbeat(
    store_dsn: str,
    through: Through,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tocsin._queue.process.listener.HEARD_WITHIN", 0.5)
    async with tocsin.connect(through(store_dsn), heartbeat=0.1) as store:
        await store.queues.ensure("q", notify="always")
        async with (
            store.consumer("q", name="a") as consumer,
            store.consumer("q", name="b"),
            running(consumer) as run,
        ):
            assert not store.statistics().listen_works
            for n in range(5):
                await store.produce("q", n)
                await run.handled.wait(n + 1)
            await store.produce("q", "delayed", delay=0.3)
            await run.handled.wait(6)
            # no second attempt, and nothing said again
            async with store.consumer("q", name="late"):
                pass
            await (await store.workers.get(consumer.worker_id)).interrupt()
            await run.wait()

    # What it has tried to listen to is its own channel, which may go on in some session
    # of the pooler's; never a queue's.
    with all_sessions(through(store_dsn)) as sessions:
        channels = {
            channel
            for session in sessions
            for (channel,) in session.execute("select pg_listening_channels()").fetchall()
        }
    assert channels == {"tocsin/process/1"}
    await until_no_session_has_locks(store_dsn)
    (warning,) = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert "listen_dsn" in warning
    assert await query(store_dsn, "select count(*) from tocsin.processes") == [(0,)]


async def test_cancelled_through_pgbouncer(store_dsn: str, through: Through) -> None:
    """A statement that waits is cancelled on the server, and the connection can be used
    again."""
    async with tocsin.connect(through(store_dsn), pool_size=2) as store:
        await store.queues.ensure("q")
        async with open_connection(store_dsn) as other, other.transaction():
            await other.execute("select tocsin.enqueue('q', '1', key => 'k')")
            async with trio.open_nursery() as nursery:

                async def enqueue() -> None:
                    await store.produce("q", 2, key="k")

                nursery.start_soon(enqueue)
                waiting = (
                    "select 1 from pg_stat_activity where datname = current_database() and"
                    " wait_event_type = 'Lock'"
                )
                await until_query(store_dsn, waiting)
                nursery.cancel_scope.cancel()
            assert await query(store_dsn, waiting) == []
        await store.produce("q", 3)
        assert store.statistics().pool.broken == 0
    assert await query(store_dsn, "select payload from tocsin.messages order by id") == [(1,), (3,)]


async def test_enqueue_on_a_connection_of_the_callers(store_dsn: str, through: Through) -> None:
    """Here the caller tells psycopg to prepare nothing, as PgBouncer's own
    documentation says."""
    await query(store_dsn, "select tocsin.ensure_queue('q')")
    with psycopg.connect(through(store_dsn), prepare_threshold=None) as connection:
        for n in range(10):
            tocsin.enqueue(connection, "q", n)
            connection.commit()
            tocsin.enqueue_many(connection, "q", [n] * 5000)
            connection.rollback()
    assert await query(store_dsn, "select payload from tocsin.messages order by id") == [
        (n,) for n in range(10)
    ]


async def test_settings_of_the_database_change_nothing(store_dsn: str, through: Through) -> None:
    """Behind a pooler no setting of a session is Tocsin's own; but its text is, and its
    results have no style."""
    settings = {
        "client_encoding": "latin1",
        "datestyle": "German, DMY",
        "intervalstyle": "sql_standard",
        "timezone": "Asia/Kolkata",
    }
    alter(store_dsn, settings | {"default_transaction_isolation": "serializable"})
    await use_everything(through(store_dsn))


async def test_a_connection_of_the_users_with_another_encoding(
    store_dsn: str, through: Through
) -> None:
    await query(store_dsn, "select tocsin.ensure_queue('q')")
    with psycopg.connect(
        through(store_dsn), prepare_threshold=None, client_encoding="latin1"
    ) as connection:
        tocsin.enqueue(connection, "q", "é 👋", key="é 👋")
    assert await query(store_dsn, "select payload, key from tocsin.messages") == [("é 👋", "é 👋")]


async def test_a_pooler_of_statements_is_a_wrong_setting(
    server: servers.Server, store_dsn: str
) -> None:
    async with poolers.pgbouncer(server, 0, mode="statement") as pooler:
        led = make_conninfo(pooler, dbname=str(conninfo_to_dict(store_dsn)["dbname"]))
        async with tocsin.connect(led) as store:
            with pytest.raises(tocsin.ConfigError, match="pool_mode"):
                async with store.transaction() as connection:
                    await connection.execute("select 1")
