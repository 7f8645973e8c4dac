"""Ringing before the disk has the message: `Producer.enqueue`, and ``ring_first`` of tocsin.enqueue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import psycopg
import pytest
import trio
from support import PATIENCE, connect_blocking, query

import tocsin

Connection = psycopg.Connection[tuple[Any, ...]]

ENQUEUE = b"select tocsin.enqueue('q', '1', ring_first => true)"


def fetch_one(session: Connection, statement: bytes) -> Any:
    (value,) = session.execute(statement).fetchone() or (None,)
    return value


@contextmanager
def somebody_asleep(dsn: str) -> Iterator[Connection]:
    """A session that sleeps on the queue q, and LISTENs."""
    with connect_blocking(dsn) as sleeper:
        sleeper.execute(fetch_one(sleeper, b"select format('listen %I', channel) from tocsin.queues where name = 'q'").encode())
        sleeper.execute("select tocsin.fall_asleep(array(select id from tocsin.queues where name = 'q'))")
        yield sleeper


@pytest.fixture
def session(store_dsn: str) -> Iterator[Connection]:
    with connect_blocking(store_dsn) as session:
        session.execute("select tocsin.create_queue('q')")
        yield session


def test_who_sleeps_is_rung_for_and_the_caller_told_to_wait_for_the_disk(store_dsn: str, session: Connection) -> None:
    with somebody_asleep(store_dsn) as sleeper:
        message_id = fetch_one(session, ENQUEUE)
        assert message_id < 0
        assert len(list(sleeper.notifies(timeout=PATIENCE, stop_after=1))) == 1
        assert fetch_one(sleeper, b"select id from tocsin.messages") == -message_id


def test_nobody_asleep_nothing_to_wait_for(session: Connection) -> None:
    assert fetch_one(session, ENQUEUE) > 0


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(b"select tocsin.enqueue('q', '1')", id="not asked for"),
        pytest.param(b"select tocsin.enqueue('q', '1', key => 'k', ring_first => true)", id="a key"),
    ],
)
def test_an_enqueue_that_waits_for_the_disk_by_itself(store_dsn: str, session: Connection, statement: bytes) -> None:
    with somebody_asleep(store_dsn) as sleeper:
        assert fetch_one(session, statement) > 0
        assert len(list(sleeper.notifies(timeout=PATIENCE, stop_after=1))) == 1


def test_where_commits_never_wait_there_is_nothing_to_wait_for(store_dsn: str, session: Connection) -> None:
    session.execute("set synchronous_commit = off")
    with somebody_asleep(store_dsn):
        assert fetch_one(session, ENQUEUE) > 0


def test_later_transactions_of_the_session_wait_for_the_disk_as_before(store_dsn: str, session: Connection) -> None:
    with somebody_asleep(store_dsn):
        with session.transaction():
            assert fetch_one(session, ENQUEUE) < 0
            assert fetch_one(session, b"show synchronous_commit") == "off"
        assert fetch_one(session, b"show synchronous_commit") == "on"
        with session.transaction():
            with session.transaction(force_rollback=True):
                assert fetch_one(session, ENQUEUE) < 0
            assert fetch_one(session, b"show synchronous_commit") == "on"


def test_the_disk_is_reached(store_dsn: str, session: Connection) -> None:
    flushed = b"select pg_current_wal_flush_lsn() >= %b::pg_lsn"
    with somebody_asleep(store_dsn):
        for _ in range(50):  # the server may flush by itself at any time, but not each time
            assert fetch_one(session, ENQUEUE) < 0
            written = fetch_one(session, b"select pg_current_wal_insert_lsn()::text").encode()
            session.execute("select tocsin.reach_disk()")
            assert fetch_one(session, flushed % (b"'" + written + b"'",)) is True


async def test_a_producer_returns_when_the_disk_has_the_message(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.create("q")
        with somebody_asleep(store_dsn):
            for _ in range(50):
                before = await query(store_dsn, "select pg_current_wal_insert_lsn()")
                message_id = await store.produce("q", 1)
                # Whatever was written since then, the message's commit is among the first of it.
                ((reached,),) = await query(store_dsn, "select pg_current_wal_flush_lsn() > %s", before[0][0])
                assert reached
                assert await query(store_dsn, "select id from tocsin.messages order by id desc limit 1") == [(message_id,)]


HELD_UP = "create or replace function tocsin.reach_disk() returns void language plpgsql as $$ begin perform pg_advisory_lock(1); end $$"
WAITING = "select pid from pg_stat_activity where query like '%reach_disk%' and wait_event_type = 'Lock'"


@pytest.mark.parametrize("end", ["killed", "cancelled by an administrator", "cancelled"])
async def test_not_told_of_the_disk(store_dsn: str, end: str) -> None:
    """The message is enqueued: nobody may be told that it is not."""
    async with tocsin.connect(store_dsn) as store:
        await store.queues.create("q")
        await query(store_dsn, HELD_UP)
        with somebody_asleep(store_dsn), connect_blocking(store_dsn) as holder, trio.fail_after(PATIENCE):
            holder.execute("select pg_advisory_lock(1)")
            outcome = list[BaseException]()

            async def produce() -> None:
                try:
                    await store.produce("q", 1)
                except BaseException as error:
                    outcome.append(error)
                    raise

            with pytest.RaisesGroup(tocsin.ConnectionLost) if end != "cancelled" else nullcontext():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(produce)
                    waiting: list[tuple[int]] = []
                    while not waiting:
                        waiting = await query(store_dsn, WAITING)
                    match end:
                        case "killed":
                            await query(store_dsn, "select pg_terminate_backend(%s)", *waiting[0])
                        case "cancelled by an administrator":
                            await query(store_dsn, "select pg_cancel_backend(%s)", *waiting[0])
                        case "cancelled":
                            nursery.cancel_scope.cancel()
            assert len(outcome) == 1
        assert await query(store_dsn, "select count(*) from tocsin.messages") == [(1,)]
        await store.produce("q", 2)  # nobody sleeps any more
        assert await query(store_dsn, "select count(*) from tocsin.messages") == [(2,)]
