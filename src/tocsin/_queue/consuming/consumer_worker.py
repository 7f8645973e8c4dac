"""The consumer as a worker: its registration, and its commands."""

from __future__ import annotations

from collections.abc import Sequence

from tocsin._database.client import Database
from tocsin._durations import Duration, to_seconds
from tocsin._queue.message import Source
from tocsin._queue.process.bell import Bell
from tocsin._queue.process.process import Process
from tocsin._queue.workers.registration import Registered, Registration
from tocsin._queue.workers.worker_handle import WorkerHandle
from tocsin.errors import ConnectionLost

from . import draining
from .consumer_state import ConsumerState
from .lease_keeper import wait_empty
from .parts import make_parts


class ConsumerRegistration(Registration):
    """A consumer's place in the registry; passes on what the registry says."""

    def __init__(
        self,
        database: Database,
        process: Process,
        bell: Bell,
        queue: str,
        name: str | None,
        tasks: Sequence[str] | None = None,
    ) -> None:
        super().__init__(database, "consumer", queue, name, tasks)
        self.parts = make_parts(database, process, self)
        self.state = ConsumerState(self.parts)

    @property
    def listens_to(self) -> tuple[str, int]:
        return self.current.channel, self.queue_id

    async def register(self, process_id: int) -> None:
        """Register the worker: see `Registration.register`.

        When it is registered again, the process was declared dead and the leases are
        gone.
        """
        await super().register(process_id)
        parts = self.parts
        parts.claimer.begin(Source(self.queue, self.queue_id, self.worker_id, parts.settler))
        draining.add_consumer(self.state)
        if self.state.run is not None:
            await parts.keeper.refresh()
            self.state.on_worker_status(self.current.status, None)

    def on_worker_status(self, status: str, grace: float | None) -> None:
        self.state.on_worker_status(status, grace)

    def on_leases_revoked(self) -> None:
        self.state.on_leases_revoked()

    def end(self) -> None:
        """End the registration, and all leases with it: see `Registration.end`."""
        leases = self.parts.leases
        leases.drop_settled(leases.messages())
        draining.remove_consumer(self.state)


class ConsumerWorker(Registered, WorkerHandle):
    """A consumer of this process, as a worker."""

    def __init__(
        self,
        database: Database,
        process: Process,
        bell: Bell,
        queue: str,
        name: str | None,
        tasks: Sequence[str] | None = None,
    ) -> None:
        registration = ConsumerRegistration(database, process, bell, queue, name, tasks)
        super().__init__(database, process, registration)
        self._parts = registration.parts
        self._state = registration.state

    async def interrupt(self, *, grace: Duration | None = None) -> None:
        """End the run: see `WorkerHandle.interrupt`.

        While the database is away, the run ends all the same and `ConnectionLost` is
        raised.

        Args:
            grace: Seconds after which handlers still running are cancelled.

        Raises:
            StateTransitionError: The worker is suspended or stopped.
            WorkerNotFound: The worker does not exist.
            ConnectionLost: The database did not answer.

        Cancellation:
            Atomic.
        """
        seconds = None if grace is None else to_seconds(grace, "grace", zero=True)
        try:
            await super().interrupt(grace=grace)
        except ConnectionLost:
            self._state.end_run(seconds)
            raise
        self._state.end_run(seconds)

    async def suspend(self, *, release: bool = False, drain: bool = False) -> None:
        """Take no more messages: see `WorkerHandle.suspend`.

        Args:
            release: Release the messages that the worker holds.
            drain: Let the handlers finish, and return when nothing is held any more.

        Raises:
            PendingMessages: The worker holds messages, and neither was asked for.
            StateTransitionError: The worker may not be suspended.
            WorkerNotFound: The worker does not exist.

        Cancellation:
            Atomic. Cancelled while it waits for the handlers, the call has suspended
            the worker.
        """
        await super().suspend(release=release, drain=drain)
        self._state.on_worker_status("suspended", None)
        if drain:
            await wait_empty(self._parts.leases, self._parts.keeper)

    async def resume(self) -> None:
        """End a suspension.

        Raises:
            StateTransitionError: The worker is not suspended.
            WorkerNotFound: The worker does not exist.

        Cancellation:
            Atomic.
        """
        await super().resume()
        self._state.on_worker_status("ready", None)

    async def stop(self) -> int:
        """Stop for good, whatever the state; return the number of messages released.

        Raises:
            WorkerNotFound: The worker does not exist.

        Cancellation:
            Atomic.
        """
        released = await super().stop()
        self._state.on_worker_status("stopped", None)
        return released
