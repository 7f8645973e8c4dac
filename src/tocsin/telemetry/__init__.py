"""What Tocsin tells a program about its work: events and instruments.

`events` has the values that `tocsin.Store.events` delivers. `instruments` has the
context managers that run round each handler call and each enqueue. Both are free when
no program uses them.
"""

from .events import (
    Claimed,
    ConnectionDown,
    ConnectionUp,
    DeclaredDead,
    Enqueued,
    Event,
    Events,
    HandlerBegan,
    HandlerEnded,
    LeasesExtended,
    LeasesLost,
    MaintenanceEnded,
    Rung,
    Settled,
    Subscription,
    Woken,
    WorkerStateChanged,
)
from .instruments import EnqueueCall, Instrument

__all__ = [
    "Claimed",
    "ConnectionDown",
    "ConnectionUp",
    "DeclaredDead",
    "EnqueueCall",
    "Enqueued",
    "Event",
    "Events",
    "HandlerBegan",
    "HandlerEnded",
    "Instrument",
    "LeasesExtended",
    "LeasesLost",
    "MaintenanceEnded",
    "Rung",
    "Settled",
    "Subscription",
    "Woken",
    "WorkerStateChanged",
]
