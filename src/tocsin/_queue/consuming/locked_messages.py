"""Messages that cannot be settled yet, since another transaction has locked their rows.

They are set aside, so that they stop nothing else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import trio

from tocsin._database.client import Database
from tocsin._queue.message import Message

from .outcomes import Outcomes

logger = logging.getLogger("tocsin.consumer")

CHECK_AFTER = 1.0
"""Seconds between two checks whether rows are still locked."""


class LockedMessages:
    """The messages of a run that another transaction has locked."""

    def __init__(self, database: Database) -> None:
        self.outcomes = Outcomes()
        """Their outcomes, for when their rows are not locked any more."""
        self.check_at = math.inf
        """The time of the next check whether rows are locked (`trio.current_time`)."""
        self._database = database

    def __bool__(self) -> bool:
        return bool(self.outcomes)

    async def take_from(self, outcomes: Outcomes) -> bool:
        """Take locked messages out of these outcomes; return whether there were any."""
        locked = await self._find_locked(outcomes.messages())
        if not locked:
            return False
        logger.warning(
            "other transactions have locked messages that are to be settled; that is tried again"
            " later: %s",
            sorted(locked),
        )
        self.outcomes.add(outcomes.take(locked))
        self.check_at = trio.current_time() + CHECK_AFTER
        return True

    async def return_to(self, outcomes: Outcomes) -> None:
        """Add messages that are not locked any more to these outcomes."""
        messages = self.outcomes.messages()
        locked = await self._find_locked(messages)
        outcomes.add(self.outcomes.take({m.id for m in messages} - locked))
        self.check_at = trio.current_time() + CHECK_AFTER if self.outcomes else math.inf

    async def _find_locked(self, messages: Sequence[Message]) -> set[int]:
        """Return the ids of messages whose rows other transactions have locked."""
        statement = "select tocsin.locked_messages(%s::bigint[])"
        (locked,) = await self._database.fetch_one(statement, [[m.id for m in messages]])
        return set(locked)
