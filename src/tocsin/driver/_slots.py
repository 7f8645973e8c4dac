"""The slots of a pool, which bound its connections, and the tasks that wait for one.

A task takes a slot first, first come first served, and only then a connection. So a
task that is cancelled while it opens a connection has a slot to return and nothing
else, and there are never more connections than slots.

A slot for which no connection can be opened is withheld. A server has limits of its own
(``max_connections``, a role's ``connection limit``), and they may be lower than the
pool's. A task that cannot open a connection while the pool has others gives its slot up
and waits for one of those. The slot returns after a while, or when the last connection
is gone; the task that gets it tries again. libpq tells the reason of a refusal in the
server's language only, so the reason does not matter.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from tocsin._concurrency.backoff import delays

__all__ = ["Slots"]


class Slots:
    """The slots of one pool."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiters = OrderedDict[Task, None]()
        # Tasks that have had a slot before, but got no connection.
        self._ahead = OrderedDict[Task, None]()
        self._pauses: Iterator[float] = delays()
        self.free = count
        """Slots that a task may take at once."""
        self.withheld = 0
        """Slots that are not given out, because no connection could be opened for
        them."""
        self.restore_at = math.inf
        """When the next withheld slot is given out again, as a `trio.current_time`."""
        self.waits = 0
        """How many times a task has waited for a slot."""
        self.waited = 0.0
        """Seconds that those waits have taken together."""

    @property
    def taken(self) -> int:
        """Slots that tasks have."""
        return self._count - self.free - self.withheld

    @property
    def waiting(self) -> int:
        """Tasks that wait for a slot."""
        return len(self._ahead) + len(self._waiters)

    def take(self) -> bool:
        """Take a free slot, and return whether there was one."""
        if taken := self.free > 0:
            self.free -= 1
        return taken

    async def wait(self, deadline: float, *, ahead: bool) -> bool:
        """Wait for a slot, and return whether there was one before the deadline.

        Args:
            deadline: The time at which the wait ends (`trio.current_time`).
            ahead: Whether the task is served before those that have not had a slot yet.

        Cancellation:
            The task has no slot.
        """
        task = trio.lowlevel.current_task()
        queue = self._ahead if ahead else self._waiters

        def leave(_: RaiseCancelT) -> Abort:
            del queue[task]
            return Abort.SUCCEEDED

        queue[task] = None
        self.waits += 1
        began = trio.current_time()
        try:
            with trio.CancelScope(deadline=deadline) as scope:
                await trio.lowlevel.wait_task_rescheduled(leave)
        finally:
            self.waited += trio.current_time() - began
        return not scope.cancelled_caught

    def give_back(self) -> None:
        """Give a slot to the task that has waited longest, else make it free.

        It is handed over directly, so that a task that comes later is not faster.
        """
        if not self._wake_first():
            self.free += 1

    def withhold(self, spare: int) -> None:
        """Withhold the slot of a task that could not open a connection.

        The next task would fare no better. So ``spare`` of the free slots are withheld,
        too.
        """
        self.free -= spare
        self.withheld += 1 + spare
        if self.restore_at == math.inf:
            self.restore_at = trio.current_time() + next(self._pauses)

    def restore_one(self) -> None:
        """Give a withheld slot out again."""
        self.restore_at = math.inf
        if self.withheld:
            self.withheld -= 1
            self.give_back()

    def restore_all(self) -> None:
        """Give all withheld slots out again."""
        while self.withheld:
            self.restore_one()

    def connection_opened(self) -> None:
        """Record that the server accepts connections again."""
        self._pauses = delays()
        self.restore_all()

    def wake_all(self) -> None:
        """Give each waiting task a slot, whether there is one or not.

        Each task gives it back when it finds the pool closed.
        """
        while self._wake_first():
            self.free -= 1

    def _wake_first(self) -> bool:
        if queue := self._ahead or self._waiters:
            task, _ = queue.popitem(last=False)
            trio.lowlevel.reschedule(task)
            return True
        return False
