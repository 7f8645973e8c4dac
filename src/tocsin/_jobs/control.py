"""Change a job that was submitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Protocol

from tocsin._arguments import check_id, check_text
from tocsin._durations import Duration, write_due
from tocsin.errors import JobNotFound, MessageNotFound

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


@contextmanager
def job_not_found(job_id: int) -> Iterator[None]:
    """Raise `JobNotFound` within the block where a message is not found."""
    try:
        yield
    except MessageNotFound:
        raise JobNotFound(job_id) from None
