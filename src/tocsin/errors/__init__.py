"""The errors that Tocsin raises.

Each has the values that a program needs, and a sentence that says what to do. The
database refuses with an SQLSTATE of class ``TC`` (``sql/functions/common/errors.sql``).
``_database/error_mapping.py`` turns what psycopg raised into these classes.
"""

from ._base import ConfigError, TocsinError
from ._database import (
    ConnectionLost,
    DependentObjects,
    PermissionDenied,
    RoleNotFound,
    SchemaBusy,
    SchemaMissing,
    SchemaNewer,
    SchemaOutdated,
)
from ._jobs import (
    ArgumentsInvalid,
    Fault,
    FlowInvalid,
    FlowNotFound,
    JobCancelled,
    JobError,
    JobFailed,
    JobNotFound,
    JobTimedOut,
    LimitNotFound,
    ResultInvalid,
    ScheduleInvalid,
    ScheduleNotFound,
    TaskUnknown,
    ValueUnreadable,
)
from ._messages import (
    KeyConflict,
    KeyTaken,
    LeaseLost,
    MessageNotFound,
    MessageNotWaiting,
    RateLimited,
)
from ._payloads import CharacterUnsupported, PayloadInvalid, PayloadTooLarge, PayloadUnreadable
from ._queues import QueueAlreadyExists, QueueBusy, QueueNotEmpty, QueueNotFound
from ._workers import (
    PendingMessages,
    StateTransitionError,
    Suspended,
    WorkerNotFound,
    WorkerStopped,
)

__all__ = [
    "ArgumentsInvalid",
    "CharacterUnsupported",
    "ConfigError",
    "ConnectionLost",
    "DependentObjects",
    "Fault",
    "FlowInvalid",
    "FlowNotFound",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobNotFound",
    "JobTimedOut",
    "KeyConflict",
    "KeyTaken",
    "LeaseLost",
    "LimitNotFound",
    "MessageNotFound",
    "MessageNotWaiting",
    "PayloadInvalid",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "PendingMessages",
    "PermissionDenied",
    "QueueAlreadyExists",
    "QueueBusy",
    "QueueNotEmpty",
    "QueueNotFound",
    "RateLimited",
    "ResultInvalid",
    "RoleNotFound",
    "ScheduleInvalid",
    "ScheduleNotFound",
    "SchemaBusy",
    "SchemaMissing",
    "SchemaNewer",
    "SchemaOutdated",
    "StateTransitionError",
    "Suspended",
    "TaskUnknown",
    "TocsinError",
    "ValueUnreadable",
    "WorkerNotFound",
    "WorkerStopped",
]
