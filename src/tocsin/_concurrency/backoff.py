"""Pauses between two attempts to reach the database."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import trio

FIRST = 0.05
"""Longest first wait, in seconds."""
LONGEST = 2.0
"""Longest wait of all, in seconds: shorter than the first ten seconds of a server, in
which no process is declared dead (``processes.sql``)."""


def delays() -> Iterator[float]:
    """Yield growing waits in seconds.

    Each is drawn at random, so that the processes of a fleet do not try again in step.
    """
    longest = FIRST
    while True:
        yield random.uniform(longest / 2, longest)
        longest = min(LONGEST, longest * 2)


class OutageRetry:
    """The attempts of one loop.

    An outage is logged as one warning and, when it is over, one line with its length.
    """

    def __init__(self, what: str, logger: logging.Logger) -> None:
        self._what = what
        self._logger = logger
        self._waits = delays()
        self._since: float | None = None

    def failed(self, error: Exception) -> float:
        """Record a failure, and return the seconds to wait before the next attempt."""
        level = logging.DEBUG
        if self._since is None:
            self._since = trio.current_time()
            level = logging.WARNING
        self._logger.log(level, "%s: %s; trying again until it works", self._what, error)
        return next(self._waits)

    async def pause_after(self, error: Exception) -> None:
        """Record a failure, and wait until the next attempt.

        Cancellation:
            The failure is recorded.
        """
        await trio.sleep(self.failed(error))

    def succeeded(self) -> None:
        """Record a success."""
        if self._since is not None:
            self._logger.info(
                "%s: works again after %.1f s", self._what, trio.current_time() - self._since
            )
            self._since = None
            self._waits = delays()
