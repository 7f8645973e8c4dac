"""The maintenance of the database, by the process that is elected to it.

``sql/functions/queue/maintenance.sql`` says what maintenance does. The answer to a
heartbeat elects a process, so no statement is sent before maintenance is due. It runs
on a connection of the pool, in a task of its own.
"""

from __future__ import annotations

import logging
from typing import Any

import attrs
import psycopg
import trio

from tocsin._database.client import Database
from tocsin.errors import TocsinError
from tocsin.telemetry.events import Events, MaintenanceEnded

logger = logging.getLogger("tocsin.maintenance")


@attrs.frozen
class MaintenanceResult:
    """The result of a maintenance."""

    elected: bool
    """False: another session was doing the maintenance, so this one did nothing."""
    partitions_created: int = 0
    """Partitions created for messages that will be archived."""
    partitions_dropped: int = 0
    """Partitions of the archive dropped, because the retention was over.

    All their messages went with them.
    """
    archived_deleted: int = 0
    """Archived messages deleted one by one.

    No partition existed for them when they were archived.
    """
    dead_letters_purged: int = 0
    """Dead letters deleted whose retention was over."""
    orphans_deleted: int = 0
    """Messages deleted whose queue was deleted while they were being enqueued."""
    workers_purged: int = 0
    """Stopped workers deleted: producers after a day, consumers after thirty days."""
    problems: tuple[str, ...] = ()
    """The parts that failed, and why.

    The next maintenance tries them again. All other parts were done.
    """


async def maintain(database: Database) -> MaintenanceResult:
    """Do all maintenance that is due, in short transactions.

    Raises:
        ConnectionLost: The database is not available.

    Cancellation:
        Part of it is done.
    """
    done: dict[str, Any] = attrs.asdict(MaintenanceResult(elected=False))
    more = True
    while more:
        elected, problems, more, *counts = await database.fetch_one(
            f"select elected, problems, more, {', '.join(_COUNTED)} from tocsin.maintain()"
        )
        done |= {name: done[name] + count for name, count in zip(_COUNTED, counts, strict=True)}
        if elected:
            done |= {"elected": True, "problems": tuple(problems)}
    return MaintenanceResult(**done)


_COUNTED = [
    field.name
    for field in attrs.fields(MaintenanceResult)
    if field.name not in ("elected", "problems")
]


class Maintenance:
    """The maintenance that this process does."""

    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self._requested = trio.Event()
        self._failing = False

    def request(self) -> None:
        """Have this process do the maintenance now."""
        self._requested.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Do the maintenance whenever it is requested.

        A part that fails is tried again, in this process or another, when maintenance
        is due again. Only the first failure in a row is a warning.

        Cancellation:
            Part of it is done.
        """
        while True:
            await self._requested.wait()
            self._requested = trio.Event()
            try:
                done = await maintain(self._database)
            except (TocsinError, psycopg.Error) as error:
                self._log_failure("maintenance failed and will be tried again: %s", error)
                self._failing = True
                self._report(None)
                continue
            if not done.elected:
                continue  # This error does not come from a part of the maintenance.
            for problem in done.problems:
                self._log_failure(
                    "a part of the maintenance failed and will be tried again: %s", problem
                )
            self._failing = bool(done.problems)
            if counts := _describe(done):
                logger.info("maintenance: %s", counts)
            self._report(done)

    def _report(self, result: MaintenanceResult | None) -> None:
        if self._events.wants(MaintenanceEnded):
            self._events.emit(MaintenanceEnded(result=result))

    def _log_failure(self, message: str, problem: object) -> None:
        logger.log(logging.DEBUG if self._failing else logging.WARNING, message, problem)


def _describe(done: MaintenanceResult) -> str:
    counts = ((name, getattr(done, name)) for name in _COUNTED)
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts if count)
