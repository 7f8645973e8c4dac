"""The limits and rates of a store: who holds their slots, and their numbers."""

from __future__ import annotations

from typing import Final

import attrs

from tocsin._arguments import check_text
from tocsin._database.client import Database

from .limits import check_n

_LIST: Final = (
    "select name, nullif(key, ''), n, per, ordered, holders, waiting from tocsin.list_limits(%s)"
)


@attrs.frozen
class LimitInfo:
    """One key of a limit or rate at the time of the call."""

    name: str
    """Name of the limit."""
    key: str | None
    """The key; None: the limit has no keys, or no unfinished job."""
    n: int
    """How many jobs of the key run at a time; of a rate: become due in ``per``."""
    per: float | None
    """Seconds of the interval of a rate; None: it is a limit."""
    ordered: bool
    """Whether the jobs of a key run in the order of submission."""
    holders: int
    """How many jobs hold a slot of the key."""
    waiting: int
    """How many jobs wait for a slot of the key."""


class Limits:
    """The limits and rates of a store: `Store.limits`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, name: str | None = None) -> list[LimitInfo]:
        """Return the keys of all limits, or of one, that unfinished jobs have.

        A limit without such a job has one entry without a key.

        Raises:
            LimitNotFound: There is no limit of this name.
            PermissionDenied: The role does not administer the queues.
            ConnectionLost: The database is not available.

        Cancellation:
            Nothing has changed.
        """
        if name is not None:
            check_text(name, "name")
        rows = await self._database.fetch(_LIST, [name])
        return [LimitInfo(*row) for row in rows]

    async def set(self, name: str, n: int | None) -> None:
        """Set how many jobs of a key run at a time, whatever the tasks say.

        Of a rate, set how many become due in its interval. Jobs that run go on.

        Args:
            name: Name of the limit.
            n: The number; None: what the tasks say.

        Raises:
            LimitNotFound: There is no limit of this name.
            ValueError: The limit is ordered, and ``n`` is not 1.
            PermissionDenied: The role does not administer the queues.
            ConnectionLost: The outcome is unknown; setting it again is safe.

        Cancellation:
            Atomic.
        """
        check_text(name, "name")
        if n is not None:
            check_n(n, "n")
        await self._database.fetch("select tocsin.set_limit(%s, %s)", [name, n])
