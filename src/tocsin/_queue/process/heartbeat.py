"""The heartbeat: the one periodic statement of a process, and its answer.

It goes over the LISTEN connection, and so proves end to end that this still works. A
process without such a connection sends it through the pool.

The heartbeat also finds other processes dead. A session that waited for another
process's lifeline would find that sooner, but such a wait is a statement under way, and
its snapshot would hold back vacuum for as long as that process lives.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from tocsin._database.client import Connection, Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin.telemetry.events import WorkerStateChanged

from .bell import Bell
from .membership import LocalWorker, Membership, ProcessRegistration
from .waits import Waits

logger = logging.getLogger("tocsin.process")


@attrs.frozen
class ProcessGone:
    """This process is not registered any more: it has been declared dead."""


@attrs.frozen
class HeartbeatDue:
    """The next heartbeat is due sooner than usual."""

    due_in: float
    """Seconds until then."""


@attrs.frozen
class MaintenanceDue:
    """This process is to do the maintenance now."""


@attrs.frozen
class WorkerState:
    """A worker is registered for this process."""

    worker_id: int
    """Id of the worker."""
    registration: int
    """Token of the registration."""
    status: str
    """State of the worker."""
    grace: float | None
    """Seconds for which the handlers of an interrupted worker may run.

    None: until they end.
    """


@attrs.frozen
class QueueDue:
    """A queue has a message that is or becomes due."""

    queue_id: int
    """Id of the queue."""
    due_in: float
    """Seconds until the message is due; 0: now."""


HeartbeatEvent: TypeAlias = ProcessGone | HeartbeatDue | MaintenanceDue | WorkerState | QueueDue

_HEARTBEAT = (
    "select kind, worker_id, registration, status, grace, queue_id, due_in"
    " from tocsin.heartbeat(%s, %s::integer[], %s)"
)


def read_event(
    kind: str,
    worker_id: int,
    registration: int,
    status: str,
    grace: float | None,
    queue_id: int,
    due_in: float,
) -> HeartbeatEvent:
    """Return what a row of ``tocsin.heartbeat`` says."""
    match kind:
        case "dead":
            return ProcessGone()
        case "heartbeat":
            return HeartbeatDue(due_in)
        case "maintenance":
            return MaintenanceDue()
        case "worker":
            return WorkerState(worker_id, registration, status, grace)
        case "queue":
            return QueueDue(queue_id, due_in)
    raise AssertionError(f"the schema sent an unknown row of a heartbeat: {kind}")


class Schedule:
    """The time of the next heartbeat."""

    def __init__(self, process: ProcessRegistration, interval: float) -> None:
        self.interval = interval
        """Seconds between two heartbeats."""
        self._process = process
        self._begun_at = -math.inf
        self._requested_at = math.inf
        self._wait = trio.CancelScope()

    @property
    def due_at(self) -> float:
        """When the next heartbeat is due (`trio.current_time`)."""
        if self._process.id is None:
            return math.inf
        last = max(self._begun_at, self._process.registered_at)
        return min(self._requested_at, last + self.interval)

    def begin(self) -> None:
        """Record that a heartbeat begins. A request from then on asks for another."""
        self._begun_at = trio.current_time()
        self._requested_at = math.inf

    def request(self, due_in: float = 0.0) -> None:
        """Have the next heartbeat due in this many seconds, or sooner."""
        if self._process.id is not None:
            self._requested_at = min(self._requested_at, trio.current_time() + due_in)
            self._wait.deadline = self.due_at

    async def wait(self) -> None:
        """Wait until the next heartbeat is due, which a request may bring forward.

        Cancellation:
            Changes nothing.
        """
        with trio.CancelScope(deadline=self.due_at) as self._wait:
            await trio.sleep_forever()


class Heartbeat:
    """The heartbeat of this process."""

    def __init__(
        self,
        database: Database,
        schedule: Schedule,
        membership: Membership,
        bell: Bell,
        waits: Waits,
        maintain: Callable[[], None],
    ) -> None:
        self.sent: int = 0
        """How many heartbeats have been sent."""
        self.schedule = schedule
        self._database = database
        self._membership = membership
        self._bell = bell
        self._waits = waits
        self._maintain = maintain
        self._statuses: dict[tuple[int, int], str] = {}

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Send the heartbeat through the pool whenever it is due.

        It returns when the process is declared dead.
        """
        while not self._membership.declared_dead:
            try:
                await self._membership.detach_if_needed()
                await self.schedule.wait()
                await self.send(None)
            except TRANSIENT as lost:
                logger.debug("no heartbeat: %s", lost)
                await trio.sleep(self.schedule.interval / 2)

    async def send(self, connection: Connection | None) -> None:
        """Send a heartbeat on this connection or through the pool; act on its answer.

        Raises:
            ConnectionLost: There was no answer.

        Cancellation:
            The heartbeat has been sent or not, and is due at once.
        """
        self.schedule.begin()
        try:
            # Otherwise the LISTEN connection may be the only one that works.
            able = connection is None or await self._pool_works()
            workers = {(w.worker_id, w.token): w for w in self._membership.workers.values()}
            rows = await self._database.fetch(
                _HEARTBEAT,
                [self._membership.process.id, self._waits.locks.queues_to_report(), able],
                on=connection,
            )
        except BaseException:
            self.schedule.request()
            raise
        self.sent += 1
        self._waits.outcomes.wake_all()
        for row in rows:
            await self._handle(read_event(*row), workers, connection)
        if not self._membership.declared_dead:
            self._report_gone(workers)
        present = {(w.worker_id, w.token) for w in self._membership.workers.values()}
        self._statuses = {key: s for key, s in self._statuses.items() if key in present}

    async def _pool_works(self) -> bool:
        """Return whether the pool has not failed for longer than a heartbeat.

        A process whose consumers wait sends nothing through the pool, so a failure is
        followed by a trial.
        """
        interval = self.schedule.interval
        if (self._database.failing_for or 0) > interval:
            with trio.move_on_after(interval):
                try:
                    await self._database.fetch("select")
                except TRANSIENT as lost:
                    logger.debug("the pool does not work: %s", lost)
        return (self._database.failing_for or 0) <= interval

    async def _handle(
        self,
        event: HeartbeatEvent,
        workers: dict[tuple[int, int], LocalWorker],
        connection: Connection | None,
    ) -> None:
        match event:
            case ProcessGone():
                logger.warning(
                    "process %d was declared dead; registering again", self._membership.process.id
                )
                self._membership.mark_dead()
            case HeartbeatDue(due_in):
                self.schedule.request(due_in)
            case MaintenanceDue():
                self._maintain()
            case QueueDue(queue_id, 0):
                self._bell.ring(queue_id)
            case QueueDue(queue_id, due_in):
                self._bell.wake_within(queue_id, due_in)
            case WorkerState(worker_id, registration, status, grace):
                worker = workers.pop((worker_id, registration), None)
                if worker is not None:
                    self._report_status(worker, status)
                    worker.on_worker_status(status, grace)
                elif status != "stopped" and self._is_abandoned(worker_id):
                    await self._database.fetch(
                        "select tocsin.unregister_worker(%s, %s)",
                        [worker_id, registration],
                        on=connection,
                    )

    def _is_abandoned(self, worker_id: int) -> bool:
        """Return whether a registration has happened although it was cancelled."""
        registering = self._membership.registering.locked()
        return not registering and worker_id not in self._membership.workers

    def _report_gone(self, workers: dict[tuple[int, int], LocalWorker]) -> None:
        """Tell workers that the answer omits that their registration has ended."""
        for (worker_id, registration), worker in workers.items():
            if worker_id in self._membership.workers and worker.token == registration:
                self._report_status(worker, "gone")
                worker.on_worker_status("gone", None)

    def _report_status(self, worker: LocalWorker, status: str) -> None:
        key = worker.worker_id, worker.token
        changed = self._statuses.get(key, "ready") != status
        self._statuses[key] = status
        if changed and self._bell.events.wants(WorkerStateChanged):
            self._bell.events.emit(
                WorkerStateChanged(queue=worker.queue, worker_id=worker.worker_id, status=status)
            )
