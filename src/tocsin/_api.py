"""The public names, where they come from.

`tocsin` loads this module when a program uses the first of them.
"""

from tocsin._database.roles import Roles
from tocsin._database.verify import SchemaDifference
from tocsin._jobs.attempts import Attempt
from tocsin._jobs.by_name import NamedOptions
from tocsin._jobs.current import CurrentJob, current_job
from tocsin._jobs.definition import Call, SubmitOptions, TaskOptions
from tocsin._jobs.executor import Executor
from tocsin._jobs.flow import BlockingFlow, Flow
from tocsin._jobs.flow_graph import OnFailure
from tocsin._jobs.flow_info import (
    FlowEdge,
    FlowForm,
    FlowInfo,
    FlowJob,
    FlowState,
    FlowSummary,
)
from tocsin._jobs.flows import Flows
from tocsin._jobs.job import Job
from tocsin._jobs.job_info import JobInfo, JobState
from tocsin._jobs.jobs import Jobs
from tocsin._jobs.limit_settings import LimitInfo, Limits
from tocsin._jobs.limits import Limit, Rate
from tocsin._jobs.listing import JobCount, ListedJob, TaskMetrics
from tocsin._jobs.packing import Codec, Packing, PayloadStore
from tocsin._jobs.planned import Planned
from tocsin._jobs.progress import Progress
from tocsin._jobs.retrying import RetryPolicy, exponential, fixed, linear
from tocsin._jobs.schedules import All, Schedule, ScheduleOptions, Schedules
from tocsin._jobs.session_job import BlockingJob
from tocsin._jobs.task import Task, task
from tocsin._jobs.worker import JobWorker
from tocsin._jobs.worker_options import JobWorkerOptions
from tocsin._queue.admin.dead_letters import DeadLetter, DeadLetterFilter, DeadLetters
from tocsin._queue.admin.message_values import Delivery, MessageInfo, MessageState
from tocsin._queue.admin.messages import Messages
from tocsin._queue.admin.queue_settings import QueueSettings
from tocsin._queue.admin.queue_values import DeleteResult, PurgeResult, Queue, QueueMetrics
from tocsin._queue.admin.queues import Queues
from tocsin._queue.admin.store_stats import StoreStats
from tocsin._queue.consuming.consumer import Consumer
from tocsin._queue.consuming.signals import drain_on_signals
from tocsin._queue.consuming.verdicts import Reject, Retry, Snooze, Verdict
from tocsin._queue.message import Message
from tocsin._queue.process.maintenance import MaintenanceResult
from tocsin._queue.process.reclaim import ReclaimResult
from tocsin._queue.process.statistics import ProcessStatistics
from tocsin._queue.producing.enqueue_request import BatchOptions, MessageOptions
from tocsin._queue.producing.producer import EnqueueOptions, Producer
from tocsin._queue.producing.rate_limit import RateLimit
from tocsin._queue.producing.transactional import (
    enqueue,
    enqueue_async,
    enqueue_many,
    enqueue_many_async,
)
from tocsin._queue.workers.health import QueueHealth, WorkerStats
from tocsin._queue.workers.registry import Workers
from tocsin._queue.workers.worker_handle import WorkerHandle, WorkerInfo, WorkerStatus

from ._connect import connect
from ._store import Store
from ._version import VERSION
from .errors import (
    ArgumentsInvalid,
    CharacterUnsupported,
    ConfigError,
    ConnectionLost,
    DependentObjects,
    Fault,
    FlowInvalid,
    FlowNotFound,
    JobCancelled,
    JobError,
    JobFailed,
    JobNotFound,
    JobTimedOut,
    KeyConflict,
    KeyTaken,
    LeaseLost,
    LimitNotFound,
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
    ResultInvalid,
    RoleNotFound,
    ScheduleInvalid,
    ScheduleNotFound,
    SchemaBusy,
    SchemaMissing,
    SchemaNewer,
    SchemaOutdated,
    StateTransitionError,
    Suspended,
    TaskUnknown,
    TocsinError,
    ValueUnreadable,
    WorkerNotFound,
    WorkerStopped,
)
from .settings import Settings

__version__ = VERSION

__all__ = [
    "All",
    "ArgumentsInvalid",
    "Attempt",
    "BatchOptions",
    "BlockingFlow",
    "BlockingJob",
    "Call",
    "CharacterUnsupported",
    "Codec",
    "ConfigError",
    "ConnectionLost",
    "Consumer",
    "CurrentJob",
    "DeadLetter",
    "DeadLetterFilter",
    "DeadLetters",
    "DeleteResult",
    "Delivery",
    "DependentObjects",
    "EnqueueOptions",
    "Executor",
    "Fault",
    "Flow",
    "FlowEdge",
    "FlowForm",
    "FlowInfo",
    "FlowInvalid",
    "FlowJob",
    "FlowNotFound",
    "FlowState",
    "FlowSummary",
    "Flows",
    "Job",
    "JobCancelled",
    "JobCount",
    "JobError",
    "JobFailed",
    "JobInfo",
    "JobNotFound",
    "JobState",
    "JobTimedOut",
    "JobWorker",
    "JobWorkerOptions",
    "Jobs",
    "KeyConflict",
    "KeyTaken",
    "LeaseLost",
    "Limit",
    "LimitInfo",
    "LimitNotFound",
    "Limits",
    "ListedJob",
    "MaintenanceResult",
    "Message",
    "MessageInfo",
    "MessageNotFound",
    "MessageNotWaiting",
    "MessageOptions",
    "MessageState",
    "Messages",
    "NamedOptions",
    "OnFailure",
    "Packing",
    "PayloadInvalid",
    "PayloadStore",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "PendingMessages",
    "PermissionDenied",
    "Planned",
    "ProcessStatistics",
    "Producer",
    "Progress",
    "PurgeResult",
    "Queue",
    "QueueAlreadyExists",
    "QueueBusy",
    "QueueHealth",
    "QueueMetrics",
    "QueueNotEmpty",
    "QueueNotFound",
    "QueueSettings",
    "Queues",
    "Rate",
    "RateLimit",
    "RateLimited",
    "ReclaimResult",
    "Reject",
    "ResultInvalid",
    "Retry",
    "RetryPolicy",
    "RoleNotFound",
    "Roles",
    "Schedule",
    "ScheduleInvalid",
    "ScheduleNotFound",
    "ScheduleOptions",
    "Schedules",
    "SchemaBusy",
    "SchemaDifference",
    "SchemaMissing",
    "SchemaNewer",
    "SchemaOutdated",
    "Settings",
    "Snooze",
    "StateTransitionError",
    "Store",
    "StoreStats",
    "SubmitOptions",
    "Suspended",
    "Task",
    "TaskMetrics",
    "TaskOptions",
    "TaskUnknown",
    "TocsinError",
    "ValueUnreadable",
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
    "current_job",
    "drain_on_signals",
    "enqueue",
    "enqueue_async",
    "enqueue_many",
    "enqueue_many_async",
    "exponential",
    "fixed",
    "linear",
    "task",
]
