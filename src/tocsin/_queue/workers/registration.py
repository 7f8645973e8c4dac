"""Registration: being a worker of this process, for as long as a block lasts."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from tocsin._arguments import check_queue
from tocsin._database.client import Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin._queue.process.process import Process
from tocsin._version import VERSION
from tocsin.errors import TocsinError

from .handle import Worker

logger = logging.getLogger("tocsin.worker")


class Registration:
    """A worker's place in the registry, as its process keeps it: the process's
    `LocalWorker`."""

    def __init__(self, database: Database, kind: str, queue: str, name: str | None) -> None:
        self.queue = queue
        self.name: str | None = name
        self.worker_id: int = 0
        self.token: int = 0
        """What was registered under its name before has another one."""
        self.queue_id: int = 0
        self.channel: str = ""
        """Where the queue's bell rings."""
        self.status: str = ""
        """Its state when it was registered."""
        self._database = database
        self._kind = kind

    @property
    def listens_to(self) -> tuple[str, int] | None:
        """The channel it wants notifications from, and the queue that they ring for;
        None: it wants none."""
        return None

    async def register(self, process_id: int) -> None:
        """Take part in the registry as a worker of this process, at first or again.
        Cancelled, it is registered or not."""
        again = self.worker_id != 0
        row = await self._database.fetch_one(
            "select w.id, w.name, w.registration, w.status, q.id, q.channel from"
            " tocsin.register_worker(%s, %s, %s, %s, %s, %s, %s, %s) w cross join lateral"
            " tocsin.queue_of(w.id) q",
            [
                check_queue(self.queue),
                self._kind,
                self.name,
                process_id,
                socket.gethostname(),
                os.getpid(),
                VERSION,
                again,
            ],
        )
        self.worker_id, self.name, self.token, self.status, self.queue_id, self.channel = row

    def on_worker_status(self, status: str, grace: float | None) -> None:
        """Take note of the state that the registry says this worker is in; ``gone``: in
        none, it is not this registration's any more."""

    def on_leases_revoked(self) -> None:
        """Take note that messages may have been taken from this worker."""

    def end(self) -> None:
        """Take note that the worker's block has been left."""


class Registered(Worker):
    """A worker of this process: what `Producer` and `Consumer` have in common."""

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
        """Its name; made up of host, process and chance when none was given."""
        return self._registration.name or ""

    @property
    def queue_id(self) -> int:
        """Id of its queue."""
        return self._registration.queue_id


R = TypeVar("R", bound=Registered)


@asynccontextmanager
async def registered(worker: R) -> AsyncIterator[R]:
    """Register the worker for as long as the block lasts; at its end, by whatever way,
    what it holds is released."""
    process, registration = worker._process, worker._registration
    try:
        await process.register(registration)
        yield worker
    finally:
        if not registration.worker_id:
            # the registration may have happened all the same; the heartbeat finds and
            # ends it
            process.request_heartbeat()
        else:
            with worker._database.grace.scope() as patience:
                try:
                    await worker._database.fetch(
                        "select tocsin.unregister_worker(%s, %s)",
                        [registration.worker_id, registration.token],
                    )
                except (TocsinError, *TRANSIENT) as error:
                    logger.warning(
                        "worker %r is not unregistered, it will be found dead: %s",
                        worker.name,
                        error,
                    )
            if patience.cancelled_caught:
                logger.warning(
                    "worker %r is not unregistered, it will be found dead: no answer", worker.name
                )
            process.unregister(registration.worker_id)
            registration.end()
