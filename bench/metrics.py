"""The time of the metrics of a large queue and of an empty queue.

There is no floor: a count of all messages by hand takes seconds.
"""

from __future__ import annotations

import time

import tocsin

from . import backlog
from .frame import Bench
from .results import Result, percentile

LARGE, SMALL = "large", "small"
TARGET = 50.0
"""Maximum time of the metrics of any queue, in milliseconds."""


async def measure(bench: Bench) -> list[Result]:
    """Measure both medians, and the 99th percentile of the large queue, in ms."""
    count, samples = bench.pick(1_000_000, 200_000, 1000), bench.pick(500, 100, 3)
    async with bench.store_database(LARGE, SMALL) as dsn, tocsin.connect(dsn) as store:
        await backlog.fill(dsn, LARGE, count, delayed=count, archived=count)
        taken: dict[str, list[float]] = {LARGE: [], SMALL: []}
        for _ in range(samples):
            for queue, times in taken.items():
                began = time.perf_counter()
                await store.queues.metrics(queue)
                times.append((time.perf_counter() - began) * 1e3)
    settings = {
        "ready": count,
        "delayed": count,
        "archived": count,
        "samples": samples,
        "target_value": TARGET,
    }
    return [
        Result("metrics.p50", percentile(taken[LARGE], 50), "ms", None, settings),
        Result("metrics.p99", percentile(taken[LARGE], 99), "ms", None, settings),
        Result("metrics.empty", percentile(taken[SMALL], 50), "ms", None, settings),
    ]
