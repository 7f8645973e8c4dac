"""Waking: who sleeps in this process, on which queue, and who is woken when the bell rings.

A consumer that finds nothing to do goes to *bed*, until the queue's bell rings, a known time comes, or it is nudged for a reason of its
own. What rings in this process is decided elsewhere: by notifications, by the heartbeat, by a reconnection (``process.py``).

No wake-up is lost between the last look and going to sleep: a bed remembers that it was rung. The consumer clears that mark *before* it
looks for messages; a ring during the look sets it again, and then `Bed.sleep` returns at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Bed:
    """Where one task sleeps."""

    def __init__(self) -> None:
        self.rung = False
        """Whether messages may have come since this mark was last cleared."""
        self.alarm = math.inf
        """When to ring by itself (`trio.current_time`)."""
        self._woken = trio.Event()

    def ring(self) -> None:
        """There may be messages: wake up and look."""
        self.rung = True
        self._woken.set()

    def nudge(self) -> None:
        """Something else has changed: wake up."""
        self._woken.set()

    def set_alarm(self, at: float) -> None:
        """Ring at this time instead of the one set before; infinity: never."""
        self.alarm = at
        self._woken.set()

    async def sleep(self, *, sound: bool = False) -> None:
        """Return when nudged or rung, or at the alarm, which rings. ``sound``: neither for the alarm nor because it was rung before.

        A checkpoint. May return for no reason, so callers look again at what they waited for. Cancellation changes nothing.
        """
        if self.rung and not sound:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_at(math.inf if sound else self.alarm):
            await self._woken.wait()
        self._woken = trio.Event()
        if not sound and trio.current_time() >= self.alarm:
            self.alarm = math.inf
            self.rung = True


class Bell:
    """The beds of this process, by queue."""

    def __init__(self) -> None:
        self._beds: defaultdict[int, list[Bed]] = defaultdict(list)

    @contextmanager
    def bed(self, queue_id: int) -> Iterator[Bed]:
        """Make a bed that this queue's bell wakes, for as long as the block lasts."""
        bed = Bed()
        self._beds[queue_id].append(bed)
        try:
            yield bed
        finally:
            self._beds[queue_id].remove(bed)
            if not self._beds[queue_id]:
                del self._beds[queue_id]

    def ring(self, queue_id: int) -> None:
        """Messages of this queue may have become due."""
        for bed in self._beds.get(queue_id, ()):
            bed.ring()

    def ring_all(self) -> None:
        """Rings may have been missed, on any queue."""
        for queue_id in self._beds:
            self.ring(queue_id)

    def expect(self, queue_id: int, seconds: float) -> None:
        """The queue's next message is due in this many seconds. A bed whose alarm comes sooner keeps it."""
        at = trio.current_time() + seconds
        for bed in self._beds.get(queue_id, ()):
            if at < bed.alarm:
                bed.set_alarm(at)
