"""Handles to workers, by id.

A worker is the registered identity of a producer or consumer.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import attrs

from tocsin._database.client import Database
from tocsin._durations import Duration, to_seconds, to_timedelta
from tocsin.errors import WorkerNotFound


class WorkerStatus(StrEnum):
    """The state of a worker.

    ``sql/functions/workers/states.sql`` draws the transitions.
    """

    READY = "ready"
    POLLING = "polling"
    INTERRUPTED = "interrupted"
    SUSPENDED = "suspended"
    STOPPED = "stopped"


@attrs.frozen
class WorkerInfo:
    """A worker as the registry has it."""

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
    """How it was stopped, as a code; None while it is not.

    ``"left"``: by itself, as its block or its process ended. ``"stopped"``,
    ``"shut_down"``: by that operation. ``"died"``: its process was declared dead.
    """
    held: int
    """How many messages it holds."""
    running_message_id: int | None = None
    """Id of the message that it has held for longest; None when it holds none."""
    running_for: float | None = None
    """For how many seconds it has held that message, and a handler has been running."""
    tasks: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(tuple)
    )
    """Names of the only tasks whose jobs it runs.

    None: it handles every message, or is a producer.
    """


def read_info(row: tuple[Any, ...]) -> WorkerInfo:
    """Return what a row of ``tocsin.list_workers`` says."""
    fields = dict(zip((f.name for f in attrs.fields(WorkerInfo)), row, strict=True))
    return WorkerInfo(**{**fields, "status": WorkerStatus(fields["status"])})


class Worker:
    """The operations of every worker.

    The database enforces which state allows which.
    """

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
        """Return what the registry says of the worker.

        Raises:
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Changes nothing.
        """
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
        """Return the state of the worker.

        Raises:
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Changes nothing.
        """
        return (await self.info()).status

    async def heartbeat(self) -> None:
        """Record a heartbeat of the worker.

        The heartbeat of its process makes this unnecessary.

        Raises:
            WorkerStopped: The worker is stopped.
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Atomic.
        """
        await self._database.fetch("select tocsin.worker_heartbeat(%s)", [self.worker_id])

    async def is_healthy(self, max_age: Duration) -> bool:
        """Return whether the worker is healthy.

        A healthy worker is not stopped, and its last heartbeat is at most ``max_age``
        seconds old, by the server's clock.

        Raises:
            WorkerNotFound: The worker does not exist, or has been purged.
            ValueError: ``max_age`` is not a duration.

        Cancellation:
            Changes nothing.
        """
        limit = to_seconds(max_age, "max_age", zero=True)
        info = await self.info()
        return info.status != WorkerStatus.STOPPED and info.heartbeat_age <= limit

    async def suspend(self, *, release: bool = False, drain: bool = False) -> None:
        """Suspend the worker: it takes no more work until `resume`.

        Args:
            release: Cancel the handlers and release the messages that it holds.
            drain: Let the handlers finish.

        Raises:
            PendingMessages: The worker holds messages, and is to do neither.
            StateTransitionError: The state of the worker does not allow it.
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Atomic.
        """
        if release and drain:
            raise ValueError("release and drain exclude each other")
        await self._database.fetch(
            "select tocsin.suspend(%s, %s, %s)", [self.worker_id, release, drain]
        )

    async def resume(self) -> None:
        """End a suspension.

        Raises:
            StateTransitionError: The worker is not suspended.
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Atomic.
        """
        await self._database.fetch("select tocsin.resume(%s)", [self.worker_id])

    async def shutdown(self) -> None:
        """Stop a suspended worker for good.

        Raises:
            PendingMessages: The worker holds messages.
            StateTransitionError: The worker is not suspended.
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Atomic.
        """
        await self._database.fetch("select tocsin.shutdown(%s)", [self.worker_id])


class WorkerHandle(Worker):
    """A handle to any worker, in any process.

    The worker's process acts at once on a call of these methods.
    """

    async def interrupt(self, *, grace: Duration | None = None) -> None:
        """End the worker's run.

        The run takes no more messages, and ends with `Suspended` when its handlers have
        ended.

        Args:
            grace: How many seconds the handlers have; then they are cancelled and
                their messages released. None: the run waits for its handlers.

        Raises:
            StateTransitionError: The worker is neither ready nor polling.
            WorkerNotFound: The worker does not exist, or has been purged.
            ValueError: ``grace`` is not a duration.

        Cancellation:
            Atomic.
        """
        seconds = to_timedelta(grace, "grace", zero=True)
        await self._database.fetch("select tocsin.interrupt(%s, %s)", [self.worker_id, seconds])

    async def stop(self) -> int:
        """Stop the worker for good, in any state; return how many messages it releases.

        Its handlers are cancelled. A worker that is to finish its messages is suspended
        with ``drain`` and then shut down. A stopped worker stays stopped.

        Raises:
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Atomic.
        """
        (released,) = await self._database.fetch_one("select tocsin.stop(%s)", [self.worker_id])
        return int(released)
