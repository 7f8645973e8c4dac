"""The rate at which one process with an async handler drains 50,000 messages.

The handler is called for each message, with concurrency 100, and each message is
archived. The floor is one blocking connection that claims a hundred rows and then
archives them (``floor.py``: minimal tables, in a separate database). ``drain.four`` is
the floor with four threads and connections, which shows what the server can do. It has
no target, because Tocsin runs one statement at a time. All ways take turns, each turn
in a new database. ``draining.py`` says when the clock runs.
"""

from __future__ import annotations

from statistics import median

from . import backlog, floor
from .draining import Drained, drain, handle
from .frame import Bench
from .results import Result

QUEUE = "drain"
CONCURRENCY = 100
FOREVER = 600.0
TARGET = 1 / 1.3
"""Maximum ratio of the floor to the rate."""


async def measure(bench: Bench) -> list[Result]:
    """Measure messages per second."""
    messages, rounds = bench.pick(50_000, 20_000, 500), bench.pick(3, 1, 1)
    ours, one, four = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        ours.append((await drain_with_tocsin(bench, messages)).rate)
        one.append((await _drain_by_hand(bench, messages, 1)).rate)
        four.append((await _drain_by_hand(bench, messages, 4)).rate)
    settings = {"messages": messages, "rounds": rounds, "concurrency": CONCURRENCY}
    return [
        Result("drain", median(ours), "/s", median(one), settings | {"target_ratio": TARGET}),
        Result("drain.four", median(ours), "/s", median(four), settings | {"threads": 4}),
    ]


async def drain_with_tocsin(bench: Bench, messages: int) -> Drained:
    """Drain a backlog with `Consumer.handle`, and check that it is in the archive."""
    async with bench.store_database(QUEUE) as dsn:
        await backlog.fill(dsn, QUEUE, messages)
        drained = await drain(handle, dsn, messages, FOREVER, QUEUE, CONCURRENCY, 0)
        archived = await backlog.archived(dsn)
    if archived != messages:
        raise RuntimeError(f"{archived} messages were archived instead of {messages}")
    return drained


async def _drain_by_hand(bench: Bench, messages: int, threads: int) -> Drained:
    async with bench.bare_database(floor.QUEUE_TABLES) as dsn:
        await floor.fill(dsn, messages)
        return await drain(floor.claim_and_archive, dsn, messages, FOREVER, threads)
