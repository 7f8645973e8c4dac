"""The cost of a claim in a full table, and in a table without vacuum.

``flat``: the median time of ``dequeue(100)`` and ``archive_many``, on the server and in
the client. The full table has 5,000,000 ready, 1,000,000 delayed and 10,000,000
archived messages. The floor is the same work in a table that has only the messages to
claim. Both take turns.

``flat.held``: a drain of a million messages while another session keeps a snapshot
open, so that vacuum cannot remove any dead row. The floor is the same drain without
that session. ``flat.held_end`` is the last tenth of the drain with the snapshot, and
its floor is the first tenth.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import psycopg

import tocsin

from . import backlog, drain, draining
from .child import Child, child_process, orders, report
from .frame import Bench
from .results import Result

QUEUE = "flat"
BATCH = 100
TARGET, TARGET_HELD = 1.5, 2.0


async def measure(bench: Bench) -> list[Result]:
    """Measure the time of a cycle in ms, and messages per second."""
    return [await _measure_full(bench), *await _measure_held(bench)]


async def _measure_full(bench: Bench) -> Result:
    turns, cycles = bench.pick(10, 5, 2), bench.pick(20, 10, 2)
    ready, delayed, archived = (
        count // bench.pick(1, 100, 5000) for count in (5_000_000, 1_000_000, 10_000_000)
    )
    just_enough = (turns + 1) * cycles * BATCH
    taken: tuple[list[float], list[float]] = ([], [])
    async with bench.store_database(QUEUE) as full, bench.store_database(QUEUE) as small:
        await backlog.fill(full, QUEUE, just_enough + ready, delayed=delayed, archived=archived)
        await backlog.fill(small, QUEUE, just_enough)
        async with child_process(cycle, full) as ours, child_process(cycle, small) as floor:
            for child in (ours, floor):
                await _take(child, cycles)
            for _ in range(turns):
                for child, own in zip((ours, floor), taken, strict=True):
                    own += await _take(child, cycles)
    settings = {
        "ready": ready,
        "delayed": delayed,
        "archived": archived,
        "cycles": turns * cycles,
        "batch": BATCH,
    }
    return Result(
        "flat", median(taken[0]), "ms", median(taken[1]), settings | {"target_ratio": TARGET}
    )


async def _take(child: Child, cycles: int) -> list[float]:
    await child.order(cycles)
    return [float(word) for word in await child.receive("taken")]


async def _measure_held(bench: Bench) -> list[Result]:
    messages = bench.pick(1_000_000, 10_000, 1000)
    free = await _drain(bench, messages, hold=False)
    held = await _drain(bench, messages, hold=True)
    tenth = messages / draining.TENTHS
    first = tenth / (held.marks[0] - held.began) * 1e9
    last = tenth / (held.marks[-1] - held.marks[-2]) * 1e9
    settings = {"messages": messages, "concurrency": drain.CONCURRENCY, "target_ratio": TARGET_HELD}
    return [
        Result("flat.held", held.rate, "/s", free.rate, settings),
        Result("flat.held_end", last, "/s", first, settings),
    ]


async def _drain(bench: Bench, messages: int, *, hold: bool) -> draining.Drained:
    async with bench.store_database(QUEUE) as dsn:
        await backlog.fill(dsn, QUEUE, messages)
        words = messages, drain.FOREVER, QUEUE, drain.CONCURRENCY, 0
        if not hold:
            return await draining.drain(draining.handle, dsn, *words)
        async with child_process(hold_snapshot, dsn):
            return await draining.drain(draining.handle, dsn, *words)


async def cycle(dsn: str) -> None:
    """Claim and archive a hundred messages, as many times as each order says.

    Report the time of each cycle, in ms.
    """
    async with (
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
        orders() as incoming,
    ):
        report("ready")
        while True:
            (cycles,) = await incoming.next()
            taken = []
            for _ in range(int(cycles)):
                began = time.perf_counter()
                messages = await consumer.dequeue(BATCH)
                assert len(messages) == BATCH
                await consumer.archive_many(messages)
                taken.append((time.perf_counter() - began) * 1e3)
            report("taken", *taken)


def hold_snapshot(dsn: str) -> None:
    """Keep a snapshot open until the process is killed."""
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select count(*) from tocsin.messages where id < 0")
        report("ready")
        sys.stdin.read()
