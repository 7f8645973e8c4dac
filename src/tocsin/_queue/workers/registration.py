"""The registration of a worker of this process, for as long as a block lasts."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs

from tocsin._arguments import check_queue
from tocsin._database.cleanup import warning_of_failure
from tocsin._database.client import Database
from tocsin._queue.process.process import Process
from tocsin._version import VERSION

from .worker_handle import Worker

logger = logging.getLogger("tocsin.worker")


@attrs.frozen
class RegisteredAs:
    """The result of a registration."""

    worker_id: int
    """Id of the worker; 0 before the first registration."""
    name: str | None
    """Its name; None before the first registration if none was given."""
    token: int = 0
    """Token of the registration: an earlier one under the same name has another."""
    status: str = ""
    """The worker's state when it was registered."""
    queue_id: int = 0
    """Id of its queue."""
    channel: str = ""
    """The channel on which the queue's bell rings."""


class Registration:
    """A worker's place in the registry: the `LocalWorker` of its process."""

    def __init__(
        self,
        database: Database,
        kind: str,
        queue: str,
        name: str | None,
        tasks: Sequence[str] | None = None,
    ) -> None:
        self.queue = queue
        self.current: RegisteredAs = RegisteredAs(0, name)
        """The result of the last registration."""
        self._database = database
        self._kind = kind
        self._tasks = None if tasks is None else list(tasks)

    @property
    def worker_id(self) -> int:
        """Id of the worker; 0 before the first registration."""
        return self.current.worker_id

    @property
    def name(self) -> str | None:
        """Name of the worker."""
        return self.current.name

    @property
    def token(self) -> int:
        """Token of the current registration."""
        return self.current.token

    @property
    def queue_id(self) -> int:
        """Id of the worker's queue."""
        return self.current.queue_id

    @property
    def listens_to(self) -> tuple[str, int] | None:
        """The channel whose notifications the worker needs, and the queue it rings for.

        None: the worker needs none.
        """
        return None

    async def register(self, process_id: int) -> None:
        """Register the worker for this process, for the first time or again.

        Raises:
            TocsinError: The registration is refused.

        Cancellation:
            Atomic.
        """
        again = self.worker_id != 0
        row = await self._database.fetch_one(
            "select w.id, w.name, w.registration, w.status, q.id, q.channel"
            " from tocsin.register_worker(%s, %s, %s, %s, %s, %s, %s, %s, %s::text[]) w"
            " cross join lateral tocsin.queue_of(w.id) q",
            [
                check_queue(self.queue),
                self._kind,
                self.name,
                process_id,
                socket.gethostname(),
                os.getpid(),
                VERSION,
                again,
                self._tasks,
            ],
        )
        self.current = RegisteredAs(*row)

    def on_worker_status(self, status: str, grace: float | None) -> None:
        """Record the worker's state in the registry.

        ``gone``: the registration has ended.
        """

    def on_leases_revoked(self) -> None:
        """Record that messages may have been taken from this worker."""

    def end(self) -> None:
        """Record that the worker's block has been left."""


class Registered(Worker):
    """A worker of this process: the base of `Producer` and `Consumer`."""

    def __init__(self, database: Database, process: Process, registration: Registration) -> None:
        super().__init__(database, 0)
        self._process = process
        self._registration = registration
        self.queue: str = registration.queue
        """Name of its queue."""

    def __repr__(self) -> str:
        worker = f"worker {self.worker_id} ({self._registration.name!r})"
        return f"<tocsin.{type(self).__name__} of queue {self.queue!r}, {worker}>"

    @property
    def worker_id(self) -> int:
        """Its id in the registry."""
        return self._registration.worker_id

    @property
    def name(self) -> str:
        """Its name; made of host, process and a random part when none was given."""
        return self._registration.name or ""

    @property
    def queue_id(self) -> int:
        """Id of its queue."""
        return self._registration.queue_id

    async def _join(self) -> None:
        """Register the worker with its process."""
        await self._process.register(self._registration)

    async def _leave(self) -> None:
        """End the registration within the grace of a cleanup."""
        worker_id, token = self._registration.worker_id, self._registration.token
        if not worker_id:
            # The registration may have taken effect although it was cancelled. The
            # heartbeat finds it and ends it.
            self._process.request_heartbeat()
            return
        with warning_of_failure(
            self._database.grace,
            logger,
            "worker %r could not be unregistered, and will be declared dead: %s",
            self.name,
        ):
            await self._database.fetch(
                "select tocsin.unregister_worker(%s, %s)", [worker_id, token]
            )
        self._process.unregister(worker_id)
        self._registration.end()


R = TypeVar("R", bound=Registered)


@asynccontextmanager
async def registered(worker: R) -> AsyncIterator[R]:
    """Register the worker for as long as the block lasts.

    Raises:
        TocsinError: The registration is refused.

    Cancellation:
        The registration ends, and the worker's messages are released, however the
        block ends.
    """
    try:
        await worker._join()
        yield worker
    finally:
        await worker._leave()
