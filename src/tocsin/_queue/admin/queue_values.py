"""Queues as values: settings, counts and rates, and results of purges and deletions."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import attrs

from .queue_settings import NO_END, Notify


@attrs.frozen
class Queue:
    """A queue and its settings."""

    id: int
    """Its id."""
    name: str
    """Its name."""
    vt: float
    """Visibility timeout in seconds: how long a lease lasts unless it is extended."""
    max_deliveries: int
    """The number of deliveries after which a failed message becomes a dead letter."""
    retry_base: float
    """Seconds of delay after the first failure."""
    retry_factor: float
    """By how much the delay grows with each further failure."""
    retry_max: float
    """The longest delay in seconds."""
    retry_jitter: float
    """The share, 0 to 1, by which a delay may be longer or shorter by chance."""
    max_payload: int
    """The largest payload in bytes of JSON text; headers may be as large again."""
    max_string: int
    """Most characters of a string in a payload; 0: any number."""
    max_depth: int
    """Most levels of arrays and objects in a payload; 0: any number."""
    required_keys: tuple[str, ...]
    """Keys that a payload must have, which is an object then."""
    forbidden_keys: tuple[str, ...]
    """Keys that no object in a payload may have."""
    retention: float
    """Seconds for which archived messages are kept (0: not at all; infinity: no limit).
    """
    dead_letter_retention: float
    """Seconds for which dead letters are kept; infinity: no limit."""
    notify: Notify
    """When its channel is notified of messages."""
    paused_at: datetime | None
    """Since when consumers get nothing from it; None while they do."""
    created_at: datetime
    """When it was created, by the server's clock."""
    channel: str
    """The channel of its notifications, for programs that LISTEN (see `notify`)."""


COLUMNS = ", ".join(field.name for field in attrs.fields(Queue))
"""The columns that `read_queue` takes."""


def read_queue(row: tuple[Any, ...]) -> Queue:
    """Return the queue of a row."""
    return Queue(*map(_read_value, row))


def _read_value(value: Any) -> Any:
    if isinstance(value, timedelta):
        return math.inf if value >= NO_END else value.total_seconds()
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen
class QueueMetrics:
    """The counts and rates of a queue."""

    queue: str
    """Name of the queue."""
    paused: bool
    """Whether consumers get nothing from it."""
    ready: int
    """Messages that can be claimed."""
    delayed: int
    """Messages that are due later."""
    held: int
    """Messages that wait for other messages, such as a job for those before it."""
    leased: int
    """Messages that are being handled."""
    dead: int
    """Dead letters."""
    archived: int
    """Messages in the archive."""
    oldest_ready_age: float | None
    """For how many seconds the oldest ready message has been ready; None when none is.
    """
    enqueue_rate: float
    """Messages enqueued per second in the last minute.

    Of more than 2,000 messages a sample counts: the newest 2,000, and the time since
    the first of them. For a steady stream that is its rate; after a larger batch at one
    moment it is too low. Messages that were deleted, or are not archived, do not count.
    """
    settle_rate: float
    """Messages archived per second in the last minute.

    They count also where the queue's retention keeps none of them.
    """
    consumers: int
    """Consumers that take messages: ready or polling."""
    exact: bool
    """Whether the counts are exact.

    Beyond 100,000 of a kind the planner's estimate takes their place. `archived` is
    always exact.
    """


@attrs.frozen
class PurgeResult:
    """The counts of what `Queues.purge` has removed, or would remove."""

    ready: int
    """Messages that could be claimed."""
    delayed: int
    """Messages that were due later."""
    held: int
    """Messages that waited for other messages."""
    archived: int
    """Messages in the archive."""
    dead: int
    """Dead letters."""

    @property
    def total(self) -> int:
        """The number of all of them."""
        return self.ready + self.delayed + self.held + self.archived + self.dead


@attrs.frozen
class DeleteResult:
    """The counts of what `Queues.delete` has deleted, or would delete."""

    workers: int
    """Workers, stopped ones too."""
    messages: int
    """Unfinished messages: ready, delayed, held or leased."""
    archived: int
    """Messages in the archive."""
    dead_letters: int
    """Dead letters."""
