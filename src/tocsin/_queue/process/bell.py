"""Waking: who sleeps in this process, on which queue, and who is woken when the bell
rings.

A consumer that finds nothing to do goes to *waiter*, until the queue's bell rings, a
known time comes, or it is nudged for a reason of its own. What rings in this process is
decided elsewhere: by notifications, by the heartbeat, by a reconnection
(``process.py``).

No wake-up is lost between the last look and going to sleep: a waiter remembers that it
was rung. The consumer clears that mark *before* it looks for messages; a ring during
the look sets it again, and then `Waiter.wait` returns at once.

One ring wakes one sleeper, and it rings on if it took as many messages as it could,
failed to look, or left. So a single message among a hundred idle consumers of a process
costs one claim or two.

Producers ring only when somebody sleeps (``sql/functions/queue/ring.sql``). So the process
tells the database of each queue where somebody does: then the queue is *guarded*. A
sleeper relies on a look that somebody made under the guard; without one it still lies
down, but asks for the guard, and is rung for another look as soon as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

LINGER = 0.02
"""Seconds without a sleeper after which a queue's guard may be given up, so that it
does not come and go with each small burst."""


class Waiter:
    """Where one task sleeps."""

    def __init__(self, queue: _Queue) -> None:
        self.wake_pending = False
        """Whether messages may have come since this mark was last cleared."""
        self.waiting = False
        """Whether the bell can wake it."""
        self._queue = queue
        self._claims_under: object | None = None
        self._passed_on = False
        self._nudged = False
        self._resting = trio.lowlevel.ParkingLot()

    def ring(self) -> None:
        """There may be messages: wake up and look."""
        self.wake_pending = True
        self.wake()

    def wake(self) -> None:
        """Something else has changed: wake up."""
        self._nudged = True
        self._resting.unpark_all()

    def begin_claim(self) -> None:
        """The owner begins to look for messages."""
        self.wake_pending = self._passed_on = False
        self._claims_under = self._queue.lock

    def end_claim(self, again_at: float, *, full: bool) -> None:
        """The look is over; look again at this time (`trio.current_time`). ``full``:
        there may be more than the owner could take."""
        if again_at <= trio.current_time():
            self.wake_pending = True
        else:
            self._queue.checked_under = self._claims_under
            self._queue.set_next_due(again_at)
        if full:
            self._queue.ring_another(self)
            self._queue.check_lock()

    def claim_failed(self) -> None:
        """The look brought no answer."""
        self.wake_pending = True
        self._queue.ring(but=self)

    async def wait(self, *, ignore_rings: bool = False, until: float = math.inf) -> None:
        """Return when nudged or rung, or at a time. ``ignore_rings``: the bell is not
        heard, and not whether it was rung before.

        A checkpoint. May return for no reason, so callers look again at what they
        waited for. Cancelled, it is another's turn to look.
        """
        if ignore_rings:
            if self.wake_pending and not self._passed_on:
                self._passed_on = True
                self._queue.ring(but=self)
            await self._rest(until)
        elif self.wake_pending:
            await trio.lowlevel.checkpoint()
        else:
            self._queue.enter_wait(self)
            try:
                await self._rest(min(until, self._queue.next_due_at))
            except BaseException:
                # a ring that came when this was cancelled already, and may find nobody
                # to look
                if self.wake_pending:
                    self._queue.ring(but=self)
                raise
            finally:
                self._queue.leave_wait(self)
            self._queue.check_due(self)
        self._nudged = False

    async def _rest(self, until: float) -> None:
        if self._nudged:
            await trio.lowlevel.checkpoint()
        elif (
            until == math.inf
        ):  # as a rule: then there is no scope to be left between the ring and the claim
            await self._resting.park()
        else:
            with trio.move_on_at(until):
                await self._resting.park()


class _Queue:
    """The waiters of one queue."""

    def __init__(self, change_locks: Callable[[], None]) -> None:
        self.waiters: list[Waiter] = []
        self.next_due_at = math.inf
        """When to wake somebody without a ring (`trio.current_time`)."""
        self.lock: object | None = None
        """The guard that stands."""
        self.checked_under: object | None = None
        """The guard under which somebody has looked in vain."""
        self.idle_since = -math.inf
        """When the last sleeper got up."""
        self._change_locks = change_locks

    @property
    def has_waiting(self) -> bool:
        return any(waiter.waiting for waiter in self.waiters)

    @property
    def is_idle(self) -> bool:
        return not self.has_waiting and (
            not self.waiters or self.idle_since + LINGER < trio.current_time()
        )

    def set_next_due(self, at: float) -> None:
        if at < self.next_due_at:
            self.next_due_at = at
            for waiter in self.waiters:
                waiter.wake()

    def check_due(self, waiter: Waiter) -> None:
        if trio.current_time() >= self.next_due_at:
            self.next_due_at = math.inf
            waiter.wake_pending = True

    def ring(self, but: Waiter | None = None) -> None:
        if not self.ring_another(but):
            self.check_lock()  # the ring was for nobody, so perhaps for the guard alone
            # whoever can first; also one that looks already, for it may have begun too
            # early
            for waiter in self.waiters:
                if not waiter.wake_pending:
                    waiter.ring()

    def ring_another(self, but: Waiter | None) -> bool:
        """Wake one who sleeps; return whether there was one."""
        for waiter in self.waiters:
            if waiter.waiting and not waiter.wake_pending and waiter is not but:
                waiter.ring()
                return True
        return False

    def enter_wait(self, waiter: Waiter) -> None:
        waiter.waiting = True
        if self.lock is None:
            self._change_locks()
        elif self.checked_under is not self.lock:
            waiter.ring()

    def leave_wait(self, waiter: Waiter) -> None:
        waiter.waiting = False
        self.idle_since = trio.current_time()

    def check_lock(self) -> None:
        if self.lock is not None and self.is_idle:
            self._change_locks()


class Bell:
    """The waiters of this process, by queue."""

    def __init__(self) -> None:
        self._queues: dict[int, _Queue] = {}
        self.when_locks_change: Callable[[], None] = lambda: None
        """Called when a queue is to be guarded, or a guard may be given up."""

    @contextmanager
    def waiter(self, queue_id: int) -> Iterator[Waiter]:
        """Make a waiter that this queue's bell wakes, for as long as the block lasts."""
        queue = self._queues.setdefault(queue_id, _Queue(lambda: self.when_locks_change()))
        waiter = Waiter(queue)
        queue.waiters.append(waiter)
        try:
            yield waiter
        finally:
            queue.waiters.remove(waiter)
            if waiter.wake_pending:
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
            queue.set_next_due(trio.current_time() + seconds)

    def queues_waiting(self) -> list[int]:
        """Return the queues where somebody sleeps."""
        return [queue_id for queue_id, queue in self._queues.items() if queue.has_waiting]

    # Guards

    def queues_without_lock(self) -> set[int]:
        """Return the queues where somebody sleeps without a guard."""
        return {
            queue_id
            for queue_id, queue in self._queues.items()
            if queue.lock is None and queue.has_waiting
        }

    def lock_confirmed(self, queue_id: int) -> None:
        """The guard of this queue stands from now on."""
        self._queues[queue_id].lock = object()
        self.ring(queue_id)

    def release_idle_locks(self) -> list[int]:
        """Give up the guards of queues where nobody sleeps any more, and return these
        queues."""
        idle = [
            queue_id
            for queue_id, queue in self._queues.items()
            if queue.lock is not None and queue.is_idle
        ]
        for queue_id in idle:
            self._queues[queue_id].lock = None
        return idle

    def locks_lost(self) -> None:
        """No guard stands any more."""
        for queue in self._queues.values():
            queue.lock = None
