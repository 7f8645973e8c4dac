"""Messages that handlers have settled in their own transactions.

A transaction may not have ended when the handler returns.
"""

from __future__ import annotations

import math

import trio

from tocsin._queue.message import Message

from .lease_keeper import LeaseKeeper, check_in_transaction
from .leases import Leases

CHECK_PAUSE = 0.01
"""Seconds between the first two checks whether a transaction has ended."""

MAX_CHECK_PAUSE = 1.0
"""The most seconds between two checks; the pause doubles up to this."""


class HandlerTransactions:
    """The messages of a run whose handlers' transactions may not have ended."""

    def __init__(self, leases: Leases, keeper: LeaseKeeper) -> None:
        self.check_at = math.inf
        """The time of the next check (`trio.current_time`)."""
        self._messages: list[Message] = []
        self._leases = leases
        self._keeper = keeper
        self._pause = CHECK_PAUSE

    def __bool__(self) -> bool:
        return bool(self._messages)

    def add(self, message: Message) -> None:
        """Add a message whose handler has returned."""
        self._messages.append(message)
        self.check_at, self._pause = -math.inf, CHECK_PAUSE

    async def check(self) -> list[Message]:
        """Find out which transactions have ended, and how.

        Returns:
            The messages whose transaction was rolled back.
        """
        asked, self.check_at = self._messages[:], math.inf
        try:
            rolled_back = await check_in_transaction(self._leases, self._keeper, asked)
        except BaseException:
            self.check_at = -math.inf
            raise
        self._leases.unmark_in_transaction(rolled_back)
        still_open = [m for m in asked if self._leases.is_in_transaction(m)]
        new = self._messages[len(asked) :]
        self._messages = still_open + new
        if new:
            self.check_at = -math.inf
        elif still_open:
            self.check_at = trio.current_time() + self._pause
            self._pause = min(2 * self._pause, MAX_CHECK_PAUSE)
        return rolled_back
