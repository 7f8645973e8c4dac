"""Waking idle consumers before the message is durable: `Producer.enqueue`, and
sql/functions/queue/ring_early.sql, which has the argument."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

import tocsin
from tests.support import (
    PATIENCE,
    connect_blocking,
    open_connection,
    poolers,
    query,
    servers,
    until,
)
from tests.support.cancel_sweep import cancel_sweep
from tests.support.runs import running
from tests.support.sweeps import sweep
from tocsin.embedded import EmbeddedServer

Connection = psycopg.Connection[tuple[Any, ...]]

ENQUEUE = "select tocsin.enqueue('q', '1', ring_early => true)"
INSERT_WAITS = """
create function hold() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock(1); return new; end $$;
create trigger hold before insert on tocsin.messages for each row execute function hold()"""
FLUSH_WAITS = """do $do$ begin
    execute replace(pg_get_functiondef('tocsin.wait_for_flush'::regproc),
                    'perform set_config', 'perform pg_advisory_xact_lock(1), set_config');
end $do$"""
WAITING = (
    "select a.pid from pg_locks l join pg_stat_activity a using (pid) where l.locktype = 'advisory'"
    " and not l.granted and l.objid = 1"
)
TRIES = 20
"""The server writes to its WAL at times for its own reasons, and then a ring waits for
the flush. That does not happen this number of times in a row."""


def fetch_one(session: Connection, statement: str) -> Any:
    value, *_ = session.execute(statement.encode()).fetchone() or (None,)
    return value


@contextmanager
def waiting_session(dsn: str) -> Iterator[Connection]:
    """A session that LISTENs and waits on the queue q, as a consumer's process does."""
    with connect_blocking(dsn) as listening:
        listening.execute(
            fetch_one(
                listening, "select format('listen %I', channel) from tocsin.queues where name = 'q'"
            ).encode()
        )
        listening.execute(
            "select tocsin.begin_waiting(array(select id from tocsin.queues where name = 'q'))"
        )
        yield listening


def hear(listening: Connection) -> None:
    """Wait for a notification."""
    assert list(listening.notifies(timeout=PATIENCE, stop_after=1))


def rings_early(session: Connection, enqueue: str = ENQUEUE) -> bool:
    """Enqueue, and return whether that did not wait for the flush. Everything written
    before is flushed."""
    session.execute("select setval('tocsin.flush_marker', 1)")
    session.execute(enqueue.encode())
    rung_early: bool = fetch_one(session, "select current_setting('bell.unflushed', true)") == "yes"
    session.execute("select tocsin.wait_for_flush()")
    assert fetch_one(session, "select current_setting('bell.unflushed', true)") != "yes"
    return rung_early


def can_ring_early(session: Connection, enqueue: str = ENQUEUE) -> bool:
    return any(rings_early(session, enqueue) for _ in range(TRIES))


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
def listening(store_dsn: str, session: Connection) -> Iterator[Connection]:
    """A session that waits on q."""
    with waiting_session(store_dsn) as listening:
        yield listening


@pytest.fixture(autouse=True)
def always_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer that was rung for is idle again at once."""
    monkeypatch.setattr("tocsin._queue.producing.batcher.AT_REST", 0.0)


# What a producer does


class Producing:
    """Calls of `Store.produce` that wait for a lock of the test."""

    def __init__(self, store: tocsin.Store, dsn: str, nursery: trio.Nursery) -> None:
        self.scope = trio.CancelScope()
        self.outcomes: list[object] = []
        self._before = 0
        self._store = store
        self._dsn = dsn
        self._nursery = nursery

    async def until_held(self) -> int:
        """Produce until a call waits for the lock, and return its server process."""
        with trio.fail_after(PATIENCE):
            async with open_connection(self._dsn) as observer:
                while True:
                    await observer.execute("select setval('tocsin.flush_marker', 1)")
                    self._before = len(self.outcomes)
                    self._nursery.start_soon(self._produce)
                    while len(self.outcomes) == self._before:
                        if waiting := await (await observer.execute(WAITING)).fetchone():
                            return int(waiting[0])

    async def until_over(self) -> object:
        """Wait for the call's outcome."""
        await until(lambda: len(self.outcomes) > self._before)
        return self.outcomes[-1]

    async def _produce(self) -> None:
        with trio.CancelScope() as self.scope:
            try:
                self.outcomes.append(await self._store.produce("q", len(self.outcomes)))
            except tocsin.ConnectionLost as error:
                self.outcomes.append(error)
        if self.scope.cancelled_caught:
            self.outcomes.append("cancelled")


@pytest.fixture
async def producing(
    store: tocsin.Store, store_dsn: str, session: Connection
) -> AsyncIterator[Producing]:
    """Calls of a process that has enqueued once, while a consumer waited."""
    with waiting_session(store_dsn) as listening:
        await store.produce("q", "the first")
        hear(listening)
    async with trio.open_nursery() as nursery:
        yield Producing(store, store_dsn, nursery)
        nursery.cancel_scope.cancel()


# What a producer does


async def test_a_waiting_consumer_is_rung_for_before_there_is_a_message(
    producing: Producing, listening: Connection, session: Connection
) -> None:
    hear(listening)  # of the first message
    session.execute(INSERT_WAITS)
    session.execute("select pg_advisory_lock(1)")
    await producing.until_held()
    hear(listening)
    assert fetch_one(listening, "select count(*) from tocsin.messages") == 1
    session.execute("select pg_advisory_unlock(1)")
    assert await producing.until_over() == fetch_one(
        listening, "select max(id) from tocsin.messages"
    )
    hear(listening)


async def test_a_waiting_consumer_sees_the_message_before_it_is_durable(
    producing: Producing, listening: Connection, session: Connection
) -> None:
    session.execute(FLUSH_WAITS)
    session.execute("select pg_advisory_lock(1)")
    await producing.until_held()
    hear(listening)
    seen = fetch_one(listening, "select max(id) from tocsin.messages")
    assert seen not in producing.outcomes
    session.execute("select pg_advisory_unlock(1)")
    assert await producing.until_over() == seen


async def test_a_handler_may_begin_before_the_message_is_durable(
    producing: Producing, store: tocsin.Store, session: Connection
) -> None:
    async with store.consumer("q") as consumer, running(consumer) as run:
        await run.handled.wait(1)
        session.execute(FLUSH_WAITS)
        session.execute("select pg_advisory_lock(1)")
        await producing.until_held()
        await run.handled.wait(2 + len(producing.outcomes))
        session.execute("select pg_advisory_unlock(1)")
        await producing.until_over()
        run.cancel()
    assert [m.id for m in run.handled.messages[1:]] == producing.outcomes


@pytest.mark.parametrize("waiting", [True, False], ids=["a consumer idle", "no consumer idle"])
async def test_a_producer_returns_when_the_message_is_durable(
    store: tocsin.Store, store_dsn: str, session: Connection, waiting: bool
) -> None:
    with waiting_session(store_dsn) if waiting else nullcontext():
        for _ in range(50):  # the server may flush by itself at any time, but not each time
            before = fetch_one(session, "select pg_current_wal_insert_lsn()")
            message_id = await store.produce("q", 1)
            # The message's commit is among the first records written since then.
            assert session.execute(
                "select pg_current_wal_flush_lsn() > %s", [before]
            ).fetchone() == (True,)
            assert fetch_one(session, "select max(id) from tocsin.messages") == message_id


async def test_a_producer_rings_early_when_a_consumer_waited_the_last_time(
    store: tocsin.Store, store_dsn: str, session: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.execute(
        "create or replace function tocsin.wait_for_flush() returns void language sql as 'select 1"
        " / 0'"
    )
    await store.produce("q", 1)
    await store.produce("q", 2)  # no consumer waits
    with waiting_session(store_dsn) as listening:
        await store.produce("q", 3)
        hear(listening)
        for _ in range(2):
            with pytest.raises(tocsin.ConnectionLost, match=r"committed.*division by zero"):
                await store.produce("q", 4)
            await store.produce("q", 5)  # after an error, like the first call
        # the consumer that was rung for just now is busy
        monkeypatch.setattr("tocsin._queue.producing.batcher.AT_REST", 1000.0)
        await store.produce("q", 6)
    session.execute("drop function tocsin.wait_for_flush")
    session.execute("create function tocsin.wait_for_flush() returns void language sql as ''")
    monkeypatch.setattr("tocsin._queue.producing.batcher.AT_REST", 0.0)
    await store.produce("q", 7)  # no consumer waits any more
    session.execute(
        "create or replace function tocsin.wait_for_flush() returns void language sql as 'select 1"
        " / 0'"
    )
    await store.produce("q", 8)


async def test_a_consumer_that_waits_no_longer_is_rung_for_in_vain_once(
    producing: Producing, store: tocsin.Store, listening: Connection
) -> None:
    def rings() -> int:
        listening.execute("notify marker")
        heard: list[str] = []
        while "marker" not in heard:
            heard += [n.channel for n in listening.notifies(timeout=PATIENCE, stop_after=1)]
        return len(heard) - 1

    listening.execute("listen marker")
    assert rings() == 1  # of the first message
    await store.produce("q", 1)
    assert rings() == 2
    listening.execute("select tocsin.end_waiting(array(select id from tocsin.queues))")
    await store.produce("q", 2)
    assert rings() == 1
    await store.produce("q", 3)
    assert rings() == 0


async def test_a_message_with_a_key_waits_for_the_flush(
    producing: Producing, store: tocsin.Store, session: Connection, listening: Connection
) -> None:
    """The next call that enqueues the key returns its id."""
    session.execute(
        "create or replace function tocsin.wait_for_flush() returns void language sql as 'select 1"
        " / 0'"
    )
    for _ in range(3):
        assert await store.produce("q", "one", key="k") == await store.produce(
            "q", "another", key="k"
        )


async def test_a_message_is_refused_as_without_an_early_ring(
    producing: Producing, store: tocsin.Store, session: Connection, listening: Connection
) -> None:
    session.execute("select tocsin.update_queue('q', max_payload => 100)")
    with pytest.raises(tocsin.PayloadTooLarge):
        await store.produce("q", "x" * 101)
    await store.produce("q", "y")
    session.execute("select tocsin.delete_queue('q', force => true)")
    with pytest.raises(tocsin.QueueNotFound):
        await store.produce("q", "z")
    statistics = store.statistics().pool
    assert (statistics.opened, statistics.broken, statistics.in_use) == (1, 0, 0)


async def test_an_enqueue_cancelled_at_every_checkpoint_is_atomic_and_its_connection_usable(
    producing: Producing, store: tocsin.Store, store_dsn: str, listening: Connection
) -> None:
    async def enqueue() -> None:
        await store.produce("q", 1)
        await store.produce("q", 2)  # which rings early

    assert await cancel_sweep(enqueue)
    statistics = store.statistics().pool
    assert (statistics.opened, statistics.broken, statistics.in_use) == (1, 0, 0)
    ((ones, twos),) = await query(
        store_dsn,
        "select count(*) filter (where payload = '1'), count(*) filter (where payload = '2') from"
        " tocsin.messages",
    )
    assert 0 < twos <= ones


@pytest.mark.parametrize("end", ["killed", "cancelled by an administrator", "cancelled"])
async def test_a_producer_that_does_not_learn_of_the_flush_is_not_told_of_a_failure(
    producing: Producing, store_dsn: str, session: Connection, listening: Connection, end: str
) -> None:
    """The message is enqueued, so no caller may be told that it is not."""
    session.execute(FLUSH_WAITS)
    session.execute("select pg_advisory_lock(1)")
    pid = await producing.until_held()
    match end:
        case "killed":
            await query(store_dsn, "select pg_terminate_backend(%s)", pid)
        case "cancelled by an administrator":
            await query(store_dsn, "select pg_cancel_backend(%s)", pid)
        case "cancelled":
            producing.scope.cancel()
    outcome = await producing.until_over()
    if end == "cancelled":
        assert outcome == "cancelled"
    else:
        assert isinstance(outcome, tocsin.ConnectionLost)
        assert ("was committed" in str(outcome)) == (end != "killed")
    assert (
        fetch_one(
            session,
            "select max(payload::int) from tocsin.messages where payload <> '\"the first\"'",
        )
        == len(producing.outcomes) - 1
    )


@poolers.NEEDED
async def test_through_a_pooler_the_ring_waits_for_the_flush(
    server: servers.Server, store_dsn: str, session: Connection, listening: Connection
) -> None:
    session.execute(
        "create or replace function tocsin.wait_for_flush() returns void language sql as 'select 1"
        " / 0'"
    )
    async with (
        poolers.pgbouncer(server) as pooler,
        tocsin.connect(
            make_conninfo(pooler, dbname=psycopg.conninfo.conninfo_to_dict(store_dsn)["dbname"])
        ) as store,
    ):
        for n in range(3):
            await store.produce("q", n)
            hear(listening)


# When a commit need not wait


def test_only_when_a_consumer_waits_and_without_a_key(
    session: Connection, listening: Connection
) -> None:
    assert can_ring_early(session)
    assert not can_ring_early(
        session,
        "select tocsin.enqueue('q', '1', key => gen_random_uuid()::text, ring_early => true)",
    )
    listening.execute("select tocsin.end_waiting(array(select id from tocsin.queues))")
    assert not can_ring_early(session)


@pytest.mark.parametrize(
    "setting", ["update tocsin.queues set notify = 'always'", "set synchronous_commit = off"]
)
def test_not_with(session: Connection, listening: Connection, setting: str) -> None:
    assert can_ring_early(session)
    session.execute(setting.encode())
    assert not can_ring_early(session)


def test_later_transactions_of_the_session_wait_for_the_flush_as_before(
    session: Connection, listening: Connection
) -> None:
    for _ in range(TRIES):
        with session.transaction():
            session.execute(ENQUEUE)
            commits_at_once = fetch_one(session, "show synchronous_commit") == "off"
        assert fetch_one(session, "show synchronous_commit") == "on"
        session.execute("select tocsin.wait_for_flush()")
        if commits_at_once:
            return
    pytest.fail("it waited for the flush each time")


def test_a_rolled_back_transaction_has_nothing_to_wait_for(
    session: Connection, listening: Connection
) -> None:
    for _ in range(TRIES):
        with session.transaction(force_rollback=True):
            session.execute(ENQUEUE)
        assert fetch_one(session, "select current_setting('bell.unflushed', true)") != "yes"
        assert fetch_one(session, "show synchronous_commit") == "on"


# The ids


def test_not_when_the_sequence_has_written_a_wal_record(
    session: Connection, listening: Connection
) -> None:
    outcomes = [rings_early(session) for _ in range(320)]
    assert outcomes.count(False) >= 10  # PostgreSQL logs 32 at a time
    assert outcomes.count(True) > 200
    session.execute("checkpoint")
    assert not rings_early(session)


def test_not_when_triggers_enqueue_more(session: Connection, listening: Connection) -> None:
    session.execute("select tocsin.create_queue('r')")
    session.execute(
        "create function enqueue_more() returns trigger language plpgsql as $$ begin perform"
        " tocsin.enqueue('r', '1'); return null; end $$"
    )
    session.execute(
        "create trigger more after insert on tocsin.messages for each row when (pg_trigger_depth()"
        " = 0) execute function enqueue_more()"
    )
    assert not can_ring_early(session)


async def test_not_when_commits_wait_for_standbys(own_server: EmbeddedServer) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.create("q")
    with connect_blocking(own_server.dsn) as session, waiting_session(own_server.dsn):
        assert can_ring_early(session)
        session.execute("set synchronous_commit = local")
        assert can_ring_early(session)
        session.execute("alter system set synchronous_standby_names = 'one'")
        session.execute("select pg_reload_conf()")
        while fetch_one(session, "show synchronous_standby_names") != "one":
            pass
        assert not can_ring_early(session)


@contextmanager
def wal_writer_stopped(dsn: str) -> Iterator[int]:
    """Stop the WAL writer, so that only a process that must flushes the WAL. Yield the
    WAL writer, whose end is a crash of the server."""
    with connect_blocking(dsn) as session:
        wal_writer = int(
            fetch_one(session, "select pid from pg_stat_activity where backend_type = 'walwriter'")
        )
    os.kill(wal_writer, signal.SIGSTOP)
    try:
        yield wal_writer
    finally:
        with suppress(ProcessLookupError):
            os.kill(wal_writer, signal.SIGCONT)


async def test_not_when_a_wal_record_of_the_sequence_is_not_flushed(
    own_server: EmbeddedServer,
) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.create("q")
    with (
        connect_blocking(own_server.dsn) as session,
        connect_blocking(own_server.dsn) as other,
        waiting_session(own_server.dsn),
    ):
        assert can_ring_early(session)
        with wal_writer_stopped(own_server.dsn):
            other.execute("set synchronous_commit = off")
            for enough in (False, True):
                session.execute("select setval('tocsin.flush_marker', 1)")
                other.execute(
                    "select nextval('tocsin.messages_id_seq') from generate_series(1, 33)"
                )
                if enough:
                    session.execute("select setval('tocsin.flush_marker', 1)")
                session.execute(ENQUEUE)
                assert (
                    fetch_one(session, "select current_setting('bell.unflushed', true)") == "yes"
                ) == enough
                session.execute("select tocsin.wait_for_flush()")


@sweep(
    "last",
    ["covered by a record", "the first of a record", "the first after a checkpoint"],
    quick=1,
)
async def test_a_crash_takes_no_message_whose_id_was_returned_and_no_id_comes_again(
    own_server: EmbeddedServer, last: str
) -> None:
    dsn = own_server.dsn
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.create("q")
        with connect_blocking(dsn) as session, waiting_session(dsn) as listening:
            session.execute(FLUSH_WAITS)
            returned = [await store.produce("q", n) for n in range(3)]
            while (fetch_one(session, "select log_cnt from tocsin.messages_id_seq") == 0) != (
                last == "the first of a record"
            ):
                returned.append(await store.produce("q", 1))
            if last == "the first after a checkpoint":
                session.execute("checkpoint")
            lost: list[tocsin.ConnectionLost] = []

            async def produce() -> None:
                try:
                    returned.append(await store.produce("q", "the last"))
                except tocsin.ConnectionLost as error:
                    lost.append(error)

            with wal_writer_stopped(dsn) as wal_writer:
                session.execute("select pg_advisory_lock(1)")
                session.execute("select setval('tocsin.flush_marker', 1)")
                before = len(returned)
                with trio.fail_after(PATIENCE):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(produce)
                        async with open_connection(dsn) as observer:
                            while (
                                len(returned) == before
                                and not await (await observer.execute(WAITING)).fetchone()
                            ):
                                pass
                        seen = fetch_one(listening, "select max(id) from tocsin.messages")
                        os.kill(wal_writer, signal.SIGKILL)
                        with suppress(psycopg.OperationalError):
                            while True:  # until the server has noticed
                                listening.execute("select 1")
                    await until_back(dsn)
        kept = {id for (id,) in await query(dsn, "select id from tocsin.messages")}
        assert set(returned) <= kept
        assert bool(lost) == (last == "covered by a record") == (seen not in kept)
        assert await store.produce("q", "after it") > seen
