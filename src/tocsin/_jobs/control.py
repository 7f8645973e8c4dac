"""Change a job that was submitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Protocol

from tocsin._arguments import check_id, check_priority, check_text
from tocsin._durations import Duration, write_due
from tocsin._queue.payload import encode
from tocsin.errors import JobNotFound, MessageNotFound

from .definition import Call

CANCEL: Final = "select tocsin.cancel(%s, reason => %s)"


class Rows(Protocol):
    """Runs statements that are written for the schema ``tocsin``: a database."""

    async def fetch(
        self, statement: str, parameters: Sequence[object] = ()
    ) -> Sequence[tuple[Any, ...]]:
        """Run a statement, and return its rows."""


async def cancel_job(database: Rows, job_id: int, reason: str) -> None:
    """Cancel a job: see `Jobs.cancel`."""
    with job_not_found(job_id):
        await database.fetch(
            CANCEL,
            [check_id(job_id, "job_id"), check_text(reason, "reason")],
        )


async def requeue_job(database: Rows, job_id: int) -> None:
    """Run a finished job again: see `Jobs.requeue`."""
    with job_not_found(job_id):
        await database.fetch("select tocsin.requeue_job(%s)", [check_id(job_id, "job_id")])


async def reschedule_job(
    database: Rows, job_id: int, delay: Duration | None, at: datetime | None
) -> None:
    """Have a job that waits run at another time: see `Jobs.reschedule`."""
    due_in, due_at = write_due(delay, at)
    if due_in is None and due_at is None:
        raise ValueError("give delay= or at=")
    with job_not_found(job_id):
        await database.fetch(
            "select tocsin.reschedule(%s, %s, %s)", [check_id(job_id, "job_id"), due_in, due_at]
        )


async def edit_job(
    database: Rows,
    job_id: int,
    priority: int | None,
    arguments: str | None,
    call: Call[Any] | None = None,
) -> None:
    """Give a job that waits another priority and other arguments: see `Jobs.edit`.

    Args:
        arguments: The arguments as JSON text; None: they stay.
        call: The call that the arguments are of; None: the task is not known here.
    """
    if priority is None and arguments is None:
        raise ValueError("give priority= or arguments=")
    with job_not_found(job_id):
        await database.fetch(
            "select tocsin.edit_job(%s, %s, %s, %s, %s)",
            [
                check_id(job_id, "job_id"),
                None if priority is None else check_priority(priority),
                arguments,
                None if call is None else encode(call.limits),
                None if call is None else call.definition.name,
            ],
        )


@contextmanager
def job_not_found(job_id: int) -> Iterator[None]:
    """Raise `JobNotFound` within the block where a message is not found."""
    try:
        yield
    except MessageNotFound:
        raise JobNotFound(job_id) from None
