"""The parts of a consumer, and how they are put together."""

from __future__ import annotations

from contextlib import AbstractContextManager

import attrs

from tocsin._database.client import Database
from tocsin._queue.process.bell import Waiter
from tocsin._queue.process.process import Process
from tocsin._queue.workers.registration import Registration

from .claims import Claimer
from .lease_keeper import LeaseKeeper
from .leases import Leases
from .reporter import Reporter
from .settlement import Settler


@attrs.frozen(eq=False)
class ConsumerParts:
    """The parts of a consumer."""

    database: Database
    process: Process
    registration: Registration
    """The consumer as a worker in the registry."""
    reporter: Reporter
    """The reports of what the consumer does."""
    leases: Leases
    """The leases that the consumer holds."""
    keeper: LeaseKeeper
    """The extension of the leases."""
    claimer: Claimer
    """The claims."""
    settler: Settler
    """The settlement of messages."""

    def open_waiter(self) -> AbstractContextManager[Waiter]:
        """Open a waiter for the consumer's queue."""
        return self.process.bell.waiter(self.registration.queue_id, self.reporter.woken)


def make_parts(database: Database, process: Process, registration: Registration) -> ConsumerParts:
    """Put together the parts of a consumer."""
    leases = Leases()
    reporter = Reporter(process.telemetry.events, registration)
    keeper = LeaseKeeper(database, leases, reporter)
    return ConsumerParts(
        database,
        process,
        registration,
        reporter,
        leases,
        keeper,
        Claimer(database, registration, leases, keeper),
        Settler(database, leases, keeper, reporter),
    )
