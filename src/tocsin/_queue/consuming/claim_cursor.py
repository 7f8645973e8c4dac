"""Where a consumer claims next: at the start of its queue, or where it claimed last.

The database can *look* at all of a queue or *glance* at it from a position on
(``sql/functions/queue/claim.sql``). A look finds everything, but may have to walk over the
remains of what was claimed before; how many these are depends on vacuum, and on the
oldest transaction of the whole database. So a look is followed by glances for `SHARE`
times as long as it took: whatever it costs, it is a small part of the whole. While a
look takes a millisecond, what a glance would miss waits a few hundredths of a second,
and nobody can tell the difference; when it takes a third of a second, claiming goes on
at full speed.

A consumer goes to sleep after a look, or after a glance if its last look was not a
cheap one; then with an alarm for the next look. Messages taken by hand
(`Consumer.dequeue`) are always looked for: whoever asks is to get the first ones.
"""

from __future__ import annotations

import math
from datetime import datetime

from tocsin._queue.message import Row

SHARE = 20
"""For how many times as long as a look took the next claims only glance."""
CHEAP = 0.01
"""Seconds that a look may take to be made before each sleep."""
LOOK_EVERY = 2.0
"""Seconds after which to look again, whatever the last look took."""


class ClaimCursor:
    """See the module. Times are of `trio.current_time`; a position is a priority, a due
    time and an id."""

    def __init__(self) -> None:
        self._position: tuple[int, datetime, int] | None = None
        self._look_at = -math.inf
        self._look_took = 0.0

    @property
    def looks_are_cheap(self) -> bool:
        """Whether a glance that finds nothing may become a look."""
        return self._look_took <= CHEAP

    def next_position(self, now: float) -> tuple[int, datetime, int] | None:
        """Return from where on to glance now; None: look."""
        return self._position if now < self._look_at else None

    def claimed(self, last: Row) -> None:
        """Note the last message that a claim has brought."""
        self._position = last[2], last[4], last[0]

    def looked(self, began: float, ended: float, next_due_at: float) -> None:
        """Note a look, and when it found that the next message is due."""
        self._look_took = ended - began
        self._look_at = min(ended + min(SHARE * self._look_took, LOOK_EVERY), next_due_at)

    def glanced_in_vain(self) -> float:
        """Note a glance that found fewer messages than asked for, and return when to
        claim again; minus infinity: now."""
        if self.looks_are_cheap:
            self._look_at = -math.inf
        return self._look_at
