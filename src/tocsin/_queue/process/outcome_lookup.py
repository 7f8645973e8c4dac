"""Look for the outcomes of jobs: one statement for all tasks that ask at a time.

A notification or a heartbeat wakes many tasks at once, and each looks for its job.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import attrs
import trio

from tocsin._database.client import Database

OutcomeRow: TypeAlias = tuple[Any, ...]
"""A row of ``tocsin.job_outcomes``."""

OUTCOMES: Final = (
    "select id, task, state, attempts, result, reason, error, traceback,"
    " progress"
    " from tocsin.job_outcomes(%s::bigint[])"
)
"""Asks for the states of jobs."""


@attrs.define(eq=False)
class _Look:
    """A statement that looks for several jobs."""

    ids: set[int] = attrs.Factory(set)
    rows: dict[int, OutcomeRow] | None = None


class OutcomeLookup:
    """Finds out the states of jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._next = _Look()
        self._turn = trio.Lock()

    async def find(self, job_id: int) -> OutcomeRow | None:
        """Return the state of a job now; None: there is no such job.

        Raises:
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing. Another task sends the statement if this one was to.
        """
        look = self._next
        look.ids.add(job_id)
        async with self._turn:
            # The first of the tasks of a look sends its statement. Tasks that come
            # later begin another look, because they may have to see later outcomes.
            if look.rows is None:
                if self._next is look:
                    self._next = _Look()
                rows = await self._database.fetch(OUTCOMES, [list(look.ids)])
                look.rows = {row[0]: row for row in rows}
        return look.rows.get(job_id)
