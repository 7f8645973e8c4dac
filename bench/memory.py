"""The memory of a consumer's process over a million messages.

It is the process's resident set (``/proc``, so this is for Linux). ``memory``: the
largest after the first ten thousand messages, read at each further ten thousand; the
floor is what it was then.
"""

from __future__ import annotations

import os
from pathlib import Path

import trio

import tocsin

from . import backlog
from .child import orders, playing, say
from .draining import PATIENCE
from .frame import Bench
from .results import Result

QUEUE = "memory"
CONCURRENCY = 100
TARGET = 1.1
"""How many times as large the process may become: what an allocator does not return
at once."""


async def measure(bench: Bench) -> list[Result]:
    """Give the resident set in MB."""
    messages, step = bench.pick(1_000_000, 60_000, 1000), bench.pick(10_000, 10_000, 100)
    async with bench.store_database(QUEUE) as dsn:
        await backlog.fill(dsn, QUEUE, messages)
        async with playing(consume, dsn, messages, step) as consumer:
            await consumer.order("go")
            sizes = [float(word) for word in await consumer.hear("sizes", PATIENCE)]
    settings = {
        "messages": messages,
        "concurrency": CONCURRENCY,
        "last_mb": sizes[-1],
        "target_ratio": TARGET,
    }
    return [Result("memory", max(sizes[1:]), "MB", sizes[0], settings)]


async def consume(dsn: str, messages: str, step: str) -> None:
    """Handle a number of messages; say the size in MB at each step."""
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
        say("ready")
        await incoming.next()
        nursery.start_soon(lambda: consumer.handle(handle, concurrency=CONCURRENCY))
        await done.wait()
        say("sizes", *sizes)
        nursery.cancel_scope.cancel()


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6
