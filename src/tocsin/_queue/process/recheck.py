"""When to ask again whether other transactions have ended."""

from __future__ import annotations

import math

import trio

SHORTEST = 0.001
"""The first pause, in seconds."""
LONGEST = 0.1
"""The longest pause, in seconds."""


class Recheck:
    """The time of the next question; the pause before it doubles each time."""

    def __init__(self) -> None:
        self.at: float = math.inf
        """When to ask (`trio.current_time`); infinity: there is nothing to ask."""
        self._pause = SHORTEST

    @property
    def due(self) -> bool:
        """Whether it is time to ask."""
        return trio.current_time() >= self.at

    def begin(self) -> None:
        """Ask at once, and after short pauses again."""
        self.at, self._pause = -math.inf, SHORTEST

    def asked(self, *, again: bool) -> None:
        """Note that the question was asked.

        Args:
            again: Whether there is something left to ask.
        """
        self.at = trio.current_time() + self._pause if again else math.inf
        self._pause = min(2 * self._pause, LONGEST)

    def stop(self) -> None:
        """Ask nothing."""
        self.at = math.inf
