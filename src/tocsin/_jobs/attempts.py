"""The attempts of a job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import attrs

from tocsin._arguments import check_id

from .control import Rows, job_not_found

ATTEMPTS: Final = (
    "select attempt, worker_id, worker, began_at, ended_at, outcome, error"
    " from tocsin.job_attempts(%s)"
)


@attrs.frozen
class Attempt:
    """An attempt of a job.

    An attempt that does not count is none: a shutdown has ended it, or it has raised
    `Snooze`.
    """

    number: int
    """Its number, counted from 1 since the job was submitted or last requeued."""
    worker_id: int | None
    """Id of the consumer that had the job."""
    worker: str | None
    """Name of that consumer."""
    began_at: datetime
    """When it began, by the server's clock."""
    ended_at: datetime | None
    """When it ended; None: it runs."""
    outcome: str | None
    """Its outcome, as a code; None: it runs.

    ``succeeded``, ``cancelled``, or that of a failed delivery: see `Delivery.outcome`.
    """
    error: str | None
    """The beginning of the function's error; None when the function raised none."""


async def list_attempts(database: Rows, job_id: int) -> Sequence[Attempt]:
    """Return the attempts of a job: see `Jobs.attempts`."""
    with job_not_found(job_id):
        rows = await database.fetch(ATTEMPTS, [check_id(job_id, "job_id")])
    return [Attempt(*row) for row in rows]
