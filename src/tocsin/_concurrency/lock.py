"""The lock that serialises the use of one connection.

psycopg takes it around every statement, and a statement is a checkpoint already;
`trio.Lock` would make one more, which costs a pass through trio's loop per round trip.
This one yields only when it has to wait. It also does not mind which task releases it:
psycopg holds it across a generator (``stream()``, ``notifies()``), and a generator may
be finalised by another task than the one that began it.
"""

from __future__ import annotations

from types import TracebackType

from trio.lowlevel import ParkingLot, enable_ki_protection

__all__ = ["Lock"]


class Lock:
    """A fair lock, with the methods of `asyncio.Lock` that psycopg uses."""

    def __init__(self) -> None:
        self._held = False
        self._waiters = ParkingLot()

    def locked(self) -> bool:
        """Return whether the lock is held."""
        return self._held

    @enable_ki_protection
    async def acquire(self) -> None:
        """Take the lock; a checkpoint only if it is held.

        Cancellation:
            The lock was not taken. A waiter that got the lock before the cancellation
            has it, and returns.
        """
        if self._held:
            await self._waiters.park()
        self._held = True

    @enable_ki_protection
    def release(self) -> None:
        """Hand the lock to the task that has waited longest."""
        # The lock stays held, so that no other task can take it before the waiter runs.
        if self._waiters:
            self._waiters.unpark()
        else:
            self._held = False

    @enable_ki_protection
    async def __aenter__(self) -> None:
        await self.acquire()

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
