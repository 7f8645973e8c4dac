"""The calls of handlers that are going on in a run, and the times at which they end.

One timer serves all calls of a run: a cancel scope with a deadline for each call would
take longer than most calls do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import trio

from tocsin._concurrency.cancelling import cancel
from tocsin._queue.message import Message


@attrs.define(eq=False)
class CallScope:
    """The cancel scope of calls of a handler, one after the other."""

    _calls: Calls
    messages: list[Message] = attrs.Factory(list)
    """The messages that the handler is working on."""
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    lost: int | None = None
    """Id of the message whose lease was lost last, so that the scope was cancelled."""
    seconds: float = math.inf
    """How long the call may take."""
    deadline: float = math.inf
    """When that time is over (`trio.current_time`)."""
    late: bool = False
    """Whether the scope was cancelled because the time of a call was over."""

    def limit(self, seconds: float) -> float:
        """Have the call that is going on cancelled in this time.

        Its handler calls this method, and `unlimit` when it has ended.

        Returns:
            When the time is over (`trio.current_time`).
        """
        self.seconds = seconds
        self.deadline = deadline = trio.current_time() + seconds
        self._calls.watch(deadline)
        return deadline

    def unlimit(self) -> None:
        """Have no call cancelled because of its time."""
        self.deadline = math.inf

    def cancel_if_late(self, now: float) -> None:
        """Cancel the call if its time is over, unless it is cancelled already."""
        if self.deadline <= now and not self.scope.cancel_called:
            self.late = True
            cancel(self.scope, "the time of the call is over")


class Calls:
    """The calls of a run that are going on."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._going_on: set[CallScope] = set()
        self._nursery = nursery
        self._timer: trio.CancelScope | None = None
        # When the timer looks for late calls.
        self._looks_at = math.inf

    def __len__(self) -> int:
        return len(self._going_on)

    def __iter__(self) -> Iterator[CallScope]:
        return iter(self._going_on)

    def add(self, call: CallScope) -> None:
        """Record that a call is going on."""
        self._going_on.add(call)

    def discard(self, call: CallScope) -> None:
        """Record that a call has ended."""
        self._going_on.discard(call)

    @trio.lowlevel.enable_ki_protection
    def watch(self, deadline: float) -> None:
        """Have the timer look for late calls at this time, or before."""
        if deadline < self._looks_at:
            self._looks_at = deadline
            if self._timer is None:
                self._timer = trio.CancelScope(deadline=deadline)
                self._nursery.start_soon(self._cancel_late)
            else:
                self._timer.deadline = deadline

    @trio.lowlevel.enable_ki_protection
    async def _cancel_late(self) -> None:
        while self._timer is not None:
            with self._timer:
                await trio.sleep_forever()
            now = trio.current_time()
            for call in self._going_on:
                call.cancel_if_late(now)
            # Deadlines of calls that have ended since do not count any more.
            later = [c.deadline for c in self._going_on if c.deadline > now]
            self._looks_at = min(later, default=math.inf)
            self._timer = trio.CancelScope(deadline=self._looks_at)

    @trio.lowlevel.enable_ki_protection
    async def cancel_at(self, time: float, reason: str) -> None:
        """Cancel the calls that are going on at this time (`trio.current_time`).

        Cancellation:
            They are not cancelled.
        """
        await trio.sleep_until(time)
        for call in self._going_on:
            cancel(call.scope, reason)
