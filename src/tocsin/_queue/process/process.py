"""The supervision of what makes this process known to the database.

One task owns the one dedicated connection, the LISTEN connection, and uses it for all
three of its duties: it LISTENs (``listener.py``), it holds the lifeline, an advisory
lock whose loss tells other processes that this one is gone (``membership.py``), and it
holds the waiter locks (``waiter_locks.py``). The heartbeat goes over it, too
(``heartbeat.py``). A process that only produces has no such connection; its heartbeat
goes through the pool.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database.client import Connection, Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin.errors._workers import ProcessDeclaredDead
from tocsin.telemetry.events import DeclaredDead
from tocsin.telemetry.instruments import Telemetry

from .bell import Bell
from .heartbeat import Heartbeat, Schedule
from .listener import Listener, ListenProof
from .membership import LocalWorker, Membership, ProcessRegistration
from .outcome_lookup import OutcomeLookup
from .outcome_waits import OutcomeWaits
from .waiter_locks import WaiterLocks
from .waits import Waits
from .wakeup import Wakeup

logger = logging.getLogger("tocsin.process")

STEADY_AFTER = 1.0
"""Seconds after which a LISTEN connection counts as one that works.

Its first statements may fail each time.
"""


class Process:
    """This process as the database sees it."""

    def __init__(
        self,
        database: Database,
        connect: Callable[[], Awaitable[Connection]],
        heartbeat_interval: float,
        maintain: Callable[[], None],
        telemetry: Telemetry,
    ) -> None:
        """Put the parts together.

        Args:
            connect: Opens the LISTEN connection.
            maintain: Called when this process is to do the maintenance.
            telemetry: Where this process and its consumers report their work.
        """
        self._wakeup = Wakeup()
        self.lookup: OutcomeLookup = OutcomeLookup(database)
        """Looks for the outcomes of jobs."""
        self.telemetry: Telemetry = telemetry
        """Where this process and its consumers report their work."""
        self.bell: Bell = Bell(self._wakeup.wake, telemetry.events)
        """The waiters of this process."""
        registration = ProcessRegistration(database, heartbeat_interval)
        self._membership = Membership(registration, self._wakeup.wake)
        self._waits = Waits(
            WaiterLocks(database, self.bell),
            OutcomeWaits(database, self._membership, self._wakeup.wake),
        )
        self.heartbeat: Heartbeat = Heartbeat(
            database,
            Schedule(registration, heartbeat_interval),
            self._membership,
            self.bell,
            self._waits,
            maintain,
        )
        """What this process sends to the database at intervals."""
        self.listener: Listener = Listener(
            connect,
            ListenProof(database, heartbeat_interval),
            self._membership,
            self.bell,
            self._on_told,
        )
        """The LISTEN connection."""

    @property
    def outcomes(self) -> OutcomeWaits:
        """The tasks of this process that wait for outcomes of jobs."""
        return self._waits.outcomes

    async def register(self, worker: LocalWorker) -> None:
        """Register a worker; see `Membership.register`."""
        await self._membership.register(worker)

    def unregister(self, worker_id: int) -> None:
        """Forget a worker."""
        self._membership.unregister(worker_id)

    def request_heartbeat(self) -> None:
        """Have the next heartbeat sent now: it brings the state of the workers."""
        self.heartbeat.schedule.request()
        self._wakeup.wake()

    def _on_told(self, payload: str) -> None:
        if not payload:  # The state of a worker has changed.
            self.request_heartbeat()
        elif not self._waits.outcomes.hear(payload):
            self._membership.hear(payload)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Keep the registration, the LISTEN connection and the heartbeat going.

        Raises:
            ConfigError: The LISTEN connection logs in as a role that may not act for
                the process.

        Cancellation:
            Unregisters the process.
        """
        retries = OutageRetry("the LISTEN connection", logger)
        try:
            while True:
                try:
                    if self._membership.declared_dead:
                        _report_death(self.telemetry, self._membership.process.id)
                        await self._membership.register_again()
                    if self._wants_connection:
                        async with self._open_connection() as connection:
                            await self._serve(connection, retries)
                    else:
                        await self._serve(None, retries)
                except (*TRANSIENT, ProcessDeclaredDead) as lost:
                    wait = retries.failed(lost)
                    async with self._heartbeats_from_pool():
                        await trio.sleep(wait)
        finally:
            await self._membership.process.end()

    @property
    def _needs_connection(self) -> bool:
        return bool(self._membership.channels) or self._waits.outcomes.wanted

    @property
    def _wants_connection(self) -> bool:
        return self.listener.is_wanted(needed=self._needs_connection)

    @asynccontextmanager
    async def _open_connection(self) -> AsyncIterator[Connection]:
        async with self.listener.open(self._heartbeats_from_pool) as connection:
            try:
                yield connection
            finally:
                self._waits.lost()

    @asynccontextmanager
    async def _heartbeats_from_pool(self) -> AsyncIterator[None]:
        """Send the heartbeat through the pool while there is no connection."""
        async with open_nursery_bare() as nursery:
            nursery.start_soon(self.heartbeat.run, name="tocsin: heartbeat through the pool")
            yield
            cancel(nursery.cancel_scope, "the LISTEN connection is tried again")

    async def _serve(self, connection: Connection | None, retries: OutageRetry) -> None:
        """Do what comes up, with a connection or without, until that has to change."""
        steady_at = math.inf if connection is None else trio.current_time() + STEADY_AFTER
        while not self._membership.declared_dead and self._wants_connection == (
            connection is not None
        ):
            self._wakeup.pending = False
            if connection is not None:
                await self.listener.update_channels(connection)
                await self._waits.update(connection)
            else:
                await self._membership.detach_if_needed()
            if trio.current_time() >= self.heartbeat.schedule.due_at:
                await self.heartbeat.send(connection)
            if self._wakeup.pending or self._membership.declared_dead:
                continue
            if trio.current_time() >= steady_at:
                retries.succeeded()
                steady_at = math.inf
            deadlines = [self.heartbeat.schedule.due_at, self._waits.recheck_at, steady_at]
            if connection is None and self._needs_connection:
                deadlines.append(self.listener.proof.again_at)
            await self._wakeup.wait(connection, min(deadlines))


def _report_death(telemetry: Telemetry, process_id: int | None) -> None:
    if process_id is not None and telemetry.events.wants(DeclaredDead):
        telemetry.events.emit(DeclaredDead(process_id=process_id))
