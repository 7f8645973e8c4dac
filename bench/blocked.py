"""The cost of a claim with many jobs that wait for a slot of a limit.

``blocked``: the median time of ``dequeue(10)`` of plain messages in a queue with
100,000 held jobs, whose limit has one slot, which is taken. The floor is the same claim
in a queue without held jobs.

``blocked.handover``: the median time of ``archive`` of the job that has the slot and of
the claim of the next job, in that queue. In the queue of the floor, few jobs wait.

All take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import TypeAlias

import tocsin

from . import backlog
from .child import Child, child_process, orders, report
from .frame import Bench
from .results import Result

QUEUE = "blocked"
BATCH = 10
FOREVER = 86_400
TARGET = 1.2
Way: TypeAlias = Callable[[str], object]


async def measure(bench: Bench) -> list[Result]:
    """Measure the time of a claim, and of a hand-over of a slot, in ms."""
    turns, cycles = bench.pick(20, 5, 2), bench.pick(50, 20, 2)
    blocked = bench.pick(100_000, 10_000, 100)
    each = (turns + 1) * cycles
    taken: dict[tuple[str, bool], list[float]] = {}
    async with AsyncExitStack() as stack:
        children: dict[tuple[str, bool], Child] = {}
        for name, way, few in ("blocked", claim, 0), ("blocked.handover", hand_over, each + 1):
            for many in True, False:
                dsn = await stack.enter_async_context(bench.store_database(QUEUE))
                await backlog.fill(dsn, QUEUE, (each + 1) * BATCH if way is claim else 0)
                await backlog.block(dsn, QUEUE, blocked + few if many else few)
                children[name, many] = await stack.enter_async_context(child_process(way, dsn))
        for turn in range(turns + 1):
            for key, child in children.items():
                await child.order(cycles)
                times = [float(word) for word in await child.receive("taken")]
                if turn > 0:  # the first warms up
                    taken.setdefault(key, []).extend(times)
    settings = {
        "blocked": blocked,
        "batch": BATCH,
        "cycles": turns * cycles,
        "target_ratio": TARGET,
    }
    return [
        Result(name, median(taken[name, True]), "ms", median(taken[name, False]), settings)
        for name in ("blocked", "blocked.handover")
    ]


async def claim(dsn: str) -> None:
    """Claim messages as many times as each order says; archive them between claims."""
    async with (
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
        orders() as incoming,
    ):
        held = [m for m in await consumer.dequeue(BATCH, vt=FOREVER) if m.payload == "limited"]
        assert len(held) <= 1
        report("ready")
        while True:
            (cycles,) = await incoming.next()
            taken = []
            for _ in range(int(cycles)):
                began = time.perf_counter()
                messages = await consumer.dequeue(BATCH)
                taken.append((time.perf_counter() - began) * 1e3)
                assert len(messages) == BATCH
                await consumer.archive_many(messages)
            report("taken", *taken)


async def hand_over(dsn: str) -> None:
    """Archive the job that has the slot, and claim the next one, as each order says."""
    async with (
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
        orders() as incoming,
    ):
        (message,) = await consumer.dequeue(BATCH, vt=FOREVER)
        report("ready")
        while True:
            (cycles,) = await incoming.next()
            taken = []
            for _ in range(int(cycles)):
                began = time.perf_counter()
                await consumer.archive(message)
                (message,) = await consumer.dequeue(BATCH, vt=FOREVER)
                taken.append((time.perf_counter() - began) * 1e3)
            report("taken", *taken)
