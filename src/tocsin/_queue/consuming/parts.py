"""What a consumer is made of."""

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
    """What a consumer is made of."""

    database: Database
    process: Process
    registration: Registration
    """Which worker the consumer is."""
    reporter: Reporter
    """Reports what the consumer does."""
    leases: Leases
    """What the consumer holds."""
    keeper: LeaseKeeper
    """Extends the leases."""
    claimer: Claimer
    """Claims messages."""
    settler: Settler
    """Settles messages."""

    def open_waiter(self) -> AbstractContextManager[Waiter]:
        """Make a waiter for the consumer's queue."""
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
