"""The floors: the work of the scenarios, done by hand.

The floors use blocking psycopg and the least SQL that does the work. Each function runs
in a child process (``child.py``). The floors are not queues: they have no leases, no
workers and no retries, and a killed floor loses the messages that it has claimed. No
queue can be faster.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg

from .child import report
from .draining import Tally
from .frame import execute

TABLE = (
    b"create table messages (id bigint generated always as identity primary key, sent bigint, due"
    b" timestamptz not null default now())"
)
"""The table of the floors that claim."""
QUEUES = 10
HEARTBEAT = 2.0


def connect(dsn: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect in autocommit mode."""
    return psycopg.connect(dsn, autocommit=True)


def wakes(connection: psycopg.Connection[tuple[Any, ...]]) -> Iterator[str]:
    """Yield the payload of each notification when it arrives."""
    while True:
        select.select([connection.fileno()], [], [])
        connection.pgconn.consume_input()
        while (notification := connection.pgconn.notifies()) is not None:
            yield notification.extra.decode()


# Wake-up


def send(dsn: str, statement: str) -> None:
    """Run a statement for each order.

    The parameter of the statement is the time just before it (CLOCK_MONOTONIC, ns).
    """
    with connect(dsn) as connection:
        command = statement.encode()
        report("ready")
        for _ in sys.stdin:
            connection.execute(command, [time.monotonic_ns()])


NOTIFY = "select pg_notify('floor', %s::text)"
"""A statement for `send` that wakes `receive_notifications`."""
INSERT_AND_NOTIFY = (
    "with added as (insert into messages (sent) values (%s)) select pg_notify('floor', '')"
)
"""A statement for `send` that wakes `receive_and_claim`."""


def receive_notifications(dsn: str) -> None:
    """Report how long each notification took to arrive, in ms."""
    with connect(dsn) as connection:
        connection.execute("listen floor")
        report("ready")
        for sent in wakes(connection):
            report("handled", (time.monotonic_ns() - int(sent)) / 1e6)


def call(dsn: str) -> None:
    """Notify `answer` for each order, and wait for the notification from it.

    Report how long that took, in ms.
    """
    with connect(dsn) as connection, connect(dsn) as listener:
        listener.execute("listen floor_back")
        answers = wakes(listener)
        report("ready")
        for _ in sys.stdin:
            sent = time.monotonic_ns()
            connection.execute("select pg_notify('floor', '')")
            next(answers)
            report("handled", (time.monotonic_ns() - sent) / 1e6)


def answer(dsn: str) -> None:
    """Notify `call` back."""
    with connect(dsn) as connection, connect(dsn) as listener:
        listener.execute("listen floor")
        report("ready")
        for _ in wakes(listener):
            connection.execute("select pg_notify('floor_back', '')")


def receive_and_claim(dsn: str) -> None:
    """Delete one message from the table on each notification.

    Report how long the message and its notification took to arrive, in ms.
    """
    with connect(dsn) as connection, connect(dsn) as listener:
        listener.execute("listen floor")
        report("ready")
        for _ in wakes(listener):
            heard = time.monotonic_ns()
            claimed = connection.execute(
                "delete from messages where id = (select id from messages order by id limit 1 for"
                " update skip locked) returning sent"
            ).fetchone()
            now = time.monotonic_ns()
            assert claimed is not None
            report("handled", (now - claimed[0]) / 1e6, (heard - claimed[0]) / 1e6)


# Drain

QUEUE_TABLES = b"""
create table queue (
    id bigint generated always as identity primary key, priority integer not null default 0,
    due timestamptz not null default now(),
    leased_until timestamptz, read_ct integer not null default 0,
    enqueued_at timestamptz not null default now(), payload jsonb not null
);
create index queue_ready on queue (priority, due, id) where leased_until is null;
create index queue_leased on queue (leased_until) where leased_until is not null;
create table done (
    id bigint primary key, priority integer not null, read_ct integer not null,
    enqueued_at timestamptz not null,
    archived_at timestamptz not null, payload jsonb not null
)
"""
"""The tables of `claim_and_archive`: the minimum for a queue with priorities,
delays, leases and an archive."""
_FILL = (
    b"insert into queue (payload) select jsonb_build_object('n', n) from generate_series(1,"
    b" %s::integer) n"
)
_CLAIM = """
update queue set leased_until = now() + interval '30 s', read_ct = read_ct + 1
where id = any (array(
    select id from queue where leased_until is null and due <= now()
    order by priority, due, id limit 100 for update skip locked
))
returning id, payload
"""
_ARCHIVE = """
with finished as (delete from queue where id = any (%s)
    returning id, priority, read_ct, enqueued_at, payload)
insert into done select id, priority, read_ct, enqueued_at, now(), payload from finished
"""

_DELAY = "update queue set leased_until = null, due = now() + interval '1 hour' where id = any (%s)"


async def fill(dsn: str, messages: int) -> None:
    """Add rows to the queue, like `backlog.fill` for Tocsin."""
    await execute(dsn, _FILL, messages)
    await execute(dsn, b"vacuum (analyze) queue")


def claim_and_archive(dsn: str, share: str, seconds: str, threads: str) -> None:
    """Claim a hundred rows, call a function for each, and archive the hundred.

    The given number of threads do this, each with its own connection.
    """
    tally = Tally(int(share))
    lock = threading.Lock()

    def handle(payload: object) -> None:
        assert payload is not None

    def work(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        deadline = time.monotonic() + float(seconds)
        while time.monotonic() < deadline and (claimed := connection.execute(_CLAIM).fetchall()):
            with lock:
                tally.add(len(claimed))
            for _, payload in claimed:
                handle(payload)
            connection.execute(_ARCHIVE, [[number for number, _ in claimed]])
            with lock:
                settled.append(len(claimed))

    settled: list[int] = []
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(dsn)) for _ in range(int(threads))]
        report("ready")
        sys.stdin.readline()
        workers = [threading.Thread(target=work, args=[c]) for c in connections]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        tally.tell(sum(settled))
        sys.stdin.read()


def claim_and_delay(dsn: str, share: str, seconds: str) -> None:
    """Claim a hundred rows and make them due in an hour, until none is left."""
    tally = Tally(int(share))
    deadline = time.monotonic() + float(seconds)
    with connect(dsn) as connection:
        report("ready")
        sys.stdin.readline()
        while time.monotonic() < deadline and (claimed := connection.execute(_CLAIM).fetchall()):
            tally.add(len(claimed))
            connection.execute(_DELAY, [[number for number, _ in claimed]])
        tally.tell(tally.count)
        sys.stdin.read()


# Due time


def claim_when_due(dsn: str) -> None:
    """Sleep until the next message is due and delete it, for each order.

    Report how late the message was, in ms.
    """
    with connect(dsn) as connection:
        report("ready")
        for _ in sys.stdin:
            first = connection.execute(
                "select extract(epoch from min(due) - clock_timestamp())::float8 from messages"
            ).fetchone()
            assert first is not None
            time.sleep(max(0, first[0]))
            claimed = connection.execute(
                "delete from messages where id = (select id from messages where due <="
                " clock_timestamp() order by due limit 1 for update skip locked) returning"
                " extract(epoch from due)::float8"
            ).fetchone()
            now = time.time()
            assert claimed is not None
            report("handled", (now - claimed[0]) * 1e3)


# Death


def hold_lock(dsn: str) -> None:
    """Hold an advisory lock until the process is killed."""
    with connect(dsn) as connection:
        connection.execute("select pg_advisory_lock(1)")
        report("ready")
        sys.stdin.read()


def wait_for_lock(dsn: str) -> None:
    """Wait for that lock, and report when it was taken (CLOCK_MONOTONIC, ns)."""
    with connect(dsn) as connection:
        report("ready")
        connection.execute("select pg_advisory_lock(1)")
        report("handled", time.monotonic_ns())


# Idle


def listen(dsn: str, *channels: str) -> None:
    """LISTEN on each of these channels, and read the notifications.

    Each channel has its own connection.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(dsn)) for _ in channels]
        for connection, channel in zip(connections, channels, strict=True):
            connection.execute(f'listen "{channel}"'.encode())
        report("ready")
        while True:
            select.select(connections, [], [])
            for connection in connections:
                connection.pgconn.consume_input()


def listen_and_beat(dsn: str) -> None:
    """LISTEN on ten channels, and update a row every two seconds.

    Count from one order to the next. Then report the seconds of CPU, the statements,
    and the wake-ups (two for each statement: by the clock and by the answer).
    """
    with connect(dsn) as connection:
        for number in range(QUEUES):
            connection.execute(f"listen queue_{number}".encode())
        connection.execute("create table beats (at timestamptz)")
        connection.execute("insert into beats values (now())")
        report("ready")
        os.read(sys.stdin.fileno(), 100)
        began, beats = time.process_time(), 0
        next_beat = time.monotonic() + HEARTBEAT
        while True:
            readable, _, _ = select.select(
                [connection.fileno(), sys.stdin], [], [], max(0, next_beat - time.monotonic())
            )
            if sys.stdin in readable:
                break
            if not readable:
                connection.execute("update beats set at = clock_timestamp()")
                beats += 1
                next_beat += HEARTBEAT
        report("counted", time.process_time() - began, beats, 2 * beats)
        sys.stdin.read()
