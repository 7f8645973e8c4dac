"""What a consumer is made of."""

from __future__ import annotations

import attrs

from tocsin._database.client import Database
from tocsin._queue.process.bell import Bell
from tocsin._queue.process.process import Process
from tocsin._queue.workers.registration import Registration

from .claims import Claimer
from .lease_keeper import LeaseKeeper
from .leases import Leases
from .settlement import Settler


@attrs.frozen(eq=False)
class ConsumerParts:
    """What a consumer is made of."""

    database: Database
    process: Process
    bell: Bell
    registration: Registration
    """Which worker the consumer is."""
    leases: Leases
    """What the consumer holds."""
    keeper: LeaseKeeper
    """Extends the leases."""
    claimer: Claimer
    """Claims messages."""
    settler: Settler
    """Settles messages."""


def make_parts(
    database: Database, process: Process, bell: Bell, registration: Registration
) -> ConsumerParts:
    """Put together the parts of a consumer."""
    leases = Leases()
    keeper = LeaseKeeper(database, leases)
    return ConsumerParts(
        database,
        process,
        bell,
        registration,
        leases,
        keeper,
        Claimer(database, registration, leases, keeper),
        Settler(database, leases, keeper),
    )
