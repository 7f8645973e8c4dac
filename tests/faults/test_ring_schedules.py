"""The protocol that rings only while a consumer waits, under more than a thousand
random interleavings on a real server, down to the steps within one insert.

A scheduler with a seed moves sessions, one at a time, to the next step. The steps
within a statement are the lock functions: the first schema of the search path has
functions of the same names that stop at a *gate* first. The session sends a notice at
the gate, and waits for an advisory lock of the scheduler. Each gate has its own lock.

At the start of a round all consumers wait. Most of them wake for no reason, while each
producer runs a transaction. At the end of the round no consumer may wait while a
message is ready. Another test leaves out one step of the protocol, and expects a lost
wake-up."""

from __future__ import annotations

import random
import select
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support import PATIENCE, connect_blocking
from tests.support.sweeps import sweep

pytestmark = pytest.mark.fault

GATES = """
create schema gated;
create function gated.stop() returns void language plpgsql as $$
declare
    gate integer := nextval('gated.gate_' || current_setting('gated.session'));
begin
    raise notice 'gate %', gate;
    perform pg_catalog.pg_advisory_lock(current_setting('gated.session')::integer, gate);
    perform pg_catalog.pg_advisory_unlock(current_setting('gated.session')::integer, gate);
end
$$;
create function gated.pg_try_advisory_lock(key bigint) returns boolean language plpgsql as $$
begin
    perform gated.stop();
    return pg_catalog.pg_try_advisory_lock(key);
end
$$;
create function gated.pg_try_advisory_xact_lock_shared(key bigint)
    returns boolean language plpgsql as $$
begin
    perform gated.stop();
    return pg_catalog.pg_try_advisory_xact_lock_shared(key);
end
$$;
-- so that it goes through these gates, too
alter function tocsin.enqueue security invoker reset search_path;
"""

NO_UNRUNG_LOCK = """
    case when notify = 'always' then true
         when tocsin._shared_elsewhere(tocsin._lock_key('waiting', queue_id)) then true
         else tocsin._shared_elsewhere(tocsin._lock_key('waiting', queue_id)) end
"""
NO_SECOND_TEST = """
    case when notify = 'always' then true
         when tocsin._shared_elsewhere(tocsin._lock_key('waiting', queue_id)) then true
         else not pg_try_advisory_xact_lock_shared(tocsin._lock_key('unrung', queue_id)) end
"""
NO_UNRUNG_TEST = "NO_UNRUNG_TEST"
NO_LAST_CLAIM = "NO_LAST_CLAIM"

Script = Generator[str, list[str | None], None]
"""Yields statements, and is sent the first column of each one's result."""


class Actor:
    """A session that runs a script, one step after the other."""

    def __init__(self, schedule: Schedule, number: int, script: Callable[[Actor], Script]) -> None:
        self._schedule = schedule
        self._number = number
        self._write = script
        self._next_gate = 1
        self.rung = False
        """Whether a notification has come since the script cleared this."""
        self.idle = True
        """Whether there is nothing to do: a consumer waits, a producer has ended its
        transaction."""
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        schedule.control.execute(f"create sequence gated.gate_{number}".encode())
        schedule.control.execute("select pg_advisory_lock(%s, 1)", [number])
        self.connect()

    def connect(self) -> None:
        """Begin again, with another session."""
        self.close()
        options = f"-c search_path=gated,pg_catalog -c gated.session={self._number}"
        self._connection = connect_blocking(make_conninfo(self._schedule.dsn, options=options))
        self._connection.add_notice_handler(self._arrive)
        self._at_gate = False
        self._script = self._write(self)
        self._statement: str | None = next(self._script)
        self._sent = False

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @property
    def between_statements(self) -> bool:
        return not self._sent

    def die(self) -> None:
        """End the session, and begin again."""
        assert self._connection is not None
        pid = self._connection.info.backend_pid
        self._schedule.control.execute(
            "select pg_terminate_backend(%s, %s)", [pid, PATIENCE * 1000]
        )
        self.connect()

    def step(self) -> None:
        """Come to the next gate, or to the end of the statement."""
        assert self._connection is not None
        if self._sent:
            self._at_gate = False
            self._next_gate += 1
            self._schedule.control.execute(
                "select pg_advisory_lock(%s, %s), pg_advisory_unlock(%s, %s)",
                [self._number, self._next_gate, self._number, self._next_gate - 1],
            )
        else:
            assert self._statement is not None
            self._connection.pgconn.send_query(self._statement.encode())
            self._sent = True
        if (answer := self._receive()) is not None:
            self._sent = False
            self._statement = self._script.send(answer)

    def _arrive(self, notice: psycopg.errors.Diagnostic) -> None:
        assert notice.message_primary == f"gate {self._next_gate}"
        self._at_gate = True
        self._schedule.gates += 1

    def _receive(self) -> list[str | None] | None:
        assert self._connection is not None
        pg = self._connection.pgconn
        while pg.is_busy() and not self._at_gate:
            assert select.select([pg.socket], [], [], PATIENCE)[0]
            pg.consume_input()
        if self._at_gate:
            return None
        values: list[str | None] = []
        while (result := pg.get_result()) is not None:
            assert not result.error_message, result.error_message.decode()
            for row in range(result.ntuples):
                value = result.get_value(row, 0)
                values.append(None if value is None else value.decode())
        while pg.notifies() is not None:
            self.rung = True
        return values


class Schedule:
    """Producers, consumers, and chance."""

    def __init__(
        self, dsn: str, consumers: int, seed: int, leave_out: str | None, stack: ExitStack
    ) -> None:
        self.dsn = dsn
        self.control = stack.enter_context(connect_blocking(dsn))
        self.gates = 0
        self.taken = 0
        self.committed = 0
        self._random = random.Random(seed)
        self._leave_out = leave_out
        self.control.execute(GATES.encode())
        self.control.execute("select tocsin.create_queue('q'), tocsin.create_queue('r')")
        if leave_out in (NO_UNRUNG_LOCK, NO_SECOND_TEST):
            self.control.execute(
                "create or replace function tocsin._decide_to_ring(queue_id integer, notify text)"
                f" returns boolean language sql as $$ select {leave_out} $$".encode()
            )
        self._queues = [
            int(number) for (number,) in self.control.execute("select id from tocsin.queues")
        ]
        self._both = f"unnest('{{{','.join(map(str, self._queues))}}}'::integer[]) q"
        self._producers = [Actor(self, number, self._produce) for number in (1, 2)]
        self._consumers = [Actor(self, number, self._consume) for number in range(3, 3 + consumers)]
        for actor in (*self._producers, *self._consumers):
            stack.callback(actor.close)
        self._settle()

    def rounds(self, number: int) -> int | None:
        """Run this many rounds, or as many as it takes to lose a wake-up; return how
        many that were, None if none was lost."""
        for count in range(1, number + 1):
            for actor in self._producers:
                actor.idle = False
            for actor in self._consumers:
                actor.rung = actor.rung or self._random.random() < 0.9
            while working := [a for a in self._producers if not a.idle]:
                ready = [
                    a
                    for a in self._consumers
                    if not a.idle or a.rung or self._random.random() < 0.1
                ]
                actor = self._random.choice([*working, *ready])
                if (
                    actor in self._consumers
                    and actor.between_statements
                    and self._random.random() < 0.01
                ):
                    actor.die()
                # Several steps in a row let one of them overtake another that stands at
                # a critical point.
                for _ in range(self._random.choice((1, 1, 2, 4, 8))):
                    actor.step()
                    if actor.idle:
                        break
            self._settle()
            if self.control.execute("select from tocsin.messages").fetchone() is not None:
                return count
        return None

    def _settle(self) -> None:
        """Let the consumers run until all of them wait."""
        quiet = 0
        while quiet < 2:  # a second time, because a notification may be under way
            quiet += 1
            for actor in self._consumers:
                actor.step()
                while not (actor.idle and actor.between_statements):
                    actor.step()
                    quiet = 0

    def _produce(self, me: Actor) -> Script:
        while True:
            added = 0
            yield "begin"
            for _ in range(self._random.choice((1, 1, 2))):
                taken_back = self._random.random() < 0.2
                if taken_back:
                    yield "savepoint a"
                queues = self._random.sample(self._queues, self._random.choice((1, 1, 2)))
                array = f"'{{{','.join(map(str, queues))}}}'::integer[]"
                if self._random.random() < 0.5:  # which rings by itself, and not by the trigger
                    yield (
                        "select tocsin.enqueue(q.name, '1') from tocsin.queues q where q.id = any"
                        f" ({array})"
                    )
                else:
                    yield (
                        "insert into tocsin.messages (queue_id, due, vt, enqueued_at, payload) "
                        f"select q, now(), now(), now(), '1' from unnest({array}) q"
                    )
                if taken_back:
                    yield "rollback to a"
                else:
                    added += len(queues)
            if self._random.random() < 0.2:
                yield "rollback"
            else:
                yield "commit"
                self.committed += added
            me.idle = True

    def _consume(self, me: Actor) -> Script:
        me.idle = False
        yield 'listen "tocsin.q"'
        yield 'listen "tocsin.r"'
        while True:
            yield from self._claim()
            in_flight = yield f"select unnest(tocsin.begin_waiting(array_agg(q))) from {self._both}"
            if self._leave_out == NO_UNRUNG_TEST:
                in_flight = []
            found = False
            while in_flight and not found:
                found = yield from self._claim()
                in_flight = yield (
                    f"select unnest(tocsin.unrung_transactions(array_agg(q))) from {self._both}"
                )
            while not found:
                me.rung = False
                if self._leave_out != NO_LAST_CLAIM:
                    found = yield from self._claim()
                while not (found or me.rung):
                    me.idle = True
                    yield "select 1 where false"  # brings what has been notified
                me.idle = False
                if self._random.random() < 0.8:
                    break
            yield f"select tocsin.end_waiting(array_agg(q)) from {self._both}"

    def _claim(self) -> Generator[str, list[str | None], bool]:
        found = yield (
            f"delete from tocsin.messages where queue_id in (select q from {self._both})"
            " returning id"
        )
        self.taken += len(found)
        return bool(found)


@contextmanager
def scheduled(
    dsn: str, consumers: int, seed: int, leave_out: str | None = None
) -> Iterator[Schedule]:
    with ExitStack() as stack:
        yield Schedule(dsn, consumers, seed, leave_out, stack)


@pytest.mark.slow
@pytest.mark.parametrize(("consumers", "number"), [(1, 1000), (2, 500)])
def test_no_consumer_waits_while_a_message_is_ready(
    store_dsn: str, consumers: int, number: int
) -> None:
    with scheduled(store_dsn, consumers, seed=0) as schedule:
        assert schedule.rounds(number) is None
        assert schedule.taken == schedule.committed > number
        assert schedule.gates > 3 * schedule.committed


@sweep(
    "leave_out",
    [NO_UNRUNG_LOCK, NO_SECOND_TEST, NO_UNRUNG_TEST, NO_LAST_CLAIM],
    quick=1,
    ids=["unrung lock", "second test", "unrung test", "last claim"],
)
def test_a_wake_up_is_lost_without_each_step(store_dsn: str, leave_out: str) -> None:
    with scheduled(store_dsn, 1, 0, leave_out) as schedule:
        assert schedule.rounds(3000) is not None
