"""Reclaiming without waiting for a heartbeat: dead processes and expired leases."""

from __future__ import annotations

import attrs

from tocsin._database.client import Database


@attrs.frozen
class ReclaimResult:
    """The result of `Store.reclaim`."""

    workers: int
    """Workers whose process is dead, and that were stopped."""
    messages: int
    """Messages that they held, or whose lease had expired."""


async def reclaim(database: Database) -> ReclaimResult:
    """Declare dead processes dead, and requeue messages.

    These are the messages of dead processes, and those with expired leases. The call
    works in short transactions.

    Raises:
        ConnectionLost: The server did not answer.

    Cancellation:
        Part of it is done.
    """
    workers, messages, more = 0, 0, True
    while more:
        stopped, requeued, more = await database.fetch_one("select * from tocsin.reclaim()")
        workers, messages = workers + stopped, messages + requeued
    return ReclaimResult(workers, messages)
