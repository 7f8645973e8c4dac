"""Tocsin: an event-driven message queue in PostgreSQL for Python services that run on trio.

What is named here is the public interface; `tocsin.driver` (psycopg on trio) can be used on its own.

The way of a message, by file: ``producer`` (enqueue), ``sql/functions/ring.sql`` (ring), ``process`` and ``bell`` (wake), ``consumer`` and
``sql/functions/claim.sql`` (claim), ``handling`` (handle), ``leases`` and ``sql/functions/settle.sql`` (keep and settle).
"""

from .consumer import Consumer
from .errors import (
    ConfigError,
    ConnectionLost,
    LeaseLost,
    PayloadInvalid,
    PayloadTooLarge,
    PendingMessages,
    QueueAlreadyExists,
    QueueNotFound,
    SchemaMissing,
    SchemaOutdated,
    StateTransitionError,
    Suspended,
    TocsinError,
    WorkerNotFound,
    WorkerStopped,
)
from .message import Message
from .producer import Producer
from .queues import Queue
from .schema import Difference
from .signals import drain_on_signals
from .store import Store, StoreStatistics, connect
from .version import VERSION as __version__
from .worker import WorkerHandle, WorkerInfo, WorkerStatus

__all__ = [
    "ConfigError",
    "ConnectionLost",
    "Consumer",
    "Difference",
    "LeaseLost",
    "Message",
    "PayloadInvalid",
    "PayloadTooLarge",
    "PendingMessages",
    "Producer",
    "Queue",
    "QueueAlreadyExists",
    "QueueNotFound",
    "SchemaMissing",
    "SchemaOutdated",
    "StateTransitionError",
    "Store",
    "StoreStatistics",
    "Suspended",
    "TocsinError",
    "WorkerHandle",
    "WorkerInfo",
    "WorkerNotFound",
    "WorkerStatus",
    "WorkerStopped",
    "__version__",
    "connect",
    "drain_on_signals",
]
