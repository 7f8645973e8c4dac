"""The signal that wakes the loop of a process before its next deadline."""

from __future__ import annotations

import trio

from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.scheduling import run_woken_tasks
from tocsin._database.client import Connection


class Wakeup:
    """A signal to the loop to run before its next deadline."""

    def __init__(self) -> None:
        self.pending = False
        self._scope: trio.CancelScope | None = None

    def wake(self) -> None:
        self.pending = True
        if self._scope is not None:
            cancel(self._scope, "the process has something to do")

    async def wait(self, connection: Connection | None, deadline: float) -> None:
        """Take in notifications until woken or the deadline.

        Without a connection it only waits.
        """
        with trio.CancelScope(deadline=deadline) as self._scope:
            while connection is not None:
                await connection.wait_for_notifications()
                # Let the consumer that was woken send its claim first.
                await run_woken_tasks()
            await trio.sleep_forever()
        self._scope = None
