"""The columns of the tables; JSON has every field."""

from __future__ import annotations

from tocsin import DeadLetter, MessageInfo, Queue, QueueMetrics, WorkerInfo

from .render import Column, since, write_age, write_count, write_duration, write_rate

PAYLOAD_CHARACTERS = 80
"""Characters of a payload that a row shows."""

QUEUES: list[Column[Queue]] = [
    Column("NAME", lambda q: q.name, "name"),
    Column("PAUSED", lambda q: since(q.paused_at)),
    Column("VT", lambda q: write_duration(q.vt), "number"),
    Column("DELIVERIES", lambda q: q.max_deliveries, "number"),
    Column(
        "RETRY",
        lambda q: (
            f"{write_duration(q.retry_base)} x{q.retry_factor:g} to {write_duration(q.retry_max)}"
        ),
    ),
    Column("RETENTION", lambda q: write_duration(q.retention), "number"),
    Column("NOTIFY", lambda q: q.notify),
]
NARROW_QUEUES: list[Column[Queue]] = [
    Column("NAME", lambda q: q.name),
    *(c for c in QUEUES if c.title in ("PAUSED", "VT", "DELIVERIES", "RETENTION")),
]
"""The columns that fit into 80."""
METRICS: list[Column[QueueMetrics]] = [
    Column("QUEUE", lambda m: m.queue, "name"),
    Column("READY", lambda m: m.ready, "number"),
    Column("DELAYED", lambda m: m.delayed, "number"),
    Column("LEASED", lambda m: m.leased, "number"),
    Column("DEAD", lambda m: m.dead, "number"),
    Column("ARCHIVED", lambda m: m.archived, "number"),
    Column("OLDEST", lambda m: write_age(m.oldest_ready_age), "number"),
    Column("IN/S", lambda m: f"{m.enqueue_rate:.1f}", "number"),
    Column("DONE/S", lambda m: f"{m.settle_rate:.1f}", "number"),
    Column("CONSUMERS", lambda m: m.consumers, "number"),
    Column("PAUSED", lambda m: m.paused),
    Column("COUNTED", lambda m: "exactly" if m.exact else "roughly"),
]
NARROW_METRICS: list[Column[QueueMetrics]] = [
    Column("QUEUE", lambda m: m.queue),
    Column("READY", lambda m: write_count(m.ready), "number"),
    Column("DELAYED", lambda m: write_count(m.delayed), "number"),
    Column("LEASED", lambda m: write_count(m.leased), "number"),
    Column("DEAD", lambda m: write_count(m.dead), "number"),
    Column("OLDEST", lambda m: write_age(m.oldest_ready_age), "number"),
    Column("IN/S", lambda m: write_rate(m.enqueue_rate), "number"),
    Column("DONE/S", lambda m: write_rate(m.settle_rate), "number"),
    Column("CONSUMERS", lambda m: "paused" if m.paused else write_count(m.consumers), "number"),
]
"""The columns that fit into 80, where only names are folded."""

MESSAGES: list[Column[MessageInfo]] = [
    Column("ID", lambda m: m.id, "number"),
    Column("STATE", lambda m: m.state),
    Column("PRIORITY", lambda m: m.priority, "number"),
    Column("AGE", lambda m: since(m.enqueued_at), "number"),
    # a message that failed in an ordered run is due later than its place says
    Column("DUE", lambda m: m.vt if m.state == "delayed" else m.due),
    Column("DELIVERIES", lambda m: m.read_ct, "number"),
    Column("WORKER", lambda m: m.consumer_worker_id, "number"),
    Column("KEY", lambda m: m.key),
    Column("ERROR", lambda m: m.last_error, "prose"),
    Column("PAYLOAD", lambda m: shorten(m.payload_text), "prose"),
]
NARROW_MESSAGES: list[Column[MessageInfo]] = [
    c for c in MESSAGES if c.title in ("ID", "STATE", "AGE", "KEY", "ERROR", "PAYLOAD")
]
"""The columns that fit into 80."""
DEAD_LETTERS: list[Column[DeadLetter]] = [
    Column("ID", lambda d: d.id, "number"),
    Column("DIED", lambda d: since(d.died_at), "number"),
    Column("DELIVERIES", lambda d: d.read_ct, "number"),
    Column("REASON", lambda d: d.reason, "prose"),
    Column("ERROR", lambda d: d.error, "prose"),
    Column("PAYLOAD", lambda d: shorten(d.payload_text), "prose"),
]


def _write_status(w: WorkerInfo) -> str:
    return f"{w.status.value} (died)" if w.ended == "died" else w.status.value


WORKERS: list[Column[WorkerInfo]] = [
    Column("ID", lambda w: w.id, "number"),
    Column("NAME", lambda w: w.name, "name"),
    Column("KIND", lambda w: w.kind),
    Column("QUEUE", lambda w: w.queue, "name"),
    Column("STATUS", _write_status),
    Column("HOLDS", lambda w: w.held, "number"),
    Column("RUNNING", lambda w: write_age(w.running_for), "number"),
    Column("MESSAGE", lambda w: w.running_message_id, "number"),
    Column("HEARTBEAT", lambda w: write_age(w.heartbeat_age), "number"),
    Column("HOST", lambda w: w.hostname),
    Column("PID", lambda w: w.pid, "number"),
    Column("VERSION", lambda w: w.version),
]

NARROW_WORKERS: list[Column[WorkerInfo]] = [
    Column("ID", lambda w: w.id, "number"),
    Column("NAME", lambda w: w.name),
    Column("QUEUE", lambda w: w.queue),
    Column("STATUS", _write_status, "name"),
    Column("HOLDS", lambda w: write_count(w.held), "number"),
    Column("RUNNING", lambda w: write_age(w.running_for), "number"),
    Column("HEARTBEAT", lambda w: write_age(w.heartbeat_age), "number"),
    Column("HOST", lambda w: w.hostname),
]
"""The columns that fit into 80, where only names are folded."""


def shorten(text: str) -> str:
    """Return the beginning of a payload's text."""
    return text if len(text) <= PAYLOAD_CHARACTERS else text[: PAYLOAD_CHARACTERS - 1] + "…"
