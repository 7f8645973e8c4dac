"""How long cleaning up after a cancellation may take, all in all.

A cancellation goes through several blocks. Each of them has something to bring into
order on the server, shielded: a statement is called off, a transaction rolled back, a
worker unregistered. While the server answers, each of these steps has `GRACE` seconds.
A silent server would cost that time at each step, one after the other. So the steps
share a `Grace`: the first one sets the deadline for all that follow, until the server
has answered again.

A `Grace` belongs to what talks to one server, such as the connections of one store, and
not to a task: a task that is cancelled later need not find out again that the server is
silent.
"""

from __future__ import annotations

import math
from typing import Final

import trio

__all__ = ["GRACE", "Grace"]

GRACE: Final = 5.0
"""How long, in seconds, cleaning up may take while the server does not answer, before
its connections are closed instead."""


class Grace:
    """One deadline for all cleanup, from the first step until the server answers.

    It is `GRACE` seconds, or as many as are given. With none, a connection that is
    cancelled in the middle of something is closed at once.
    """

    __slots__ = ("_seconds", "_until")

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._until = math.inf

    def begin(self) -> float:
        """Return by when cleaning up must have ended, as a `trio.current_time`.

        It is what was set before, if nothing was answered since.
        """
        if self._until == math.inf:
            self._until = trio.current_time() + (GRACE if self._seconds is None else self._seconds)
        return self._until

    def scope(self) -> trio.CancelScope:
        """Return a scope, shielded from cancellation, for a step of the cleanup.

        When the time is over already, the scope is cancelled at once.
        """
        return trio.CancelScope(shield=True, deadline=self.begin())

    def answered(self) -> None:
        """Record an answer of the server: the next step has the whole time again."""
        self._until = math.inf
