"""The state of a consumer: whether it has a run, and whether it may have one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from tocsin._durations import to_timedelta
from tocsin._queue.process.bell import Waiter

from .lease_clock import lease_time, time_asleep
from .parts import ConsumerParts
from .run import Run


class ConsumerState:
    """The state of one consumer."""

    def __init__(self, parts: ConsumerParts) -> None:
        self.parts = parts
        self.run: Run | None = None
        """The run that is going on."""
        self.running = False
        """Whether a run is going on, beginning or ending."""
        self._manual_waiters: set[Waiter] = set()
        self._closed_by: set[object] = set()
        self._leaving = 0

    @contextmanager
    def manual_waiter(self) -> Iterator[Waiter]:
        """Make a waiter for a caller of `Consumer.dequeue`."""
        with self.parts.open_waiter() as waiter:
            self._manual_waiters.add(waiter)
            try:
                yield waiter
            finally:
                self._manual_waiters.discard(waiter)

    # Changes from the registry

    def on_worker_status(self, status: str, grace: float | None) -> None:
        """Pass on to the run what the registry says of this worker.

        Waiting callers of `Consumer.dequeue` ask the database, and are refused.
        """
        if self.run is not None:
            self.run.on_worker_status(status, grace)
        if status in ("interrupted", "suspended", "stopped", "gone"):
            for waiter in self._manual_waiters:
                waiter.ring()

    def on_leases_revoked(self) -> None:
        """Have the run ask which of its leases are gone.

        A caller of `Consumer.dequeue` is told when it settles.
        """
        if self.run is not None:
            self.run.on_leases_revoked()

    # Ends of the run that do not depend on the registry and do not change it

    def end_run(self, grace: float | None = None) -> None:
        """End the run; see `Consumer.interrupt`."""
        self.on_worker_status("interrupted", grace)

    async def interrupt(self, grace: float | None) -> None:
        """Have the registry say that the worker is interrupted.

        See `WorkerHandle.interrupt`.

        Cancellation:
            Atomic.
        """
        registration = self.parts.registration
        await self.parts.database.fetch(
            "select tocsin.interrupt(%s, %s, %s)",
            [
                registration.worker_id,
                to_timedelta(grace, "grace", zero=True),
                registration.token,
            ],
        )

    # Ends by a signal (``draining.py``)

    @property
    def closed(self) -> bool:
        """Whether the consumer is to take no more messages in this process."""
        return bool(self._closed_by)

    def close(self, by: object, grace: float | None = None) -> None:
        """End the run, and let no run begin before `reopen` with the same ``by``."""
        self._closed_by.add(by)
        self.end_run(grace)

    def reopen(self, by: object) -> None:
        """End the effect of `close` with the same ``by``."""
        self._closed_by.discard(by)

    def is_idle(self, but: trio.lowlevel.Task) -> bool:
        """Return whether nothing goes on here that a cancellation would cut short.

        That is a run, or a message that another task than ``but`` dequeued by hand.
        """
        return self._leaving > 0 or not (
            self.running or self.parts.leases.manual_until(but) > lease_time()
        )

    async def wait_idle(self, but: trio.lowlevel.Task) -> None:
        """Wait until `is_idle`.

        Cancellation:
            Changes nothing.
        """
        leases = self.parts.leases
        while not self.is_idle(but):
            wake_at = math.inf if self.running else leases.manual_until(but) - time_asleep()
            with trio.move_on_at(wake_at):
                await leases.wait_for_drop()

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Count this consumer as idle within the block: it is at its end."""
        self._leaving += 1
        self.parts.leases.wake_waiters()
        try:
            yield
        finally:
            self._leaving -= 1
