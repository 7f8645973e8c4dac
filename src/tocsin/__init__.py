"""Tocsin: an event-driven message queue in PostgreSQL for Python services that run on trio.

What is named here is the public interface; `tocsin.driver` (psycopg on trio) can be used on its own.

The way of a message, by file: ``producer`` (enqueue), ``sql/functions/ring.sql`` (ring), ``process`` and ``bell`` (wake), ``intake`` and
``sql/functions/claim.sql`` (claim), ``handling`` in a ``run`` (handle), ``leases`` (keep), ``intake`` and ``sql/functions/settle.sql``
(settle).
"""

from .consumer import Consumer
from .dead_letters import DeadLetter, DeadLetters, LetterFilter
from .draft import BatchOptions, MessageOptions
from .errors import (
    CharacterUnsupported,
    ConfigError,
    ConnectionLost,
    KeyTaken,
    LeaseLost,
    MessageNotFound,
    MessageNotWaiting,
    PayloadInvalid,
    PayloadTooLarge,
    PayloadUnreadable,
    PendingMessages,
    PermissionDenied,
    QueueAlreadyExists,
    QueueBusy,
    QueueNotEmpty,
    QueueNotFound,
    RateLimited,
    RoleNotFound,
    SchemaBusy,
    SchemaMissing,
    SchemaOutdated,
    StateTransitionError,
    Suspended,
    TocsinError,
    WorkerNotFound,
    WorkerStopped,
)
from .health import QueueHealth, WorkerStats
from .maintenance import Maintained
from .message import Message
from .messages import Delivery, MessageInfo, Messages, MessageState
from .producer import EnqueueOptions, Producer
from .queue_settings import QueueSettings
from .queues import Deleted, Purged, Queue, QueueMetrics, Queues
from .rate_limit import RateLimit
from .roles import Roles
from .schema import Difference
from .settings import Settings
from .signals import drain_on_signals
from .store import Reclaimed, Store, StoreStatistics, StoreStats, connect
from .transactional import enqueue, enqueue_async, enqueue_many, enqueue_many_async
from .verdicts import Reject, Retry, Snooze, Verdict
from .version import VERSION as __version__
from .worker import WorkerHandle, WorkerInfo, WorkerStatus
from .workers import Workers

__all__ = [
    "BatchOptions",
    "CharacterUnsupported",
    "ConfigError",
    "ConnectionLost",
    "Consumer",
    "DeadLetter",
    "DeadLetters",
    "Deleted",
    "Delivery",
    "Difference",
    "EnqueueOptions",
    "KeyTaken",
    "LeaseLost",
    "LetterFilter",
    "Maintained",
    "Message",
    "MessageInfo",
    "MessageNotFound",
    "MessageNotWaiting",
    "MessageOptions",
    "MessageState",
    "Messages",
    "PayloadInvalid",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "PendingMessages",
    "PermissionDenied",
    "Producer",
    "Purged",
    "Queue",
    "QueueAlreadyExists",
    "QueueBusy",
    "QueueHealth",
    "QueueMetrics",
    "QueueNotEmpty",
    "QueueNotFound",
    "QueueSettings",
    "Queues",
    "RateLimit",
    "RateLimited",
    "Reclaimed",
    "Reject",
    "Retry",
    "RoleNotFound",
    "Roles",
    "SchemaBusy",
    "SchemaMissing",
    "SchemaOutdated",
    "Settings",
    "Snooze",
    "StateTransitionError",
    "Store",
    "StoreStatistics",
    "StoreStats",
    "Suspended",
    "TocsinError",
    "Verdict",
    "WorkerHandle",
    "WorkerInfo",
    "WorkerNotFound",
    "WorkerStats",
    "WorkerStatus",
    "WorkerStopped",
    "Workers",
    "__version__",
    "connect",
    "drain_on_signals",
    "enqueue",
    "enqueue_async",
    "enqueue_many",
    "enqueue_many_async",
]
