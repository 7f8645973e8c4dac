"""Submit jobs: as messages with the name of a task."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict

import attrs

from tocsin._arguments import check_count, check_queue
from tocsin._database.caller_connection import AnyConnection
from tocsin._durations import Duration, to_seconds
from tocsin._queue.payload import encode
from tocsin._queue.producing.enqueue_request import EnqueueRequest, build_request

from .definition import Call


class SubmitOptions(TypedDict, total=False):
    """What a call of a task may choose; without a choice it is as the task says."""

    delay: Duration | None
    """Seconds until the job is due."""
    at: datetime | None
    """Time at which the job is due, with its zone."""
    priority: int | None
    """Smaller numbers are run first."""
    headers: object
    """Any JSON value."""
    key: str | None
    """At most one unfinished job of the queue has it; a second submission returns the
    first job."""
    expires_in: Duration | None
    """Seconds after which a job that has not begun becomes a dead letter."""
    max_attempts: int | None
    """After how many attempts a job that fails becomes a dead letter."""
    timeout: Duration | None
    """Seconds that an attempt may take."""
    queue: str | None
    """Name of the queue."""
    connection: AnyConnection | None
    """Submit in the transaction of this connection; see `Producer.enqueue`."""


@attrs.frozen
class Submission:
    """A job that is to be submitted."""

    call: Call[Any]
    """The call of the task."""
    queue: str
    """Name of the job's queue."""
    request: EnqueueRequest
    """The job's message."""


def build_submission(call: Call[Any], options: SubmitOptions) -> Submission:
    """Check the options of a call, and return the job that it becomes.

    Raises:
        ValueError: An option is out of its range.
        TypeError: An option has a wrong type, or does not exist.
    """
    if unknown := options.keys() - SubmitOptions.__annotations__.keys():
        raise TypeError(f"a job has no option {', '.join(sorted(unknown))}")
    task = call.definition
    priority, queue = options.get("priority"), options.get("queue")
    max_attempts, timeout = options.get("max_attempts"), options.get("timeout")
    request = build_request(
        None,
        delay=options.get("delay"),
        at=options.get("at"),
        priority=task.options.priority if priority is None else priority,
        headers=options.get("headers"),
        key=options.get("key"),
        expires_in=options.get("expires_in"),
        max_deliveries=task.options.max_attempts
        if max_attempts is None
        else check_count(max_attempts, "max_attempts"),
    )
    chosen = None if timeout is None else encode({"timeout": to_seconds(timeout, "timeout")})
    request = request._replace(payload=call.arguments, task=task.name, options=chosen)
    return Submission(call, task.options.queue if queue is None else check_queue(queue), request)
