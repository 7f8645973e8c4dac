"""Ringing while the message is on its way to the disk: `Producer.enqueue`, and sql/functions/ring_first.sql, which has the argument."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext, suppress
from itertools import pairwise
from typing import Any

import poolers
import psycopg
import pytest
import servers
import trio
from psycopg.conninfo import make_conninfo
from support import PATIENCE, connect_blocking, query

import tocsin
from tocsin.embedded import EmbeddedServer

Connection = psycopg.Connection[tuple[Any, ...]]

ENQUEUE = b"call tocsin.enqueue_alone('q', '1')"
REACH = """create or replace function tocsin.reach_disk() returns void language plpgsql as
           $$ begin perform {}; perform setval('tocsin.disk', 1); end $$"""
HELD_UP = REACH.format("pg_advisory_xact_lock(1)")
NOT_REACHED = REACH.format("1 / 0")
HELD = "select a.pid from pg_locks l join pg_stat_activity a using (pid) where l.locktype = 'advisory' and not l.granted and l.objid = 1"


def fetch_one(session: Connection, statement: bytes) -> Any:
    value, *_ = session.execute(statement).fetchone() or (None,)
    return value


@contextmanager
def somebody_asleep(dsn: str) -> Iterator[Connection]:
    """A session that sleeps on the queue q, and LISTENs."""
    with connect_blocking(dsn) as sleeper:
        sleeper.execute(fetch_one(sleeper, b"select format('listen %I', channel) from tocsin.queues where name = 'q'").encode())
        sleeper.execute("select tocsin.fall_asleep(array(select id from tocsin.queues where name = 'q'))")
        yield sleeper


def hear(sleeper: Connection) -> None:
    """Wait for one notification."""
    assert len(list(sleeper.notifies(timeout=PATIENCE, stop_after=1))) == 1


def rings_first(session: Connection) -> bool:
    """Enqueue, with somebody asleep; returns whether that was rung for before the disk had it."""
    session.execute(REACH.format("set_config('test.reached', 'yes', false)"))
    session.execute("set test.reached = 'no'")
    session.execute(ENQUEUE)
    return bool(fetch_one(session, b"show test.reached") == "yes")


async def until_back(dsn: str) -> None:
    """Return when the server takes connections again."""
    while True:
        with suppress(tocsin.ConnectionLost, psycopg.OperationalError):
            await query(dsn, "select 1")
            return


@pytest.fixture
def session(store_dsn: str) -> Iterator[Connection]:
    """A session of a store with the queue q."""
    with connect_blocking(store_dsn) as session:
        session.execute("select tocsin.create_queue('q')")
        yield session


@pytest.fixture
def sleeper(store_dsn: str, session: Connection) -> Iterator[Connection]:
    """A session that sleeps on q, which has been rung for once, so that it is known how far the ids go."""
    with somebody_asleep(store_dsn) as sleeper:
        assert fetch_one(session, ENQUEUE) == 1
        hear(sleeper)
        yield sleeper


# When


def test_who_sleeps_is_rung_for_and_sees_the_message_before_the_disk_has_it(session: Connection, sleeper: Connection) -> None:
    session.execute(NOT_REACHED)
    with pytest.raises(psycopg.OperationalError, match="is enqueued") as told:
        session.execute(ENQUEUE)
    assert told.value.sqlstate == "08007"
    hear(sleeper)
    assert fetch_one(sleeper, b"select max(id) from tocsin.messages") == 2


def test_with_a_key_too(session: Connection, sleeper: Connection) -> None:
    session.execute(NOT_REACHED)
    with pytest.raises(psycopg.OperationalError, match="is enqueued"):
        session.execute("call tocsin.enqueue_alone('q', '1', key => 'k')")
    assert fetch_one(session, b"select count(*) from tocsin.messages where key = 'k'") == 1
    session.execute("call tocsin.enqueue_alone('q', '1', key => 'k')")  # nothing is enqueued, so nobody is rung for


def test_with_nobody_asleep_there_is_one_transaction(session: Connection, sleeper: Connection) -> None:
    session.execute(NOT_REACHED)
    sleeper.execute("select tocsin.wake_up(array(select id from tocsin.queues))")
    assert fetch_one(session, ENQUEUE) == 2


@pytest.mark.parametrize(
    "setting",
    [
        "update tocsin.queues set notify = 'always'",
        "set synchronous_commit = off",
        "set default_transaction_isolation = 'repeatable read'",
        "set default_transaction_isolation = 'serializable'",
    ],
)
def test_the_ring_waits_for_the_disk(session: Connection, sleeper: Connection, setting: str) -> None:
    assert rings_first(session)
    hear(sleeper)
    session.execute(setting.encode())
    assert not rings_first(session)
    hear(sleeper)


async def test_a_process_goes_by_whether_somebody_slept_the_last_time(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.create("q")
        await query(store_dsn, NOT_REACHED)
        await store.produce("q", 1)  # nobody sleeps
        with somebody_asleep(store_dsn):
            await store.produce("q", 2)  # by a SELECT
            await store.produce("q", 3)  # after which it is known how far the ids go
            with pytest.raises(tocsin.ConnectionLost, match="is enqueued"):
                await store.produce("q", 4)
        await query(store_dsn, REACH.format("1"))
        await store.produce("q", 5)
        await query(store_dsn, NOT_REACHED)
        with somebody_asleep(store_dsn) as sleeper:
            await store.produce("q", 6)
            hear(sleeper)


def test_within_a_transaction_it_fails_whether_somebody_sleeps_or_not(session: Connection, sleeper: Connection) -> None:
    for _ in range(2):
        with pytest.raises(psycopg.errors.InvalidTransactionTermination), session.transaction():
            session.execute(ENQUEUE)
        sleeper.execute("select tocsin.wake_up(array(select id from tocsin.queues))")
    assert fetch_one(session, b"select count(*) from tocsin.messages") == 1


def test_what_is_refused_is_refused_as_ever(session: Connection, sleeper: Connection) -> None:
    with pytest.raises(psycopg.Error) as refused:
        session.execute("call tocsin.enqueue_alone('q', '1', max_deliveries => 0)")
    assert refused.value.sqlstate == "TC022"
    with pytest.raises(psycopg.Error) as refused:
        session.execute("call tocsin.enqueue_alone('r', '1')")
    assert refused.value.sqlstate == "TC001"


# The disk


def test_later_transactions_of_the_session_wait_for_the_disk_as_before(session: Connection, sleeper: Connection) -> None:
    assert rings_first(session)
    assert fetch_one(session, b"show synchronous_commit") == "on"
    with session.transaction():
        assert fetch_one(session, b"select tocsin.ring_first(1)") is True
        assert fetch_one(session, b"show synchronous_commit") == "off"
    assert fetch_one(session, b"show synchronous_commit") == "on"


@pytest.mark.parametrize("asleep", [True, False], ids=["somebody asleep", "nobody asleep"])
def test_a_call_returns_when_the_disk_has_the_message(store_dsn: str, session: Connection, asleep: bool) -> None:
    with somebody_asleep(store_dsn) if asleep else nullcontext():
        for _ in range(50):  # the server may flush by itself at any time, but not each time
            before = fetch_one(session, b"select pg_current_wal_insert_lsn()")
            session.execute(ENQUEUE)
            # Whatever was written since then, the message's commit is among the first of it.
            assert session.execute("select pg_current_wal_flush_lsn() > %s", [before]).fetchone() == (True,)


@pytest.mark.parametrize("asleep", [True, False], ids=["somebody asleep", "nobody asleep"])
async def test_a_producer_returns_when_the_disk_has_the_message(store_dsn: str, asleep: bool) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.create("q")
        with somebody_asleep(store_dsn) if asleep else nullcontext():
            for _ in range(50):
                before = await query(store_dsn, "select pg_current_wal_insert_lsn()")
                message_id = await store.produce("q", 1)
                ((reached,),) = await query(store_dsn, "select pg_current_wal_flush_lsn() > %s", before[0][0])
                assert reached
                assert await query(store_dsn, "select id from tocsin.messages order by id desc limit 1") == [(message_id,)]


@pytest.mark.parametrize("end", ["killed", "cancelled by an administrator", "statement_timeout", "cancelled"])
async def test_not_told_of_the_disk(store_dsn: str, end: str) -> None:
    """The message is enqueued: nobody may be told that it is not."""
    dsn = make_conninfo(store_dsn, options="-c statement_timeout=1s") if end == "statement_timeout" else store_dsn
    async with tocsin.connect(dsn) as store:
        await store.queues.create("q")
        await query(store_dsn, HELD_UP)
        with somebody_asleep(store_dsn) as sleeper, connect_blocking(store_dsn) as holder, trio.fail_after(PATIENCE):
            await store.produce("q", 1)
            hear(sleeper)
            holder.execute("select pg_advisory_lock(1)")
            outcome = list[BaseException]()

            async def produce() -> None:
                try:
                    await store.produce("q", 2)
                except BaseException as error:
                    outcome.append(error)
                    raise

            with pytest.RaisesGroup(tocsin.ConnectionLost) if end != "cancelled" else nullcontext():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(produce)
                    held: list[tuple[object, ...]] = []
                    while not held and not outcome:
                        held = await query(store_dsn, HELD)
                    match end:
                        case "killed":
                            await query(store_dsn, "select pg_terminate_backend(%s)", *held[0])
                        case "cancelled by an administrator":
                            await query(store_dsn, "select pg_cancel_backend(%s)", *held[0])
                        case "cancelled":
                            nursery.cancel_scope.cancel()
            assert len(outcome) == 1
        assert await query(store_dsn, "select payload from tocsin.messages order by id") == [(1,), (2,)]
        await store.produce("q", 3)  # nobody sleeps any more
        assert await query(store_dsn, "select payload from tocsin.messages order by id") == [(1,), (2,), (3,)]


# The ids


def test_it_is_renewed_how_far_the_ids_go_by_one_that_waits_for_the_disk(session: Connection, sleeper: Connection) -> None:
    outcomes = [rings_first(session) for _ in range(100)]
    assert outcomes[0]
    assert 2 <= outcomes.count(False) <= 5  # PostgreSQL notes 32 at a time
    assert (False, False) not in pairwise(outcomes)


@pytest.mark.parametrize(
    "known",
    [
        "last_id = null",
        "last_id = 1",
        "written_at = pg_current_wal_insert_lsn() + 100000000",
        "server_started_at = server_started_at - interval '1 us'",
        "sequence = 'tocsin.lifelines'::regclass",
        "database = 'another'",
    ],
)
def test_what_is_not_known_of_this_sequence_of_this_server_up_to_the_disk_is_not_relied_on(
    session: Connection, sleeper: Connection, known: str
) -> None:
    assert rings_first(session)
    session.execute(f"update tocsin.ids_on_disk set {known}".encode())
    assert not rings_first(session)
    assert rings_first(session)


def test_without_the_row_the_ring_waits_for_the_disk(session: Connection, sleeper: Connection) -> None:
    session.execute("delete from tocsin.ids_on_disk")
    assert not rings_first(session)
    assert not rings_first(session)


def test_nobody_waits_for_another_who_renews_it(store_dsn: str, session: Connection, sleeper: Connection) -> None:
    with connect_blocking(store_dsn) as other, other.transaction():
        other.execute("update tocsin.ids_on_disk set last_id = null")
        session.execute("update pg_settings set setting = '1ms' where name = 'lock_timeout'")
        assert rings_first(session)  # by what was committed
        session.execute("select setval('tocsin.messages_id_seq', 1000)")
        assert not rings_first(session)


@pytest.mark.parametrize("pooler", [pytest.param("pooler", marks=poolers.NEEDED), "direct"])
@pytest.mark.parametrize("last", ["the last of those known to be on disk", "one before"])
async def test_a_crash_takes_no_message_whose_id_was_returned_and_no_id_comes_again(
    own_server: EmbeddedServer, pooler: str, last: str
) -> None:
    async with AsyncExitStack() as stack:
        dsn = own_server.dsn
        if pooler == "pooler":
            server = servers.Server("embedded", own_server.dsn, 0, None, None)
            dsn = make_conninfo(await stack.enter_async_context(poolers.pgbouncer(server)), dbname="postgres")
        store = await stack.enter_async_context(tocsin.connect(dsn))
        await store.install()
        await store.queues.create("q")
        await query(own_server.dsn, HELD_UP)
        with somebody_asleep(own_server.dsn) as sleeper, connect_blocking(own_server.dsn) as holder, trio.fail_after(PATIENCE):
            returned = [await store.produce("q", 1)]
            known = fetch_one(holder, b"select last_id from tocsin.ids_on_disk")
            while returned[-1] < known - (last == "one before"):
                returned.append(await store.produce("q", 1))
            log_writer = fetch_one(holder, b"select pid from pg_stat_activity where backend_type = 'walwriter'")
            os.kill(log_writer, signal.SIGSTOP)  # so that the log is not written but by who must
            holder.execute("select pg_advisory_lock(1)")
            lost = list[tocsin.ConnectionLost]()

            async def produce() -> None:
                try:
                    returned.append(await store.produce("q", 1))
                except tocsin.ConnectionLost as error:
                    lost.append(error)

            async with trio.open_nursery() as nursery:
                before = len(returned)
                nursery.start_soon(produce)
                while len(returned) == before and not await query(own_server.dsn, HELD):
                    pass
                seen = fetch_one(sleeper, b"select max(id) from tocsin.messages")
                assert seen == known + (last != "one before")
                os.kill(log_writer, signal.SIGKILL)  # which is a crash of the server
            assert bool(lost) == (last == "one before")
            await until_back(own_server.dsn)
            kept = {id for (id,) in await query(own_server.dsn, "select id from tocsin.messages")}
            assert set(returned) <= kept
            assert (await query(own_server.dsn, "select tocsin.enqueue('q', '2')"))[0][0] > seen
