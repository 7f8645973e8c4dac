"""Workers: the registered identity of a producer or consumer, and handles to any worker
by its id."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import attrs

from tocsin._database.client import Database
from tocsin._durations import Duration, to_seconds, to_timedelta
from tocsin.errors import WorkerNotFound


class WorkerStatus(StrEnum):
    """The state of a worker; the transitions are drawn in
    ``sql/functions/workers/states.sql``."""

    READY = "ready"
    POLLING = "polling"
    INTERRUPTED = "interrupted"
    SUSPENDED = "suspended"
    STOPPED = "stopped"


@attrs.frozen
class WorkerInfo:
    """What the registry says of a worker."""

    id: int
    """Its id; kept when a stopped worker's name is registered again."""
    name: str
    """Its name, unique among the workers of its kind on its queue."""
    kind: str
    """``"producer"`` or ``"consumer"``."""
    queue_id: int
    """Id of its queue."""
    queue: str
    """Name of its queue."""
    status: WorkerStatus
    """Its state."""
    hostname: str
    """The host it runs on."""
    pid: int
    """Its operating-system process there."""
    version: str
    """The version of Tocsin it runs."""
    started_at: datetime
    """When it was registered, by the server's clock."""
    heartbeat_at: datetime
    """Its last sign of life, by the server's clock."""
    heartbeat_age: float
    """Seconds since then, by the server's clock."""
    shutdown_at: datetime | None
    """When it was stopped; None while it is not."""
    ended: str | None
    """How that came: ``"left"`` (by itself, as its block or its process ended),
    ``"stopped"`` or ``"shut_down"`` (by that operation), or ``"died"`` (its process
    was declared dead); None while it is not."""
    held: int
    """How many messages it holds."""
    running_message_id: int | None = None
    """Id of the message that it has held for longest; None when it holds none."""
    running_for: float | None = None
    """For how many seconds it has held that: so long its handler has been running."""


def read_info(row: tuple[Any, ...]) -> WorkerInfo:
    """Return what a row of ``tocsin.list_workers`` says."""
    fields = dict(zip((f.name for f in attrs.fields(WorkerInfo)), row, strict=True))
    return WorkerInfo(**{**fields, "status": WorkerStatus(fields["status"])})


class Worker:
    """What every worker can do; the database enforces which state allows it."""

    def __init__(self, database: Database, worker_id: int) -> None:
        self._database = database
        self._worker_id = worker_id

    def __repr__(self) -> str:
        return f"<tocsin.{type(self).__name__} of worker {self.worker_id}>"

    @property
    def worker_id(self) -> int:
        """Its id in the registry."""
        return self._worker_id

    async def info(self) -> WorkerInfo:
        """Return what the registry says of it. Raises `WorkerNotFound`. Cancellation
        leaves nothing behind."""
        rows = await self._database.fetch(
            "select * from tocsin.list_workers(worker_id => %s)", [self.worker_id]
        )
        if not rows:
            raise WorkerNotFound(
                f"worker {self.worker_id} does not exist",
                "it may have been purged",
                worker_id=self.worker_id,
            )
        return read_info(rows[0])

    async def status(self) -> WorkerStatus:
        """Return its state. Raises `WorkerNotFound`. Cancellation leaves nothing
        behind."""
        return (await self.info()).status

    async def heartbeat(self) -> None:
        """Note a sign of life now. Tocsin's own heartbeat makes this unnecessary.

        Raises `WorkerStopped`, `WorkerNotFound`. Cancelled, it is noted or not.
        """
        await self._database.fetch("select tocsin.worker_heartbeat(%s)", [self.worker_id])

    async def is_healthy(self, max_age: Duration) -> bool:
        """Return whether it is not stopped and its last sign of life is at most
        ``max_age`` seconds old, by the server's clock.

        Raises `WorkerNotFound`. Cancellation leaves nothing behind.
        """
        limit = to_seconds(max_age, "max_age", zero=True)
        info = await self.info()
        return info.status != WorkerStatus.STOPPED and info.heartbeat_age <= limit

    async def suspend(self, *, release: bool = False, drain: bool = False) -> None:
        """Have it take no more work, until `resume`.

        A worker that holds messages is refused with `PendingMessages`, unless it is to
        ``release`` them (their handlers are cancelled) or to ``drain`` (their handlers
        may finish). Also raises `StateTransitionError`, `WorkerNotFound`. Cancelled, it
        has happened or it has not.
        """
        if release and drain:
            raise ValueError("release and drain exclude each other")
        await self._database.fetch(
            "select tocsin.suspend(%s, %s, %s)", [self.worker_id, release, drain]
        )

    async def resume(self) -> None:
        """End a suspension. Raises `StateTransitionError`, `WorkerNotFound`. Cancelled,
        it has happened or it has not."""
        await self._database.fetch("select tocsin.resume(%s)", [self.worker_id])

    async def shutdown(self) -> None:
        """Stop a suspended worker for good.

        Raises `PendingMessages` while it holds any, `StateTransitionError`,
        `WorkerNotFound`. Cancelled, it has happened or it has not.
        """
        await self._database.fetch("select tocsin.shutdown(%s)", [self.worker_id])


class WorkerHandle(Worker):
    """Any worker, in whichever process it runs; that process acts at once on what is
    asked here."""

    async def interrupt(self, *, grace: Duration | None = None) -> None:
        """End its run: it takes no more messages, and ends with `Suspended` when its
        handlers have ended.

        After ``grace`` seconds, if given, handlers still running are cancelled and
        their messages released. Raises `StateTransitionError`, `WorkerNotFound`.
        Cancelled, it has happened or it has not.
        """
        seconds = to_timedelta(grace, "grace", zero=True)
        await self._database.fetch("select tocsin.interrupt(%s, %s)", [self.worker_id, seconds])

    async def stop(self) -> int:
        """Stop it for good, whatever its state: its handlers are cancelled, what it
        holds is released. Return how many messages that were.

        For one that is to finish what it has begun: `suspend` with ``drain``, then
        `shutdown`. A stopped worker stays so. Raises `WorkerNotFound`. Cancelled, it
        has happened or it has not.
        """
        (released,) = await self._database.fetch_one("select tocsin.stop(%s)", [self.worker_id])
        return int(released)
