"""Counts of the whole store."""

from __future__ import annotations

import attrs

from tocsin._database.client import Database
from tocsin._queue.workers.worker_handle import WorkerStatus


@attrs.frozen
class StoreStats:
    """The counts of the whole store, of all processes: see `Store.stats`."""

    queues: int
    """Queues."""
    workers: dict[WorkerStatus, int]
    """Workers in each state."""
    ready: int
    """Messages that can be claimed."""
    delayed: int
    """Messages that are due later."""
    held: int
    """Messages that wait for other messages, such as a job for those before it."""
    leased: int
    """Messages that are being handled."""
    dead: int
    """Dead letters."""
    archived: int
    """Messages in the archive."""
    processes: int
    """Processes that are registered."""
    version: int
    """Version of the SQL contract that is installed."""
    exact: bool
    """Whether the counts of messages and dead letters are exact.

    See `QueueMetrics.exact`.
    """


async def count_store(database: Database) -> StoreStats:
    """Count what is in the whole store: see `Store.stats`."""
    queues, by_status, *others = await database.fetch_one("select * from tocsin.store_stats()")
    return StoreStats(
        queues, {status: by_status.get(status, 0) for status in WorkerStatus}, *others
    )
