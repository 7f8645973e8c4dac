"""PgBouncer in transaction mode, for everything but the LISTEN connection; and what
happens without that exception."""

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
from tests.support import (
    PATIENCE,
    next_event,
    open_connection,
    poolers,
    query,
    servers,
    until_idle,
    until_query,
)
from tests.support.everyday_use import alter, use_everything
from tests.support.jobs import working
from tests.support.runs import running
from tocsin import telemetry
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
    """A function that leads a connection string through PgBouncer."""
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


TIMES = 8
"""How often a test repeats what it does: a statement that has been run before may be
prepared, in another session than the one that runs it next."""


@pytest.fixture
async def pooled(
    store_dsn: str, through: Through, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[tocsin.Store]:
    """A store that reaches its database through PgBouncer, except for LISTEN, with a
    queue q. In the end no session holds a lock, and no warning was logged."""
    async with tocsin.connect(through(store_dsn), listen_dsn=store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q", vt=3600)
        yield store
    await until_no_session_has_locks(store_dsn)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


# The schema


async def test_the_schema_is_installed_verified_and_removed(dsn: str, through: Through) -> None:
    async with tocsin.connect(through(dsn), listen_dsn=dsn) as store:
        await store.install()
        assert await store.verify() == ()
        await store.queues.ensure("q")
        await store.maintain()
        await store.uninstall()
    await until_no_session_has_locks(dsn)


# By hand


async def test_messages_are_enqueued(pooled: tocsin.Store, store_dsn: str) -> None:
    async with pooled.producer("q") as producer:
        for n in range(TIMES):
            first = await producer.enqueue(n, key=f"key {n}")
            assert await pooled.produce("q", n, key=f"key {n}") == first
            await producer.enqueue_many([n] * 3, headers={"n": n})
    assert await query(
        store_dsn, "select payload, count(*) from tocsin.messages group by payload order by payload"
    ) == [(n, 4) for n in range(TIMES)]


async def test_messages_are_enqueued_in_a_transaction(pooled: tocsin.Store, store_dsn: str) -> None:
    async with pooled.producer("q") as producer:
        for n in range(TIMES):
            async with pooled.transaction() as connection:
                await producer.enqueue(n, connection=connection)
                await producer.enqueue_many([n] * 2500, connection=connection, delay=3600)
    assert await query(
        store_dsn, "select state::text, count(*) from tocsin.messages group by state order by state"
    ) == [("delayed", 2500 * TIMES), ("ready", TIMES)]


async def test_messages_are_dequeued_and_settled_one_by_one(
    pooled: tocsin.Store, store_dsn: str
) -> None:
    async with pooled.consumer("q") as consumer:
        for n in range(TIMES):
            await pooled.produce_many("q", [n] * 3)
            messages = await consumer.dequeue(9, vt=60)
            assert [m.payload for m in messages] == [n] * 3
            released, archived, deleted = messages
            await released.extend(100)
            await released.release()
            await archived.archive()
            await deleted.delete()
            (again,) = await consumer.dequeue(9)
            assert (again.id, again.read_ct) == (released.id, 2)
            await again.archive()
    assert await query(store_dsn, "select count(*) from tocsin.archive") == [(2 * TIMES,)]


async def test_messages_are_settled_together(pooled: tocsin.Store, store_dsn: str) -> None:
    async with pooled.consumer("q") as consumer:
        for n in range(TIMES):
            await pooled.produce_many("q", [n] * 3)
            messages = await consumer.dequeue(9)
            assert await consumer.extend_many(messages, 100) == [True] * 3
            assert await consumer.release_many(messages) == [True] * 3
            assert await consumer.archive_many(await consumer.dequeue(2)) == [True] * 2
            assert await consumer.delete_many(await consumer.dequeue(2)) == [True]
    assert await query(store_dsn, "select count(*) from tocsin.archive") == [(2 * TIMES,)]


async def test_a_consumer_is_suspended_and_resumed(pooled: tocsin.Store) -> None:
    async with pooled.consumer("q") as consumer:
        for _ in range(TIMES):
            await consumer.suspend()
            assert await consumer.status() == "suspended"
            await consumer.resume()
            assert await consumer.status() == "ready"


async def test_workers_are_unregistered(pooled: tocsin.Store) -> None:
    async with pooled.producer("q"), pooled.consumer("q"):
        pass
    assert [w.status for w in await pooled.workers.list()] == ["stopped", "stopped"]


# In a run; without a heartbeat, so that notifications have to wake it


async def test_a_run_handles_what_many_tasks_enqueue(pooled: tocsin.Store) -> None:
    async with (
        pooled.producer("q") as producer,
        pooled.consumer("q") as consumer,
        running(consumer, concurrency=5) as run,
    ):
        await until_idle(pooled)
        assert pooled.statistics().listening
        async with trio.open_nursery() as producers:
            for n in range(50):
                producers.start_soon(producer.enqueue, n)
        await run.handled.wait(50)
    assert run.suspended.handled == 50
    assert {m.read_ct for m in run.handled.messages} == {1}


async def test_a_run_that_waits_is_woken_by_each_message(pooled: tocsin.Store) -> None:
    async with pooled.consumer("q") as consumer, running(consumer) as run:
        for n in range(TIMES):
            await until_idle(pooled)
            await pooled.produce("q", n)
            await run.handled.wait(n + 1)


async def test_a_run_takes_a_delayed_message_when_it_is_due(pooled: tocsin.Store) -> None:
    async with pooled.consumer("q") as consumer, running(consumer) as run:
        await until_idle(pooled)
        await pooled.produce("q", "delayed", delay=0.1)
        await run.handled.wait(1)


async def test_a_run_goes_on_when_its_queue_is_resumed(pooled: tocsin.Store) -> None:
    async with pooled.consumer("q") as consumer, running(consumer) as run:
        for n in range(TIMES):
            await pooled.queues.pause("q")
            await pooled.produce("q", n)
            await pooled.queues.resume("q")
            await run.handled.wait(n + 1)


async def test_a_run_extends_the_lease_of_a_long_call(pooled: tocsin.Store) -> None:
    await pooled.queues.ensure("q", vt=2)
    with pooled.events.subscribe(telemetry.LeasesExtended) as extended:

        async def outlive_the_lease(_: tocsin.Message) -> None:
            await next_event(extended)
            await next_event(extended)

        async with (
            pooled.consumer("q") as consumer,
            running(consumer, outlive_the_lease) as run,
        ):
            await pooled.produce("q", "long")
            await run.settled(1, "archived")
    assert len(run.handled.messages) == 1


async def test_a_run_is_interrupted_by_another_session(pooled: tocsin.Store) -> None:
    async with pooled.consumer("q") as consumer, running(consumer) as run:
        await until_idle(pooled)
        await (await pooled.workers.get(consumer.worker_id)).interrupt()
        assert (await run.wait()).reason == "interrupted"


# Sessions


async def test_each_statement_runs_in_another_session(dsn: str, through: Through) -> None:
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
    """Prepared by psycopg, they are missing in the session of the next transaction."""
    async with tocsin.connect(through(dsn)) as store:
        for _ in range(5):
            async with store.transaction() as connection:
                for n in range(10):
                    assert await (
                        await connection.execute("select %s::int + 1", [n])
                    ).fetchall() == [(n + 1,)]


async def test_a_process_without_listen_dsn_warns_once_and_lives_by_its_heartbeat(
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


@tocsin.task(queue="q")
async def double(number: int) -> int:
    return 2 * number


async def test_a_result_is_waited_for_on_the_listen_connection(pooled: tocsin.Store) -> None:
    async with working(pooled, double):
        for n in range(TIMES):
            job = await double.submit(pooled, n)
            assert await job.result(timeout=PATIENCE) == 2 * n


async def test_a_wait_for_a_job_in_a_shared_session_is_refused(
    store_dsn: str, through: Through
) -> None:
    await query(store_dsn, "select tocsin.ensure_queue('q')")
    async with await tocsin.driver.TrioConnection.connect(through(store_dsn)) as connection:
        connection.prepare_threshold = None
        job = await double.submit(connection, 1)
        await connection.commit()
        with pytest.raises(tocsin.ConfigError, match="leads through a pooler"):
            await job.result(timeout=PATIENCE)
        assert (await job.info()).state == "waiting"
    with (
        psycopg.connect(through(store_dsn), prepare_threshold=None) as blocking,
        pytest.raises(tocsin.ConfigError, match="leads through a pooler"),
    ):
        double.job_blocking(blocking, job.id).result(timeout=PATIENCE)
    with all_sessions(through(store_dsn)) as sessions:
        for session_ in sessions:
            assert session_.execute("select pg_listening_channels()").fetchall() == []
    await until_no_session_has_locks(store_dsn)


@pytest.mark.slow
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
