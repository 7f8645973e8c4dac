"""The position of a consumer's next claim: the start of its queue, or its last claim.

The database can scan all of a queue (a *full scan*) or go on from a position (a
*resumed scan*; see ``sql/functions/queue/claim.sql``). A full scan finds everything,
but may have to walk over the remains of what was claimed before; how many these are
depends on vacuum, and on the oldest transaction of the whole database. So a full scan
is followed by resumed scans for `SHARE` times as long as it took: its cost is a small
part of the whole. While a full scan takes a millisecond, a message that a resumed scan
misses waits a few hundredths of a second; when it takes a third of a second, claiming
goes on at full speed.

A consumer waits after a full scan. After a resumed scan it waits if its last full scan
was not a cheap one, until the time of the next full scan. `Consumer.dequeue` always
makes a full scan, so that its caller gets the first messages.
"""

from __future__ import annotations

import math
from datetime import datetime

from tocsin._queue.message import DUE, ID, PRIORITY, Row

SHARE = 20
"""The time in which claims are resumed scans, as a multiple of the last full scan's."""
CHEAP = 0.01
"""The most seconds of a full scan that is made before each wait."""
SCAN_EVERY = 2.0
"""The most seconds between two full scans, whatever the last one took."""


class ClaimCursor:
    """The position of one consumer's next claim.

    A position is a priority, a due time and an id. Times are of `trio.current_time`.
    """

    def __init__(self) -> None:
        self._position: tuple[int, datetime, int] | None = None
        self._scan_at = -math.inf
        self._scan_took = 0.0

    @property
    def scans_are_cheap(self) -> bool:
        """Whether a resumed scan that finds nothing may become a full one."""
        return self._scan_took <= CHEAP

    def next_position(self, now: float) -> tuple[int, datetime, int] | None:
        """Return the position from which to resume the scan; None: make a full scan."""
        return self._position if now < self._scan_at else None

    def claimed(self, last: Row) -> None:
        """Record the last message of a claim."""
        self._position = last[PRIORITY], last[DUE], last[ID]

    def scanned(self, began: float, ended: float, next_due_at: float) -> None:
        """Record a full scan, and the time at which the next message is due."""
        self._scan_took = ended - began
        self._scan_at = min(ended + min(SHARE * self._scan_took, SCAN_EVERY), next_due_at)

    def resumed_in_vain(self) -> float:
        """Record a resumed scan that found fewer messages than asked for.

        Returns:
            The time of the next claim; minus infinity: now.
        """
        if self.scans_are_cheap:
            self._scan_at = -math.inf
        return self._scan_at
