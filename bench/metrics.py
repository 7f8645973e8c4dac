"""The time that the metrics of one queue take: of a large one, and of an empty one.

Nothing is compared with a floor: by hand one would count all, in seconds.
"""

from __future__ import annotations

import time

import tocsin

from . import backlog
from .frame import Bench
from .results import Result, percentile

LARGE, SMALL = "large", "small"
TARGET = 50.0
"""Milliseconds that the metrics of any queue may take."""


async def measure(bench: Bench) -> list[Result]:
    """Give the median of both, and the 99th percentile of the large one, in ms."""
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
