"""Define the columns of the tables. JSON has every field."""

from __future__ import annotations

from tocsin import DeadLetter, FlowSummary, MessageInfo, Queue, QueueMetrics, WorkerInfo

from .render import Column, since, write_age, write_count, write_duration, write_rate

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
]


def shorten(text: str) -> str:
    """Return the beginning of a payload's text."""
    return text if len(text) <= PAYLOAD_CHARACTERS else text[: PAYLOAD_CHARACTERS - 1] + "…"
