"""The figures of the registry, and the health of queues."""

from __future__ import annotations

from typing import Any

import attrs

from .worker_handle import WorkerStatus

MAX_AGE = 30.0
"""Seconds without a sign of life after which a worker counts as unhealthy."""


@attrs.frozen
class WorkerStats:
    """The registry, or one queue's part of it, in figures."""

    total: int
    """How many workers there are."""
    by_status: dict[WorkerStatus, int]
    """How many of them are in each state."""
    by_kind: dict[str, int]
    """The number of workers of each kind (``"producer"``, ``"consumer"``)."""
    held: int
    """How many messages they hold."""
    oldest_heartbeat_age: float | None
    """Seconds since the last heartbeat of the worker that has been silent for longest.

    Stopped workers are left out; None when there is no other.
    """


@attrs.frozen
class QueueHealth:
    """The health of a queue and its workers."""

    queue: str
    """Name of the queue."""
    healthy: bool
    """Whether there is no problem."""
    problems: tuple[str, ...]
    """The problems, in words."""
    consumers: int
    """How many consumers take messages.

    They are ready or polling, and have given a sign of life.
    """
    unhealthy_workers: tuple[int, ...]
    """Ids of the workers that have given no sign of life for too long.

    Stopped workers are left out.
    """
    suspended_workers: tuple[int, ...]
    """Ids of the consumers that are interrupted or suspended; no problem by itself."""
    ready: int
    """How many messages can be claimed now; of more than 10,000 it is an estimate."""
    oldest_ready_age: float | None
    """For how many seconds the longest waiting message has been ready.

    None when no message is ready.
    """
    paused_for: float | None
    """For how many seconds the queue has been paused; None: it is not.

    A pause is not a problem by itself, also when messages wait.
    """
    running_worker_id: int | None = None
    """Id of the worker that has been at one message for longest.

    None when no worker holds a message.
    """
    running_message_id: int | None = None
    """Id of that message."""
    running_for: float | None = None
    """For how many seconds it has been at that message."""
    unserved_tasks: tuple[str, ...] = ()
    """Names of tasks whose jobs wait while no worker of the queue runs them."""


def suspicious_after(vt: float) -> float:
    """Return the seconds after which a handler is suspected to hang.

    They are ten visibility timeouts, but at least five minutes and at most an hour.
    ``tocsin.queue_health`` has the same rule.
    """
    return max(300.0, min(3600.0, 10 * vt))


def read_health(row: tuple[Any, ...]) -> QueueHealth:
    """Return what a row of ``tocsin.queue_health`` says."""
    return QueueHealth(*map(_read_value, row))


def _read_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
