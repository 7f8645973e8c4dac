"""Submit jobs of tasks whose functions this program does not have."""

from __future__ import annotations

from datetime import datetime
from typing import Final, TypedDict

from tocsin._arguments import check_count, check_key, check_priority, check_text
from tocsin._durations import Duration, to_timedelta, write_due
from tocsin._queue.payload import encode

from .control import Rows

_SUBMIT: Final = "select tocsin.submit(%s, %s::jsonb, %s, %s, %s, %s::jsonb, %s, %s, %s, %s)"


class NamedOptions(TypedDict, total=False):
    """What a submission by name may choose; the rest is as the task says."""

    delay: Duration | None
    """Seconds until the job is due."""
    at: datetime | None
    """Time at which the job is due, with its zone."""
    priority: int | None
    """Smaller numbers are run first."""
    headers: object
    """Any JSON value."""
    key: str | None
    """At most one unfinished job of the queue has it."""
    expires_in: Duration | None
    """Seconds after which a job that has not begun becomes a dead letter."""
    max_attempts: int | None
    """After how many attempts a job that fails becomes a dead letter."""
    timeout: Duration | None
    """Seconds that an attempt may take."""


async def submit_by_name(
    database: Rows, task: str, arguments: object, options: NamedOptions
) -> int:
    """Submit a job: see `Jobs.submit_by_name`."""
    if unknown := options.keys() - NamedOptions.__annotations__.keys():
        raise TypeError(f"a job has no option {', '.join(sorted(unknown))}")
    due_in, due_at = write_due(options.get("delay"), options.get("at"))
    headers, priority = options.get("headers"), options.get("priority")
    max_attempts = options.get("max_attempts")
    ((job_id,),) = await database.fetch(
        _SUBMIT,
        [
            check_text(task, "task"),
            encode(arguments),
            due_in,
            due_at,
            None if priority is None else check_priority(priority),
            None if headers is None else encode(headers),
            check_key(options.get("key")),
            to_timedelta(options.get("expires_in"), "expires_in"),
            None if max_attempts is None else check_count(max_attempts, "max_attempts"),
            to_timedelta(options.get("timeout"), "timeout"),
        ],
    )
    return int(job_id)
