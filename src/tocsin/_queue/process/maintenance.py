"""Maintenance of the database, by whichever process it is the turn of;
``sql/functions/queue/maintenance.sql`` says what that is.

The heartbeat's answer says when it is our turn, so nothing is sent for it in between.
It runs on a connection of the pool, in a task of its own, and nothing waits for it.
"""

from __future__ import annotations

import logging
from typing import Any

import attrs
import psycopg
import trio

from tocsin._database.client import Database
from tocsin.errors import TocsinError

logger = logging.getLogger("tocsin.maintenance")


@attrs.frozen
class MaintenanceResult:
    """What maintenance has done."""

    elected: bool
    """False: another session was at it already, so this one has left it all to that."""
    partitions_created: int = 0
    """Partitions made for what will be archived."""
    partitions_dropped: int = 0
    """Partitions of the archive dropped, with all that was in them, since its retention
    is over."""
    archived_deleted: int = 0
    """Archived messages deleted one by one, since there had been no partition for them
    when they were archived."""
    dead_letters_purged: int = 0
    """Dead letters deleted whose retention is over."""
    orphans_deleted: int = 0
    """Messages deleted whose queue had been deleted while they were being enqueued."""
    workers_purged: int = 0
    """Workers forgotten that were stopped long ago: producers after a day, consumers
    after thirty days."""
    problems: tuple[str, ...] = ()
    """What could not be done, and why; it is tried again the next time. All else was
    done."""


async def maintain(database: Database) -> MaintenanceResult:
    """Do all there is to do now, in short transactions. Raises Tocsin's errors.
    Cancelled, part of it is done."""
    done: dict[str, Any] = attrs.asdict(MaintenanceResult(elected=False))
    more = True
    while more:
        elected, problems, more, *counts = await database.fetch_one(
            f"select elected, problems, more, {', '.join(_COUNTED)} from tocsin.maintain()"
        )
        done |= {name: done[name] + count for name, count in zip(_COUNTED, counts, strict=True)}
        done |= {"elected": done["elected"] or elected, "problems": tuple(problems)}
    return MaintenanceResult(**done)


_COUNTED = [
    field.name
    for field in attrs.fields(MaintenanceResult)
    if field.name not in ("elected", "problems")
]


class Maintenance:
    """This process's part in it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._due = trio.Event()
        self._failing = False

    def become_due(self) -> None:
        """It is our turn."""
        self._due.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Do it whenever it is our turn, for ever. What fails is tried again, here or
        elsewhere, when it is due again."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            try:
                done = await maintain(self._database)
            except (TocsinError, psycopg.Error) as error:
                logger.log(
                    logging.DEBUG if self._failing else logging.WARNING,
                    "maintenance failed, will be tried again: %s",
                    error,
                )
                self._failing = True
            else:
                for problem in done.problems:
                    level = logging.DEBUG if self._failing else logging.WARNING
                    logger.log(
                        level,
                        "a part of the maintenance failed and will be tried again: %s",
                        problem,
                    )
                self._failing = bool(done.problems)
                if counts := _describe(done):
                    logger.info("maintenance: %s", counts)


def _describe(done: MaintenanceResult) -> str:
    counts = ((name, getattr(done, name)) for name in _COUNTED)
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts if count)
