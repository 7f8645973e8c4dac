"""Tocsin: an event-driven message queue in PostgreSQL for Python services that run on trio.

What is named here is the public interface; `tocsin.driver` (psycopg on trio) can be used on its own.

The way of a message, by file: ``producer`` (enqueue), ``sql/functions/ring.sql`` (ring), ``process`` and ``bell`` (wake), ``intake`` and
``sql/functions/claim.sql`` (claim), ``handling`` in a ``run`` (handle), ``leases`` (keep), ``intake`` and ``sql/functions/settle.sql``
(settle).
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
    QueueNotEmpty,
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
from .producer import EnqueueOptions, Producer
from .queue_settings import QueueSettings
from .queues import Deleted, Purged, Queue, QueueMetrics, Queues
from .schema import Difference
from .signals import drain_on_signals
from .store import Store, StoreStatistics, StoreStats, connect
from .version import VERSION as __version__
from .worker import WorkerHandle, WorkerInfo, Workers, WorkerStatus

__all__ = [
    "ConfigError",
    "ConnectionLost",
    "Consumer",
    "Deleted",
    "Difference",
    "EnqueueOptions",
    "LeaseLost",
    "Message",
    "PayloadInvalid",
    "PayloadTooLarge",
    "PendingMessages",
    "Producer",
    "Purged",
    "Queue",
    "QueueAlreadyExists",
    "QueueMetrics",
    "QueueNotEmpty",
    "QueueNotFound",
    "QueueSettings",
    "Queues",
    "SchemaMissing",
    "SchemaOutdated",
    "StateTransitionError",
    "Store",
    "StoreStatistics",
    "StoreStats",
    "Suspended",
    "TocsinError",
    "WorkerHandle",
    "WorkerInfo",
    "WorkerNotFound",
    "WorkerStatus",
    "WorkerStopped",
    "Workers",
    "__version__",
    "connect",
    "drain_on_signals",
]
