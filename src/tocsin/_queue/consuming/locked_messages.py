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

from .unsettled import Unsettled

logger = logging.getLogger("tocsin.consumer")

CHECK_AFTER = 1.0
"""Seconds between two checks whether rows are still locked."""


class LockedMessages:
    """The messages of a run that another transaction has locked."""

    def __init__(self, database: Database) -> None:
        self.unsettled = Unsettled()
        """The locked messages, with how each is to be settled."""
        self.check_at = math.inf
        """The time of the next check whether rows are locked (`trio.current_time`)."""
        self._database = database

    def __bool__(self) -> bool:
        return bool(self.unsettled)

    async def take_from(self, unsettled: Unsettled) -> bool:
        """Take locked messages out of these; return whether there were any."""
        locked = await self._find_locked(unsettled.messages())
        if not locked:
            return False
        logger.warning(
            "other transactions have locked messages that are to be settled; that is tried again"
            " later: %s",
            sorted(locked),
        )
        self.unsettled.add(unsettled.take(locked))
        self.check_at = trio.current_time() + CHECK_AFTER
        return True

    async def return_to(self, unsettled: Unsettled) -> None:
        """Add messages that are not locked any more to these."""
        messages = self.unsettled.messages()
        locked = await self._find_locked(messages)
        unsettled.add(self.unsettled.take({m.id for m in messages} - locked))
        self.check_at = trio.current_time() + CHECK_AFTER if self.unsettled else math.inf

    async def _find_locked(self, messages: Sequence[Message]) -> set[int]:
        """Return the ids of messages whose rows other transactions have locked."""
        statement = "select tocsin.locked_messages(%s::bigint[])"
        (locked,) = await self._database.fetch_one(statement, [[m.id for m in messages]])
        return set(locked)
