"""The registration of this process and its workers, also after a declared death.

A consumer claims nothing before the database knows how this process is to be found
dead: by its lifeline, or, without one, by its heartbeats alone (*detached*).
``sql/functions/workers/processes.sql`` has the rules.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import trio

from tocsin._concurrency.backoff import delays
from tocsin._database.cleanup import warning_of_failure
from tocsin._database.client import Connection, Database
from tocsin._database.schema import ours
from tocsin._version import VERSION
from tocsin.errors import (
    ConfigError,
    PermissionDenied,
    QueueNotFound,
    StateTransitionError,
)
from tocsin.errors._workers import ProcessDeclaredDead

logger = logging.getLogger("tocsin.process")

LEASES = "leases "
"""Beginning of the notification that messages were taken from a worker.

The worker's id follows.
"""

SETTLED_AFTER = 10.0
"""Seconds after a registration from which the next one comes without a pause.

A process registers again when it has been declared dead.
"""


class LocalWorker(Protocol):
    """A worker of this process: see ``registration.py``."""

    @property
    def queue(self) -> str: ...
    @property
    def queue_id(self) -> int: ...
    @property
    def worker_id(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def listens_to(self) -> tuple[str, int] | None: ...
    def on_worker_status(self, status: str, grace: float | None) -> None: ...
    def on_leases_revoked(self) -> None: ...
    async def register(self, process_id: int) -> None: ...


class ProcessRegistration:
    """The row of this process in ``tocsin.processes``."""

    def __init__(self, database: Database, heartbeat_interval: float) -> None:
        self.id: int | None = None
        """Its id; None before the first registration."""
        self.channel: str = ""
        """The channel on which the database notifies this process."""
        self.detached: bool = False
        """Whether the database knows that this process has no lifeline."""
        self._database = database
        self._heartbeat_interval = heartbeat_interval
        self.registered_at: float = -math.inf
        """When it was registered (`trio.current_time`)."""
        self._pauses = delays()

    async def begin(self) -> int:
        """Register the process and return its id.

        Raises:
            SchemaNewer: The schema serves later versions of Tocsin only.

        Cancellation:
            The process may be registered; it is then found dead.
        """
        process_id, self.channel = await self._database.fetch_one(
            "select id, tocsin.process_channel(id)"
            " from tocsin.register_process(%s, %s, %s, %s, %s) id",
            [
                socket.gethostname(),
                os.getpid(),
                VERSION,
                timedelta(seconds=self._heartbeat_interval),
                ours().version,
            ],
        )
        self._database.contract.note_served()
        self.id = int(process_id)
        self.detached = False
        self.registered_at = trio.current_time()
        return self.id

    async def begin_again(self) -> int:
        """Register the process under a new id and return that.

        What declares a process dead may do so each time, so a pause comes before a
        second registration within `SETTLED_AFTER` seconds. An earlier attempt may have
        registered the process before the connection was lost, so this one first
        unregisters.
        """
        if trio.current_time() < self.registered_at + SETTLED_AFTER:
            await trio.sleep(next(self._pauses))
        else:
            self._pauses = delays()
        await self._database.fetch("select tocsin.unregister_process(%s)", [self.id])
        return await self.begin()

    async def attach(self, connection: Connection) -> bool:
        """Take a lifeline on this connection.

        Returns:
            False if the process has been declared dead.

        Raises:
            ConfigError: The connection logs in as a role that may not act for the
                process.
        """
        try:
            (alive,) = await self._database.fetch_one(
                "select tocsin.attach_process(%s)", [self.id], on=connection
            )
        except PermissionDenied as denied:
            raise ConfigError(
                "listen_dsn", f"{denied.problem}; use the role of dsn in listen_dsn"
            ) from denied
        self.detached = False
        return bool(alive)

    async def detach(self) -> None:
        """Tell the database that the process goes on without a lifeline."""
        if not self.detached:
            await self._database.fetch("select tocsin.detach_process(%s)", [self.id])
            self.detached = True

    async def end(self) -> None:
        """Unregister the process within the grace of a cleanup."""
        if self.id is None:
            return
        with warning_of_failure(
            self._database.grace,
            logger,
            "process %d could not be unregistered, and will be declared dead: %s",
            self.id,
        ):
            await self._database.fetch("select tocsin.unregister_process(%s)", [self.id])


class Membership:
    """The workers of this process, and whether it counts as alive."""

    def __init__(self, process: ProcessRegistration, on_change: Callable[[], None]) -> None:
        self.process = process
        self.workers: dict[int, LocalWorker] = {}
        """The registered workers of this process, by id."""
        self.registering: trio.Lock = trio.Lock()
        """The lock that is held while a worker is registered.

        The worker's row may be there before `workers` has it.
        """
        self.declared_dead: bool = False
        """Whether the database has declared this process dead.

        It is false again when the process has registered again.
        """
        self._on_change = on_change
        self._lifeline_missing = False
        self._registered_again = trio.Event()
        self._may_claim = trio.Event()

    @property
    def channels(self) -> dict[str, int]:
        """The channels that the workers listen to, each with the queue it rings for."""
        return dict(w.listens_to for w in self.workers.values() if w.listens_to is not None)

    async def register(self, worker: LocalWorker) -> None:
        """Register a worker with this process, and the process before its first worker.

        Returns for a consumer when the process has its lifeline, or is detached.

        Raises:
            TocsinError: What the worker's registration raises.

        Cancellation:
            The worker may be registered.
        """
        while worker.worker_id not in self.workers:
            wait = 0.0
            async with self.registering:
                try:
                    await worker.register(self.process.id or await self.process.begin())
                except ProcessDeclaredDead:
                    self.mark_dead()
                except StateTransitionError as refused:
                    # The owner of the name seems to have died a moment ago: perhaps
                    # this program, before a restart.
                    if refused.retry_after is None:
                        raise
                    wait = refused.retry_after
                else:
                    self.workers[worker.worker_id] = worker
            self._on_change()
            if self.declared_dead:
                await self._registered_again.wait()
            await trio.sleep(wait)
        if worker.listens_to is not None:
            await self._may_claim.wait()

    async def ensure_process(self) -> None:
        """Register the process, unless it is registered.

        Raises:
            TocsinError: The registration is refused.

        Cancellation:
            The process may be registered.
        """
        async with self.registering:
            if self.process.id is None:
                await self.process.begin()
                self._on_change()

    def unregister(self, worker_id: int) -> None:
        """Forget a worker."""
        self.workers.pop(worker_id, None)
        self._on_change()

    def hear(self, payload: str) -> None:
        """Pass on a notification that messages were taken from a worker."""
        # Any role that may connect may notify anything, so the payload is compared.
        for worker_id, worker in self.workers.items():
            if payload == f"{LEASES}{worker_id}":
                worker.on_leases_revoked()

    def mark_dead(self) -> None:
        """Record that the database has declared this process dead."""
        if not self.declared_dead:
            self.declared_dead = True
            self._registered_again = trio.Event()
            if self._may_claim.is_set():
                self._may_claim = trio.Event()

    async def register_again(self) -> None:
        """Register the process again, with all its workers."""
        async with self.registering:
            process_id = await self.process.begin_again()
            for worker_id, worker in list(self.workers.items()):
                try:
                    await worker.register(process_id)
                except (StateTransitionError, QueueNotFound) as refused:
                    logger.warning("cannot register again: %s", refused)
                    self.unregister(worker_id)
                    worker.on_worker_status("gone", None)
                else:
                    # A worker that was purged has a new id.
                    if worker_id in self.workers:
                        del self.workers[worker_id]
                        self.workers[worker.worker_id] = worker
            self.declared_dead = False
            self._registered_again.set()

    async def attach(self, connection: Connection) -> None:
        """Take a lifeline on this connection, and let consumers claim."""
        if await self.process.attach(connection):
            self._lifeline_missing = False
            self._may_claim.set()
        else:
            self.mark_dead()

    def lifeline_failed(self) -> None:
        """Record that no lifeline can be had at present."""
        self._lifeline_missing = True

    async def detach_if_needed(self) -> None:
        """Detach the process if it has consumers and cannot get a lifeline.

        This tells the database that the process has no lifeline, and lets the consumers
        claim.
        """
        if self._lifeline_missing and self.channels and not self.declared_dead:
            await self.process.detach()
            self._may_claim.set()
