"""The rate of one producer that enqueues while no consumer waits.

``enqueue``: one awaited `Producer.enqueue` after the other. The floor is a blocking
INSERT into the same table, with its indexes and its trigger. ``enqueue_batch``:
`Producer.enqueue_many` with a thousand payloads in each call. The floor is a raw COPY
of a thousand rows into the same table; it encodes the same payloads with the standard
library. Each call of the four has its own commit. Tocsin and the floor take turns in
one database, and each figure is that of the median turn.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

import psycopg

import tocsin

from . import backlog
from .child import Child, child_process, orders, report
from .frame import Bench
from .results import Result

QUEUE = "enqueue"
BATCH = 1000
TARGET = 1 / 0.8
"""Maximum ratio of the floor to the rate."""
PAYLOAD = {"n": 1, "to": "ada@example.org"}


async def measure(bench: Bench) -> list[Result]:
    """Measure messages per second, one message in each call."""
    turns, count = bench.pick(20, 6, 2), bench.pick(500, 500, 10)
    value, floor_rate = await _take_turns(bench, produce, insert, turns, count)
    return [
        Result(
            "enqueue",
            value,
            "/s",
            floor_rate,
            {"messages": turns * count, "target_ratio": TARGET},
        )
    ]


async def measure_batch(bench: Bench) -> list[Result]:
    """Measure messages per second, a thousand messages in each call."""
    turns, count = bench.pick(10, 4, 2), bench.pick(10, 5, 1)
    value, floor_rate = await _take_turns(bench, produce_batches, copy, turns, count)
    settings = {"messages": turns * count * BATCH, "batch": BATCH, "target_ratio": TARGET}
    return [Result("enqueue_batch", value * BATCH, "/s", floor_rate * BATCH, settings)]


async def _take_turns(
    bench: Bench,
    subject: Callable[..., object],
    floor: Callable[..., object],
    turns: int,
    count: int,
) -> tuple[float, float]:
    rates: tuple[list[float], list[float]] = ([], [])
    async with (
        bench.store_database(QUEUE) as dsn,
        child_process(subject, dsn) as ours,
        child_process(floor, dsn) as theirs,
    ):
        for child in (ours, theirs):
            # PostgreSQL and psycopg prepare statements and keep plans after some
            # repetitions.
            await _turn(child, max(1, count // 5))
        for _ in range(turns):
            for child, own in zip((ours, theirs), rates, strict=True):
                own.append(await _turn(child, count))
    return median(rates[0]), median(rates[1])


async def _turn(child: Child, count: int) -> float:
    await child.order(count)
    return count / await child.receive_number("took")


async def produce(dsn: str) -> None:
    """Enqueue as many messages as each order says.

    Report how long it took, in seconds.
    """
    await _repeat(dsn, lambda producer: producer.enqueue(PAYLOAD))


async def produce_batches(dsn: str) -> None:
    """Enqueue as many batches as each order says.

    Report how long it took, in seconds.
    """
    await _repeat(dsn, lambda producer: producer.enqueue_many([PAYLOAD] * BATCH))


async def _repeat(dsn: str, enqueue: Callable[[tocsin.Producer], Awaitable[object]]) -> None:
    async with (
        tocsin.connect(dsn) as store,
        store.producer(QUEUE) as producer,
        orders() as incoming,
    ):
        report("ready")
        while True:
            (count,) = await incoming.next()
            began = time.perf_counter()
            for _ in range(int(count)):
                await enqueue(producer)
            report("took", time.perf_counter() - began)


def insert(dsn: str) -> None:
    """Do the work of `produce` by hand."""
    statement = (
        f"insert into tocsin.messages ({backlog.COLUMNS}) select id, clock_timestamp(),"
        " clock_timestamp(), clock_timestamp(), %s::jsonb from tocsin.queues where name ="
        f" '{QUEUE}'"
    ).encode()
    with psycopg.connect(dsn, autocommit=True) as connection:
        report("ready")
        for line in sys.stdin:
            began = time.perf_counter()
            for _ in range(int(line)):
                connection.execute(statement, [json.dumps(PAYLOAD)])
            report("took", time.perf_counter() - began)


def copy(dsn: str) -> None:
    """Do the work of `produce_batches` by hand."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "select id, now()::text from tocsin.queues where name = %s", [QUEUE]
        ).fetchone()
        assert row is not None
        queue_id, now = row
        report("ready")
        for line in sys.stdin:
            began = time.perf_counter()
            for _ in range(int(line)):
                rows = "".join(
                    f"{queue_id}\t{now}\t{now}\t{now}\t{json.dumps(payload)}\n"
                    for payload in [PAYLOAD] * BATCH
                )
                with connection.cursor().copy(backlog.COPY.encode()) as stream:
                    stream.write(rows)
            report("took", time.perf_counter() - began)
