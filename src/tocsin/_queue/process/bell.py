"""The tasks of this process that wait on queues, and their waking.

A consumer that has nothing to do waits in its *waiter* until the queue's bell rings,
a known time comes, or something else wakes it. Notifications, the heartbeat and a
reconnection ring the bell (``listener.py``, ``heartbeat.py``).

No wake-up is lost between the last claim and the wait, because a waiter keeps a mark
of each ring. The consumer clears the mark *before* it claims. A ring during the claim
sets it again, and `Waiter.wait` then returns at once.

One ring wakes one waiter. That waiter rings on if it claimed as many messages as it
could, if its claim failed, or if it leaves. So a single message among a hundred idle
consumers of a process costs one or two claims.

Producers ring only for a queue with a *waiter lock*
(``sql/functions/queue/ring.sql``). A wait is safe after a claim that began under the
lock and found nothing. Without a lock the consumer waits all the same, but asks for
the lock, and is woken for another claim when the lock is confirmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from tocsin.telemetry.events import Events

LINGER = 0.02
"""Seconds without a wait after which a queue is idle.

They keep its lock from being released and taken again with each small burst.
"""


class Waiter:
    """The place where one task waits."""

    def __init__(self, queue: _Queue, on_woken: Callable[[], None]) -> None:
        self.wake_pending: bool = False
        """Whether messages may have come since this mark was last cleared."""
        self.waiting: bool = False
        """Whether the bell can wake it."""
        self._queue = queue
        self._on_woken = on_woken
        self._claims_under: object | None = None
        self._passed_on = False
        self._woken = False
        self._parked = trio.lowlevel.ParkingLot()

    def ring(self) -> None:
        """Wake the task to claim: there may be messages."""
        self.wake_pending = True
        self.wake()

    def wake(self) -> None:
        """Wake the task for another reason."""
        self._woken = True
        self._parked.unpark_all()

    def begin_claim(self) -> None:
        """Record that the task begins a claim."""
        self.wake_pending = self._passed_on = False
        self._claims_under = self._queue.lock

    def end_claim(self, again_at: float, *, full: bool) -> None:
        """Record that the claim has ended.

        Args:
            again_at: When to claim again (`trio.current_time`).
            full: Whether there may be more messages than the task could take.
        """
        if again_at <= trio.current_time():
            self.wake_pending = True
        else:
            self._queue.checked_under = self._claims_under
            self._queue.set_next_due(again_at)
        if full:
            self._queue.ring_another(self)
            self._queue.check_lock()

    def claim_failed(self) -> None:
        """Record that the claim had no result."""
        self.wake_pending = True
        self._queue.ring(but=self)

    async def wait(self, *, ignore_rings: bool = False, until: float = math.inf) -> None:
        """Wait for a ring, `wake` or a time.

        It may return without a reason, so callers check again what they wait for.

        Args:
            ignore_rings: Let the bell, and a ring from before, not end the wait.
            until: When to return at the latest (`trio.current_time`).

        Cancellation:
            Passes a ring on to another waiter.
        """
        if ignore_rings:
            if self.wake_pending and not self._passed_on:
                self._passed_on = True
                self._queue.ring(but=self)
            await self._park(until)
        elif self.wake_pending:
            await trio.lowlevel.checkpoint()
        else:
            self._queue.enter_wait(self)
            try:
                await self._park(min(until, self._queue.next_due_at))
            except BaseException:
                # The ring may have arrived after the cancellation.
                if self.wake_pending:
                    self._queue.ring(but=self)
                raise
            finally:
                self._queue.leave_wait(self)
            self._queue.check_due(self)
            if self.wake_pending:
                self._on_woken()
        self._woken = False

    async def _park(self, until: float) -> None:
        if self._woken:
            await trio.lowlevel.checkpoint()
        elif until == math.inf:
            # Without a cancel scope the task resumes faster.
            await self._parked.park()
        else:
            with trio.move_on_at(until):
                await self._parked.park()


class _Queue:
    """The waiters of one queue."""

    def __init__(self, on_lock_change: Callable[[], None]) -> None:
        self.waiters: list[Waiter] = []
        self.next_due_at = math.inf
        """When to wake a waiter without a ring (`trio.current_time`)."""
        self.lock: object | None = None
        """The confirmed waiter lock; each has an identity of its own."""
        self.checked_under: object | None = None
        """The lock under which the last claim that found nothing began."""
        self.idle_since = -math.inf
        """When the last wait ended."""
        self._on_lock_change = on_lock_change

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
            # No task waits: a producer may have rung because of the lock alone.
            self.check_lock()
            # Ring for all waiters, because a claim in progress may have begun before
            # the message arrived.
            for waiter in self.waiters:
                if not waiter.wake_pending:
                    waiter.ring()

    def ring_another(self, but: Waiter | None) -> bool:
        """Ring for one task that waits; return whether there was one."""
        for waiter in self.waiters:
            if waiter.waiting and not waiter.wake_pending and waiter is not but:
                waiter.ring()
                return True
        return False

    def enter_wait(self, waiter: Waiter) -> None:
        waiter.waiting = True
        if self.lock is None:
            self._on_lock_change()
        elif self.checked_under is not self.lock:
            waiter.ring()

    def leave_wait(self, waiter: Waiter) -> None:
        waiter.waiting = False
        self.idle_since = trio.current_time()

    def check_lock(self) -> None:
        if self.lock is not None and self.is_idle:
            self._on_lock_change()


class Bell:
    """The waiters of this process, by queue."""

    def __init__(self, on_lock_change: Callable[[], None], events: Events) -> None:
        """Begin without a queue.

        Args:
            on_lock_change: Called when a queue needs its waiter lock, or no longer
                does.
            events: Where this process and its consumers report their work.
        """
        self.events = events
        self._queues: dict[int, _Queue] = {}
        self._on_lock_change = on_lock_change

    @contextmanager
    def waiter(
        self, queue_id: int, on_woken: Callable[[], None] = lambda: None
    ) -> Iterator[Waiter]:
        """Make a waiter that this queue's bell wakes, for as long as the block lasts.

        Args:
            on_woken: Called when the task has waited and is to claim.
        """
        queue = self._queues.setdefault(queue_id, _Queue(self._on_lock_change))
        waiter = Waiter(queue, on_woken)
        queue.waiters.append(waiter)
        try:
            yield waiter
        finally:
            queue.waiters.remove(waiter)
            if waiter.wake_pending:
                queue.ring()

    def ring(self, queue_id: int) -> None:
        """Ring for messages of this queue that may have become due."""
        if queue := self._queues.get(queue_id):
            queue.ring()

    def ring_all(self) -> None:
        """Ring for every queue, because rings may have been missed."""
        for queue in self._queues.values():
            queue.ring()

    def wake_within(self, queue_id: int, seconds: float) -> None:
        """Wake a waiter of this queue in this many seconds, or sooner."""
        if queue := self._queues.get(queue_id):
            queue.set_next_due(trio.current_time() + seconds)

    def queues_waiting(self) -> list[int]:
        """Return the queues on which a task waits."""
        return [queue_id for queue_id, queue in self._queues.items() if queue.has_waiting]

    def queues_without_lock(self) -> set[int]:
        """Return the queues on which a task waits and that have no confirmed lock."""
        return {
            queue_id
            for queue_id, queue in self._queues.items()
            if queue.lock is None and queue.has_waiting
        }

    def lock_confirmed(self, queue_id: int) -> None:
        """Record that every producer sees the lock of this queue."""
        self._queues[queue_id].lock = object()
        self.ring(queue_id)

    def release_idle_locks(self) -> list[int]:
        """Forget the locks of idle queues and return these queues."""
        idle = [
            queue_id
            for queue_id, queue in self._queues.items()
            if queue.lock is not None and queue.is_idle
        ]
        for queue_id in idle:
            self._queues[queue_id].lock = None
        return idle

    def locks_lost(self) -> None:
        """Record that no lock is held any more."""
        for queue in self._queues.values():
            queue.lock = None
