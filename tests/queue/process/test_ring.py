"""Each step of the protocol that rings only while a consumer waits, with sessions held
at that step; ``test_ring_schedules.py`` interleaves the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from tests.support import PATIENCE, connect_blocking

Connection = psycopg.Connection[tuple[Any, ...]]


class Sessions:
    """Sessions of one test, in a database with the queues q and r, and s, which always
    rings."""

    def __init__(self, dsn: str, stack: ExitStack) -> None:
        self._dsn = dsn
        self._stack = stack
        self.admin = self.open()
        self.admin.execute(
            "select tocsin.create_queue('q'), tocsin.create_queue('r'), tocsin.create_queue('s',"
            " notify => 'always')"
        )
        self.q, self.r, self.s = (
            number for (number,) in self.admin.execute("select id from tocsin.queues order by name")
        )

    def open(self) -> Connection:
        session = connect_blocking(self._dsn)
        self._stack.callback(session.close)
        return session

    def listener(self) -> tuple[Connection, Callable[[], list[str]]]:
        """A session that LISTENs on all queues, and a function that returns the queues
        rung for since it was last called."""
        session = self.open()
        channels: list[str] = []
        session.add_notify_handler(
            lambda notification: channels.append(notification.channel.removeprefix("tocsin."))
        )
        for (channel,) in self.admin.execute("select channel from tocsin.queues").fetchall():
            session.execute(f'listen "{channel}"'.encode())

        def heard() -> list[str]:
            # What was committed before this round trip has been sent before its end.
            session.execute("select")
            rung = sorted(channels)
            channels.clear()
            return rung

        return session, heard

    def kill(self, session: Connection) -> None:
        """End a session, and wait until the server has ended it."""
        assert self.admin.execute(
            "select pg_terminate_backend(%s, %s)", [session.info.backend_pid, PATIENCE * 1000]
        ).fetchone() == (True,)

    def visible(self) -> int:
        (number,) = self.admin.execute("select count(*) from tocsin.messages").fetchone() or (None,)
        assert isinstance(number, int)
        return number


@pytest.fixture
def sessions(store_dsn: str) -> Iterator[Sessions]:
    with ExitStack() as stack:
        yield Sessions(store_dsn, stack)


INSERT = (
    "insert into tocsin.messages (queue_id, due, vt, enqueued_at, payload) select q, now(), now(),"
    " now(), '1' from unnest(%s::int[]) q"
)


def insert(session: Connection, *queues: int) -> None:
    session.execute(INSERT, [list(queues)])


def ask(session: Connection, function: str, *queues: int) -> list[int]:
    (answer,) = session.execute(
        f"select tocsin.{function}(%s)".encode(), [list(queues)]
    ).fetchone() or (None,)
    assert isinstance(answer, list)
    return sorted(answer)


def begin_waiting(session: Connection, *queues: int) -> list[int]:
    return ask(session, "begin_waiting", *queues)


def unrung_transactions(session: Connection, *queues: int) -> list[int]:
    return ask(session, "unrung_transactions", *queues)


def end_waiting(session: Connection, *queues: int) -> None:
    session.execute("select tocsin.end_waiting(%s)", [list(queues)])


def test_without_a_waiting_consumer_no_queue_is_rung_for(sessions: Sessions) -> None:
    _, heard = sessions.listener()
    insert(sessions.open(), sessions.q)
    sessions.open().execute("select tocsin.enqueue('q', '1'), tocsin.enqueue_many('r', '[1, 2]')")
    assert heard() == []


def test_a_waiting_session_is_rung_for_until_its_wait_ends(sessions: Sessions) -> None:
    listener, heard = sessions.listener()
    assert begin_waiting(listener, sessions.q, sessions.r) == []
    insert(sessions.open(), sessions.q, sessions.r)
    assert heard() == ["q", "r"]
    sessions.open().execute("select tocsin.enqueue('q', '1')")
    assert heard() == ["q"]
    end_waiting(listener, sessions.q)
    insert(sessions.open(), sessions.q)
    insert(sessions.open(), sessions.r)
    assert heard() == ["r"]
    begin_waiting(listener, sessions.q)
    end_waiting(listener, sessions.q, sessions.r)
    insert(sessions.open(), sessions.q, sessions.r)
    assert heard() == []


def test_one_of_several_waiting_sessions_is_enough(sessions: Sessions) -> None:
    listener, heard = sessions.listener()
    another, heard_too = sessions.listener()
    begin_waiting(listener, sessions.q)
    begin_waiting(another, sessions.q)
    end_waiting(listener, sessions.q)
    insert(sessions.open(), sessions.q)
    assert heard() == heard_too() == ["q"]


def test_only_the_queues_that_a_consumer_waits_on_are_rung_for(sessions: Sessions) -> None:
    listener, heard = sessions.listener()
    begin_waiting(listener, sessions.r)
    producer = sessions.open()
    with producer.transaction():
        insert(producer, sessions.q, sessions.r, sessions.s, sessions.q)
        assert unrung_transactions(sessions.open(), sessions.q, sessions.r, sessions.s) == [
            sessions.q
        ]
    assert heard() == ["r", "s"]


def test_always_rings_always(sessions: Sessions) -> None:
    _, heard = sessions.listener()
    insert(sessions.open(), sessions.s)
    assert heard() == ["s"]
    sessions.admin.execute(
        "select tocsin.ensure_queue('q', notify => 'always'), tocsin.ensure_queue('s', notify =>"
        " 'on_demand')"
    )
    insert(sessions.open(), sessions.q, sessions.s)
    assert heard() == ["q"]


def test_an_insert_of_nothing_rings_for_nothing(sessions: Sessions) -> None:
    listener, heard = sessions.listener()
    begin_waiting(listener, sessions.q)
    producer = sessions.open()
    with producer.transaction():
        insert(producer)
        assert unrung_transactions(listener, sessions.q, sessions.r, sessions.s) == []
    assert heard() == []


def test_a_release_rings_as_an_insert_does(sessions: Sessions) -> None:
    insert(sessions.open(), sessions.q)
    sessions.admin.execute("update tocsin.messages set state = 'leased', lease = 1")
    listener, heard = sessions.listener()
    begin_waiting(listener, sessions.q)
    sessions.admin.execute(
        "select tocsin.release(array_agg(id), array_agg(lease)) from tocsin.messages"
    )
    assert heard() == ["q"]
    end_waiting(listener, sessions.q)
    sessions.admin.execute("update tocsin.messages set state = 'leased', lease = 1")
    with sessions.admin.transaction():
        sessions.admin.execute(
            "select tocsin.release(array_agg(id), array_agg(lease)) from tocsin.messages"
        )
        assert unrung_transactions(listener, sessions.q) == [sessions.q]
    assert heard() == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_consumer_that_begins_to_wait_is_told_of_messages_that_come_without_a_ring(
    sessions: Sessions, end: str
) -> None:
    listener, heard = sessions.listener()
    producer = sessions.open()
    producer.execute("begin")
    insert(producer, sessions.q)
    assert begin_waiting(listener, sessions.q, sessions.r) == [sessions.q]
    assert unrung_transactions(listener, sessions.q) == [sessions.q]
    producer.execute(end.encode())
    assert unrung_transactions(listener, sessions.q) == []
    assert sessions.visible() == (end == "commit")
    assert heard() == []


def test_each_statement_decides_for_itself(sessions: Sessions) -> None:
    listener, heard = sessions.listener()
    producer = sessions.open()
    with producer.transaction():
        insert(producer, sessions.q)
        assert begin_waiting(listener, sessions.q) == [sessions.q]
        insert(producer, sessions.q)
    assert heard() == ["q"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_old_snapshot_sees_a_new_waiting_session(sessions: Sessions, level: str) -> None:
    listener, heard = sessions.listener()
    producer = sessions.open()
    with producer.transaction():
        producer.execute(f"set transaction isolation level {level}".encode())
        producer.execute("select from tocsin.queues")
        assert begin_waiting(listener, sessions.q) == []
        insert(producer, sessions.q)
    assert heard() == ["q"]


def test_a_savepoint_takes_back_its_own_locks_and_rings_only(sessions: Sessions) -> None:
    listener, heard = sessions.listener()
    producer = sessions.open()
    producer.execute("begin")
    insert(producer, sessions.q)
    producer.execute("savepoint a")
    insert(producer, sessions.q, sessions.r)
    assert unrung_transactions(listener, sessions.q, sessions.r) == [sessions.q, sessions.r]
    producer.execute("rollback to a")
    assert begin_waiting(listener, sessions.q, sessions.r) == [sessions.q]
    insert(producer, sessions.r)
    producer.execute("rollback to a")
    producer.execute("commit")
    assert unrung_transactions(listener, sessions.q) == []
    assert sessions.visible() == 1
    assert heard() == []


def test_released_savepoints_and_caught_errors(sessions: Sessions) -> None:
    listener, _ = sessions.listener()
    producer = sessions.open()
    producer.execute("begin")
    producer.execute("savepoint a")
    insert(producer, sessions.q)
    producer.execute("release a")
    producer.execute(
        # rolled back
        "do $$ begin perform tocsin.enqueue('r', '1'); raise no_data_found; exception when"
        " no_data_found then null; end $$"
    )
    assert begin_waiting(listener, sessions.q, sessions.r) == [sessions.q]


def test_messages_inserted_in_the_transaction_of_an_enqueue_are_rung_for(
    sessions: Sessions,
) -> None:
    """tocsin.enqueue itself rings, and turns the trigger off for its own INSERT."""
    listener, heard = sessions.listener()
    begin_waiting(listener, sessions.q, sessions.r)
    producer = sessions.open()
    with producer.transaction():
        producer.execute("select tocsin.enqueue('s', '1')")
        insert(producer, sessions.q)
    assert heard() == ["q", "s"]
    with producer.transaction():
        with pytest.raises(psycopg.Error), producer.transaction():
            producer.execute("select tocsin.enqueue('s', '1', delay => '-1 s')")
        insert(producer, sessions.q)
    assert heard() == ["q"]
    copy = INSERT.replace("%s", f"array[{sessions.r}]")
    producer.execute(
        f"create function copy_it() returns trigger language plpgsql as $$ begin {copy}; return"
        " null; end $$".encode()
    )
    when = f"when (new.queue_id <> {sessions.r})"
    producer.execute(
        f"create trigger copy_it after insert on tocsin.messages for each row {when} execute"
        " function copy_it()".encode()
    )
    producer.execute("select tocsin.enqueue('q', '1')")
    assert heard() == ["q", "r"]


def test_a_key_that_is_taken_rings_for_nothing(sessions: Sessions) -> None:
    listener, heard = sessions.listener()
    begin_waiting(listener, sessions.q)
    for expected in (["q"], []):
        sessions.open().execute("select tocsin.enqueue('q', '1', key => 'k')")
        assert heard() == expected


@pytest.fixture
def two_phases(sessions: Sessions) -> Iterator[Connection]:
    """A session that can prepare transactions; the transaction `t` is rolled back."""
    if sessions.admin.execute("show max_prepared_transactions").fetchone() == ("0",):
        pytest.skip("this server has max_prepared_transactions = 0")
    session = sessions.open()
    yield session
    sessions.admin.execute("rollback")
    if (
        sessions.admin.execute(
            "select from pg_prepared_xacts where gid = 't' and database = current_database()"
        ).fetchone()
        is not None
    ):
        sessions.admin.execute("rollback prepared 't'")


def test_a_prepared_transaction_is_in_flight_until_it_ends(
    sessions: Sessions, two_phases: Connection
) -> None:
    listener, heard = sessions.listener()
    two_phases.execute("begin")
    insert(two_phases, sessions.q)
    two_phases.execute("prepare transaction 't'")
    sessions.kill(two_phases)
    assert begin_waiting(listener, sessions.q) == [sessions.q]
    sessions.admin.execute("commit prepared 't'")
    assert unrung_transactions(listener, sessions.q) == []
    assert sessions.visible() == 1
    assert heard() == []


def test_a_transaction_that_rang_cannot_be_prepared(
    sessions: Sessions, two_phases: Connection
) -> None:
    listener, _ = sessions.listener()
    begin_waiting(listener, sessions.q)
    two_phases.execute("begin")
    insert(two_phases, sessions.q)
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        two_phases.execute("prepare transaction 't'")


def test_a_dead_waiting_session_is_not_rung_for(sessions: Sessions) -> None:
    listener, _ = sessions.listener()
    _, heard = sessions.listener()
    begin_waiting(listener, sessions.q)
    insert(sessions.open(), sessions.q)
    assert heard() == ["q"]
    sessions.kill(listener)
    insert(sessions.open(), sessions.q)
    assert heard() == []


def test_a_dead_producer_is_not_in_flight(sessions: Sessions) -> None:
    producer = sessions.open()
    producer.execute("begin")
    insert(producer, sessions.q)
    assert unrung_transactions(sessions.admin, sessions.q) == [sessions.q]
    sessions.kill(producer)
    assert unrung_transactions(sessions.admin, sessions.q) == []


def hold(session: Connection, kind: str, queue_id: int) -> None:
    """Hold a lock exclusively, as a session does while it tests the lock."""
    assert kind in ("waiting", "unrung"), f"no session tests a lock of the kind {kind}"
    session.execute("select pg_advisory_lock(tocsin._lock_key(%s, %s))", [kind, queue_id])


def test_producers_that_test_at_the_same_moment_do_not_ring(sessions: Sessions) -> None:
    _, heard = sessions.listener()
    hold(sessions.open(), "waiting", sessions.q)
    insert(sessions.open(), sessions.q)
    assert heard() == []


def test_a_producer_that_meets_the_test_of_a_consumer_rings(sessions: Sessions) -> None:
    _, heard = sessions.listener()
    hold(sessions.open(), "unrung", sessions.q)
    insert(sessions.open(), sessions.q)
    assert heard() == ["q"]


def test_consumers_that_test_at_the_same_moment_see_no_transaction_in_flight(
    sessions: Sessions,
) -> None:
    hold(sessions.open(), "unrung", sessions.q)
    assert begin_waiting(sessions.open(), sessions.q) == []


def test_a_cancelled_test_leaves_no_lock_behind(sessions: Sessions) -> None:
    testing = sessions.open()
    endless = (
        "select count(tocsin._shared_elsewhere(a)) from generate_series(1, 10000) a,"
        " generate_series(1, 10000) b"
    )
    held = "select mode from pg_locks where locktype = 'advisory' and pid = %s"
    for _ in range(100):
        testing.pgconn.send_query(endless.encode())
        cancelled = False
        while not cancelled:  # it may not have begun
            sessions.admin.execute("select pg_cancel_backend(%s)", [testing.info.backend_pid])
            testing.pgconn.consume_input()
            cancelled = not testing.pgconn.is_busy()
        result = testing.pgconn.get_result()
        assert result is not None
        assert b"canceling statement" in result.error_message
        assert testing.pgconn.get_result() is None
        assert sessions.admin.execute(held, [testing.info.backend_pid]).fetchall() == []


def test_two_schemas_do_not_share_locks(sessions: Sessions) -> None:
    """The key has the schema's name in it."""
    statement = (
        "select tocsin._lock_key('waiting', 1), hashtextextended('\"tocsin\".waiting', 1),"
        " hashtextextended('\"another\".waiting', 1)"
    )
    ours, spelled_out, theirs = sessions.admin.execute(statement.encode()).fetchone() or ()
    assert ours == spelled_out != theirs
