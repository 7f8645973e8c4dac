"""Registration: being a worker of this process, for as long as a block lasts."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from .database import Database
from .errors import TRANSIENT, TocsinError
from .process import CLEANUP_WITHIN, Process
from .version import VERSION
from .worker import Worker

logger = logging.getLogger("tocsin")


class Registered(Worker):
    """A worker of this process: what `Producer` and `Consumer` have in common."""

    kind = "producer"

    def __init__(self, database: Database, process: Process, queue: str, name: str | None) -> None:
        super().__init__(database, 0)
        self._process = process
        self.queue = queue
        """Name of its queue."""
        self.queue_id = 0
        """Id of its queue."""
        self.name = name
        """Its name; made up of host, process and chance when none was given."""
        self.registration = 0
        """Token of its registration."""
        self._channel = ""
        self._registered_as = ""

    @property
    def listens_to(self) -> tuple[str, int] | None:
        """The channel it wants notifications from, and the queue that they ring for; None: it wants none."""
        return None

    async def register(self, process_id: int) -> None:
        """Take part in the registry as a worker of this process, at first or again. Cancelled, it is registered or not."""
        again = self._worker_id != 0
        row = await self._database.fetch_one(
            "select w.id, w.name, w.registration, w.status, q.id, q.channel "
            "from tocsin.register_worker(%s, %s, %s, %s, %s, %s, %s, %s) w cross join lateral tocsin.queue_of(w.id) q",
            [self.queue, self.kind, self.name, process_id, socket.gethostname(), os.getpid(), VERSION, again],
        )
        self._worker_id, self.name, self.registration, self._registered_as, self.queue_id, self._channel = row

    def noticed(self, status: str, grace: float | None) -> None:
        """Take note of the state that the registry says this worker is in."""


R = TypeVar("R", bound=Registered)


@asynccontextmanager
async def registered(worker: R, process: Process) -> AsyncIterator[R]:
    """Register the worker for as long as the block lasts; at its end, by whatever way, what it holds is released."""
    try:
        await process.enroll(worker)
        yield worker
    finally:
        if not worker.worker_id:
            process.look()  # the registration may have happened all the same; the heartbeat finds and ends it
        else:
            with trio.move_on_after(CLEANUP_WITHIN, shield=True) as patience:
                try:
                    await worker._database.fetch("select tocsin.unregister_worker(%s, %s)", [worker.worker_id, worker.registration])
                except (TocsinError, *TRANSIENT) as error:
                    logger.warning("worker %r is not unregistered, it will be found dead: %s", worker.name, error)
            if patience.cancelled_caught:
                logger.warning("worker %r is not unregistered, it will be found dead: no answer", worker.name)
            process.dismiss(worker.worker_id)
