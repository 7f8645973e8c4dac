"""Where a consumer claims next: at the start of its queue, or where it claimed last.

The database can scan all of a queue (a *full scan*) or go on from a position (a
*resumed scan*; see ``sql/functions/queue/claim.sql``). A full scan finds everything,
but may have to walk over the remains of what was claimed before; how many these are
depends on vacuum, and on the oldest transaction of the whole database. So a full scan
is followed by resumed scans for `SHARE` times as long as it took: its cost is a small
part of the whole. While a full scan takes a millisecond, a message that a resumed scan
misses waits a few hundredths of a second; when it takes a third of a second, claiming
goes on at full speed.

A consumer waits after a full scan, or after a resumed scan if its last full scan was
not a cheap one; then until the time of the next full scan. `Consumer.dequeue` always
makes a full scan: its caller is to get the first messages.
"""

from __future__ import annotations

import math
from datetime import datetime

from tocsin._queue.message import DUE, ID, PRIORITY, Row

SHARE = 20
"""For how many times as long as a full scan took the next claims are resumed scans."""
CHEAP = 0.01
"""Seconds that a full scan may take to be made before each wait."""
SCAN_EVERY = 2.0
"""Seconds after which to make a full scan, whatever the last one took."""


class ClaimCursor:
    """See the module. Times are of `trio.current_time`; a position is a priority, a due
    time and an id."""

    def __init__(self) -> None:
        self._position: tuple[int, datetime, int] | None = None
        self._scan_at = -math.inf
        self._scan_took = 0.0

    @property
    def scans_are_cheap(self) -> bool:
        """Whether a resumed scan that finds nothing may become a full one."""
        return self._scan_took <= CHEAP

    def next_position(self, now: float) -> tuple[int, datetime, int] | None:
        """Return from where on to resume the scan; None: make a full scan."""
        return self._position if now < self._scan_at else None

    def claimed(self, last: Row) -> None:
        """Note the last message that a claim has brought."""
        self._position = last[PRIORITY], last[DUE], last[ID]

    def scanned(self, began: float, ended: float, next_due_at: float) -> None:
        """Note a full scan, and when it found that the next message is due."""
        self._scan_took = ended - began
        self._scan_at = min(ended + min(SHARE * self._scan_took, SCAN_EVERY), next_due_at)

    def resumed_in_vain(self) -> float:
        """Note a resumed scan that found fewer messages than asked for, and return when
        to claim again; minus infinity: now."""
        if self.scans_are_cheap:
            self._scan_at = -math.inf
        return self._scan_at
