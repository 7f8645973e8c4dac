"""Waking: who sleeps in this process, on which queue, and who is woken when the bell rings.

A consumer that finds nothing to do goes to *bed*, until the queue's bell rings, a known time comes, or it is nudged for a reason of its
own. What rings in this process is decided elsewhere: by notifications, by the heartbeat, by a reconnection (``process.py``).

No wake-up is lost between the last look and going to sleep: a bed remembers that it was rung. The consumer clears that mark *before* it
looks for messages; a ring during the look sets it again, and then `Bed.sleep` returns at once.

One ring wakes one sleeper, and it rings on if it took as many messages as it could, failed to look, or left. So a single message among a
hundred idle consumers of a process costs one claim or two.

Producers ring only when somebody sleeps (``sql/functions/ring.sql``). So the process tells the database of each queue where somebody does:
then the queue is *guarded*. A sleeper relies on a look that somebody made under the guard; without one it still lies down, but asks for the
guard, and is rung for another look as soon as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

LINGER = 0.02
"""Seconds without a sleeper after which a queue's guard may be given up, so that it does not come and go with each small burst."""


class Bed:
    """Where one task sleeps."""

    def __init__(self, queue: _Queue) -> None:
        self.rung = False
        """Whether messages may have come since this mark was last cleared."""
        self.asleep = False
        """Whether the bell can wake it."""
        self._queue = queue
        self._looks_under: object | None = None
        self._rung_on = False
        self._nudged = False
        self._resting = trio.lowlevel.ParkingLot()

    def ring(self) -> None:
        """There may be messages: wake up and look."""
        self.rung = True
        self.nudge()

    def nudge(self) -> None:
        """Something else has changed: wake up."""
        self._nudged = True
        self._resting.unpark_all()

    def look(self) -> None:
        """The owner begins to look for messages."""
        self.rung = self._rung_on = False
        self._looks_under = self._queue.guard

    def looked(self, again_at: float, *, full: bool) -> None:
        """The look is over; look again at this time (`trio.current_time`). ``full``: there may be more than the owner could take."""
        if again_at <= trio.current_time():
            self.rung = True
        else:
            self._queue.looked_under = self._looks_under
            self._queue.set_alarm(again_at)
        if full:
            self._queue.ring_another(self)
            self._queue.check_guard()

    def failed_to_look(self) -> None:
        """The look brought no answer."""
        self.rung = True
        self._queue.ring(but=self)

    async def sleep(self, *, sound: bool = False, until: float = math.inf) -> None:
        """Return when nudged or rung, or at a time. ``sound``: the bell is not heard, and not whether it was rung before.

        A checkpoint. May return for no reason, so callers look again at what they waited for. Cancelled, it is another's turn to look.
        """
        if sound:
            if self.rung and not self._rung_on:
                self._rung_on = True
                self._queue.ring(but=self)
            await self._rest(until)
        elif self.rung:
            await trio.lowlevel.checkpoint()
        else:
            self._queue.lies_down(self)
            try:
                await self._rest(min(until, self._queue.alarm))
            except BaseException:
                if self.rung:  # a ring that came when this was cancelled already, and may find nobody to look
                    self._queue.ring(but=self)
                raise
            finally:
                self._queue.got_up(self)
            self._queue.check_alarm(self)
        self._nudged = False

    async def _rest(self, until: float) -> None:
        if self._nudged:
            await trio.lowlevel.checkpoint()
        elif until == math.inf:  # as a rule: then there is no scope to be left between the ring and the claim
            await self._resting.park()
        else:
            with trio.move_on_at(until):
                await self._resting.park()


class _Queue:
    """The beds of one queue."""

    def __init__(self, change_guards: Callable[[], None]) -> None:
        self.beds: list[Bed] = []
        self.alarm = math.inf
        """When to wake somebody without a ring (`trio.current_time`)."""
        self.guard: object | None = None
        """The guard that stands."""
        self.looked_under: object | None = None
        """The guard under which somebody has looked in vain."""
        self.deserted_at = -math.inf
        """When the last sleeper got up."""
        self._change_guards = change_guards

    @property
    def has_sleepers(self) -> bool:
        return any(bed.asleep for bed in self.beds)

    @property
    def is_deserted(self) -> bool:
        return not self.has_sleepers and (not self.beds or self.deserted_at + LINGER < trio.current_time())

    def set_alarm(self, at: float) -> None:
        if at < self.alarm:
            self.alarm = at
            for bed in self.beds:
                bed.nudge()

    def check_alarm(self, bed: Bed) -> None:
        if trio.current_time() >= self.alarm:
            self.alarm = math.inf
            bed.rung = True

    def ring(self, but: Bed | None = None) -> None:
        if not self.ring_another(but):
            self.check_guard()  # the ring was for nobody, so perhaps for the guard alone
            for bed in self.beds:  # whoever can first; also one that looks already, for it may have begun too early
                if not bed.rung:
                    bed.ring()

    def ring_another(self, but: Bed | None) -> bool:
        """Wake one who sleeps; return whether there was one."""
        for bed in self.beds:
            if bed.asleep and not bed.rung and bed is not but:
                bed.ring()
                return True
        return False

    def lies_down(self, bed: Bed) -> None:
        bed.asleep = True
        if self.guard is None:
            self._change_guards()
        elif self.looked_under is not self.guard:
            bed.ring()

    def got_up(self, bed: Bed) -> None:
        bed.asleep = False
        self.deserted_at = trio.current_time()

    def check_guard(self) -> None:
        if self.guard is not None and self.is_deserted:
            self._change_guards()


class Bell:
    """The beds of this process, by queue."""

    def __init__(self) -> None:
        self._queues: dict[int, _Queue] = {}
        self.when_guards_change: Callable[[], None] = lambda: None
        """Called when a queue is to be guarded, or a guard may be given up."""

    @contextmanager
    def bed(self, queue_id: int) -> Iterator[Bed]:
        """Make a bed that this queue's bell wakes, for as long as the block lasts."""
        queue = self._queues.setdefault(queue_id, _Queue(lambda: self.when_guards_change()))
        bed = Bed(queue)
        queue.beds.append(bed)
        try:
            yield bed
        finally:
            queue.beds.remove(bed)
            if bed.rung:
                queue.ring()

    def ring(self, queue_id: int) -> None:
        """Messages of this queue may have become due."""
        if queue := self._queues.get(queue_id):
            queue.ring()

    def ring_all(self) -> None:
        """Rings may have been missed, on any queue."""
        for queue in self._queues.values():
            queue.ring()

    def expect(self, queue_id: int, seconds: float) -> None:
        """The queue's next message is due in this many seconds, or sooner."""
        if queue := self._queues.get(queue_id):
            queue.set_alarm(trio.current_time() + seconds)

    def asleep(self) -> list[int]:
        """Return the queues where somebody sleeps."""
        return [queue_id for queue_id, queue in self._queues.items() if queue.has_sleepers]

    # Guards

    def unguarded(self) -> set[int]:
        """Return the queues where somebody sleeps without a guard."""
        return {queue_id for queue_id, queue in self._queues.items() if queue.guard is None and queue.has_sleepers}

    def guard(self, queue_id: int) -> None:
        """The guard of this queue stands from now on."""
        self._queues[queue_id].guard = object()
        self.ring(queue_id)

    def give_up_guards(self) -> list[int]:
        """Give up the guards of queues where nobody sleeps any more, and return these queues."""
        deserted = [queue_id for queue_id, queue in self._queues.items() if queue.guard is not None and queue.is_deserted]
        for queue_id in deserted:
            self._queues[queue_id].guard = None
        return deserted

    def lose_guards(self) -> None:
        """No guard stands any more."""
        for queue in self._queues.values():
            queue.guard = None
