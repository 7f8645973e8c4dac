"""The memory of a consumer's process over a million messages.

The memory is the process's resident set, read from ``/proc``, so the scenario needs
Linux. ``memory`` is the largest size that is read after each further ten thousand
messages. The floor is the size after the first ten thousand messages.
"""

from __future__ import annotations

import os
from pathlib import Path

import trio

import tocsin

from . import backlog
from .child import child_process, orders, report
from .draining import PATIENCE
from .frame import Bench
from .results import Result

QUEUE = "memory"
CONCURRENCY = 100
TARGET = 1.1
"""Maximum growth of the process, which allows for memory that an allocator does not
return at once."""


async def measure(bench: Bench) -> list[Result]:
    """Measure the resident set in MB."""
    messages, step = bench.pick(1_000_000, 60_000, 1000), bench.pick(10_000, 10_000, 100)
    async with bench.store_database(QUEUE) as dsn:
        await backlog.fill(dsn, QUEUE, messages)
        async with child_process(consume, dsn, messages, step) as consumer:
            await consumer.order("go")
            sizes = [float(word) for word in await consumer.receive("sizes", PATIENCE)]
    settings = {
        "messages": messages,
        "concurrency": CONCURRENCY,
        "last_mb": sizes[-1],
        "target_ratio": TARGET,
    }
    return [Result("memory", max(sizes[1:]), "MB", sizes[0], settings)]


async def consume(dsn: str, messages: str, step: str) -> None:
    """Handle a number of messages, and report the size in MB at each step."""
    count, sizes, done = 0, list[float](), trio.Event()

    async def handle(message: tocsin.Message) -> None:
        nonlocal count
        assert message.payload is not None
        count += 1
        if count % int(step) == 0:
            sizes.append(_resident())
            if count == int(messages):
                done.set()

    async with (
        orders() as incoming,
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
        trio.open_nursery() as nursery,
    ):
        report("ready")
        await incoming.next()
        nursery.start_soon(lambda: consumer.handle(handle, concurrency=CONCURRENCY))
        await done.wait()
        report("sizes", *sizes)
        nursery.cancel_scope.cancel()


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6
