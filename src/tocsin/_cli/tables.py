"""Define the columns of the tables. JSON has every field."""

from __future__ import annotations

from typing import get_args

from tocsin import (
    All,
    Attempt,
    DeadLetter,
    FlowSummary,
    JobState,
    LimitInfo,
    ListedJob,
    MessageInfo,
    Progress,
    Queue,
    QueueMetrics,
    Schedule,
    TaskMetrics,
    WorkerInfo,
)
from tocsin._jobs.schedules import Missed

from .render import Column, since, until, write_age, write_count, write_duration, write_rate
from .task_counts import TaskCounts

PAYLOAD_CHARACTERS = 80
"""Maximum number of characters of a payload in a row."""

QUEUES: list[Column[Queue]] = [
    Column("NAME", lambda q: q.name, "name", narrow=True),
    Column("PAUSED", lambda q: since(q.paused_at), narrow=True),
    Column("VT", lambda q: write_duration(q.vt), "number", narrow=True),
    Column("DELIVERIES", lambda q: q.max_deliveries, "number", narrow=True),
    Column(
        "RETRY",
        lambda q: (
            f"{write_duration(q.retry_base)} x{q.retry_factor:g} to {write_duration(q.retry_max)}"
        ),
    ),
    Column("RETENTION", lambda q: write_duration(q.retention), "number", narrow=True),
    Column("NOTIFY", lambda q: q.notify),
]
METRICS: list[Column[QueueMetrics]] = [
    Column("QUEUE", lambda m: m.queue, "name", narrow=True),
    Column("READY", lambda m: m.ready, "number", narrow=lambda m: write_count(m.ready)),
    Column("DELAYED", lambda m: m.delayed, "number", narrow=lambda m: write_count(m.delayed)),
    Column("HELD", lambda m: m.held, "number"),
    Column("LEASED", lambda m: m.leased, "number", narrow=lambda m: write_count(m.leased)),
    Column("DEAD", lambda m: m.dead, "number", narrow=lambda m: write_count(m.dead)),
    Column("ARCHIVED", lambda m: m.archived, "number"),
    Column("OLDEST", lambda m: write_age(m.oldest_ready_age), "number", narrow=True),
    Column(
        "IN/S",
        lambda m: f"{m.enqueue_rate:.1f}",
        "number",
        narrow=lambda m: write_rate(m.enqueue_rate),
    ),
    Column(
        "DONE/S",
        lambda m: f"{m.settle_rate:.1f}",
        "number",
        narrow=lambda m: write_rate(m.settle_rate),
    ),
    Column(
        "CONSUMERS",
        lambda m: m.consumers,
        "number",
        narrow=lambda m: "paused" if m.paused else write_count(m.consumers),
    ),
    Column("PAUSED", lambda m: m.paused),
    Column("COUNTED", lambda m: "exactly" if m.exact else "roughly"),
]
MESSAGES: list[Column[MessageInfo]] = [
    Column("ID", lambda m: m.id, "number", narrow=True),
    Column("STATE", lambda m: m.state, narrow=True),
    Column("PRIORITY", lambda m: m.priority, "number"),
    Column("AGE", lambda m: since(m.enqueued_at), "number", narrow=True),
    # a message that failed in an ordered run can be claimed later than `due` says
    Column("DUE", lambda m: m.vt if m.state == "delayed" else m.due),
    Column("DELIVERIES", lambda m: m.read_ct, "number"),
    Column("WORKER", lambda m: m.consumer_worker_id, "number"),
    Column("KEY", lambda m: m.key, narrow=True),
    Column("ERROR", lambda m: m.last_error, "prose", narrow=True),
    Column("PAYLOAD", lambda m: shorten(m.payload_text), "prose", narrow=True),
]
FLOWS: list[Column[FlowSummary]] = [
    Column("ID", lambda f: f.id, "number", narrow=True),
    Column("NAME", lambda f: f.name, "name", narrow=True),
    Column("STATE", lambda f: f.state, narrow=True),
    Column("AGE", lambda f: since(f.created_at), "number", narrow=True),
    Column("WAITING", lambda f: f.waiting, "number"),
    Column("RUNNING", lambda f: f.running, "number"),
    Column("SUCCEEDED", lambda f: f.succeeded, "number"),
    Column("FAILED", lambda f: f.failed, "number"),
    Column("CANCELLED", lambda f: f.cancelled, "number"),
]
JOBS: list[Column[ListedJob]] = [
    Column("ID", lambda j: j.id, "number", narrow=True),
    Column("TASK", lambda j: j.task, "name", narrow=True),
    Column("QUEUE", lambda j: j.queue, "name"),
    Column("STATE", lambda j: j.state, "word", narrow=True),
    Column("AGE", lambda j: since(j.submitted_at), "number", narrow=True),
    Column("PRIORITY", lambda j: j.priority, "number"),
    Column("DUE", lambda j: j.due),
    Column(
        "ATTEMPTS",
        lambda j: j.attempts if j.max_attempts is None else f"{j.attempts}/{j.max_attempts}",
        "number",
        narrow=True,
    ),
    Column("WORKER", lambda j: j.worker_id, "number"),
    Column("KEY", lambda j: j.key),
    Column("PROGRESS", lambda j: write_progress(j.progress), "prose", narrow=True),
    Column("ERROR", lambda j: j.error, "prose", narrow=True),
]
ATTEMPTS: list[Column[Attempt]] = [
    Column("ATTEMPT", lambda a: a.number, "number", narrow=True),
    Column("BEGAN", lambda a: a.began_at, narrow=lambda a: f"{since(a.began_at)} ago"),
    Column("TOOK", lambda a: _write_length(a), "number", narrow=True),
    Column("WORKER", lambda a: a.worker_id, "number", narrow=True),
    Column("NAME", lambda a: a.worker),
    Column("OUTCOME", lambda a: a.outcome or "running", "word", narrow=True),
    Column("ERROR", lambda a: a.error, "prose", narrow=True),
]


def _count_jobs(state: str) -> Column[TaskCounts]:
    """Return the column with the number of jobs in a state."""
    return Column(
        state.upper(),
        lambda t: t.by_state.get(state, 0),
        "number",
        narrow=lambda t: write_count(t.by_state.get(state, 0)),
    )


TASK_COUNTS: list[Column[TaskCounts]] = [
    Column("TASK", lambda t: t.task, "name", narrow=True),
    *(_count_jobs(state) for state in get_args(JobState)),
    Column("COUNTED", lambda t: "exactly" if t.exact else "roughly"),
]
LIMITS: list[Column[LimitInfo]] = [
    Column("NAME", lambda x: x.name, "name", narrow=True),
    Column("KEY", lambda x: x.key, "name", narrow=True),
    Column("N", lambda x: x.n, "number", narrow=True),
    Column("PER", lambda x: x.per and write_duration(x.per)),
    Column("ORDERED", lambda x: "yes" if x.ordered else None),
    Column("HOLDERS", lambda x: x.holders, "number", narrow=True),
    Column("WAITING", lambda x: x.waiting, "number", narrow=True),
]
TASKS: list[Column[TaskMetrics]] = [
    Column("TASK", lambda t: t.task, "name", narrow=True),
    Column("WAITING", lambda t: t.waiting, "number", narrow=lambda t: write_count(t.waiting)),
    Column("RUNNING", lambda t: t.running, "number", narrow=lambda t: write_count(t.running)),
    Column("FAILED", lambda t: t.failed, "number", narrow=lambda t: write_count(t.failed)),
    Column(
        "DONE/S",
        lambda t: f"{t.success_rate:.1f}",
        "number",
        narrow=lambda t: write_rate(t.success_rate),
    ),
    Column("COUNTED", lambda t: "exactly" if t.exact else "roughly"),
]
SCHEDULES: list[Column[Schedule]] = [
    Column("NAME", lambda s: s.name, "name", narrow=True),
    Column("TASK", lambda s: s.task, "name", narrow=True),
    Column("QUEUE", lambda s: s.queue, "name"),
    Column("WHEN", lambda s: _write_when(s), narrow=True),
    Column("ZONE", lambda s: s.zone),
    Column(
        "NEXT",
        lambda s: "paused" if s.paused_at else s.next_tick,
        "word",
        narrow=lambda s: "paused" if s.paused_at else until(s.next_tick),
    ),
    Column("LAST", lambda s: s.last_tick, narrow=lambda s: since(s.last_tick)),
    Column("JOB", lambda s: s.last_job_id, "number", narrow=True),
    Column("MISSED", lambda s: write_missed(s.missed)),
    Column("OVERLAP", lambda s: s.overlap),
]
DEAD_LETTERS: list[Column[DeadLetter]] = [
    Column("ID", lambda d: d.id, "number"),
    Column("DIED", lambda d: since(d.died_at), "number"),
    Column("DELIVERIES", lambda d: d.read_ct, "number"),
    Column("REASON", lambda d: d.reason, "prose"),
    Column("ERROR", lambda d: d.error, "prose"),
    Column("PAYLOAD", lambda d: shorten(d.payload_text), "prose"),
]
WORKERS: list[Column[WorkerInfo]] = [
    Column("ID", lambda w: w.id, "number", narrow=True),
    Column("NAME", lambda w: w.name, "name", narrow=True),
    Column("KIND", lambda w: w.kind),
    Column("QUEUE", lambda w: w.queue, "name", narrow=True),
    Column(
        "STATUS",
        lambda w: f"{w.status.value} (died)" if w.ended == "died" else w.status.value,
        "word",
        narrow=True,
    ),
    Column("HOLDS", lambda w: w.held, "number", narrow=lambda w: write_count(w.held)),
    Column("RUNNING", lambda w: write_age(w.running_for), "number", narrow=True),
    Column("MESSAGE", lambda w: w.running_message_id, "number"),
    Column("HEARTBEAT", lambda w: write_age(w.heartbeat_age), "number", narrow=True),
    Column("HOST", lambda w: w.hostname, narrow=True),
    Column("PID", lambda w: w.pid, "number"),
    Column("VERSION", lambda w: w.version),
    Column("TASKS", lambda w: w.tasks, "prose"),
]


def write_progress(progress: Progress | None) -> str | None:
    """Return what a job has reported as a short text."""
    if progress is None:
        return None
    part = progress.fraction
    number = f"{progress.done:g}" if part is None else f"{100 * part:.0f}%"
    return f"{number} {progress.text or ''}".rstrip()


def _write_when(schedule: Schedule) -> str:
    """Return when a schedule ticks."""
    if schedule.every is None:
        return schedule.cron or ""
    return f"every {write_duration(schedule.every.total_seconds())}"


def write_missed(missed: Missed) -> str:
    """Return what becomes of missed ticks, in the format of the option."""
    return str(missed.max) if isinstance(missed, All) else missed


def _write_length(attempt: Attempt) -> str | None:
    """Return how long an attempt took."""
    if attempt.ended_at is None:
        return since(attempt.began_at)
    return write_age(max((attempt.ended_at - attempt.began_at).total_seconds(), 0.0))


def shorten(text: str) -> str:
    """Return the beginning of a payload's text."""
    return text if len(text) <= PAYLOAD_CHARACTERS else text[: PAYLOAD_CHARACTERS - 1] + "…"
