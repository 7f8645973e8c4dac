"""The store: a database with Tocsin in it, and everything that can be done there."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Unpack

import trio

from tocsin._database import install, session
from tocsin._database.caller_connection import AnyConnection
from tocsin._database.client import Connection, Database
from tocsin._database.roles import Roles
from tocsin._database.transaction_limit import TransactionLimit
from tocsin._database.verify import SchemaDifference, verify
from tocsin._jobs.flow import Flow
from tocsin._jobs.flow_graph import OnFailure
from tocsin._jobs.flows import Flows
from tocsin._jobs.jobs import Jobs
from tocsin._jobs.limit_settings import Limits
from tocsin._jobs.schedules import Schedules
from tocsin._jobs.task import Task
from tocsin._jobs.worker import JobWorker, open_worker
from tocsin._jobs.worker_options import JobWorkerOptions
from tocsin._queue.admin.dead_letters import DeadLetters
from tocsin._queue.admin.messages import Messages
from tocsin._queue.admin.queues import Queues
from tocsin._queue.admin.store_stats import StoreStats, count_store
from tocsin._queue.consuming.consumer import Consumer
from tocsin._queue.process.maintenance import MaintenanceResult, maintain
from tocsin._queue.process.process import Process
from tocsin._queue.process.reclaim import ReclaimResult, reclaim
from tocsin._queue.process.statistics import ProcessStatistics
from tocsin._queue.producing.batcher import EnqueueBatcher
from tocsin._queue.producing.enqueue_request import BatchOptions
from tocsin._queue.producing.producer import EnqueueOptions, Enqueuer, Producer
from tocsin._queue.producing.rate_limit import RateLimit
from tocsin._queue.workers.registration import registered
from tocsin._queue.workers.registry import Workers
from tocsin.driver._watch import Watch

from ._arguments import check_worker_name
from .telemetry.events import Events
from .telemetry.instruments import Telemetry


class Store:
    """A database with Tocsin in it, made by `connect`.

    Its members do not outlive that block.
    """

    queues: Queues
    """Creating, finding and pausing queues."""
    workers: Workers
    """The registry of workers, and handles to any of them by id."""
    messages: Messages
    """Looking at messages, finished or not, and changing those that wait."""
    dead_letters: DeadLetters
    """Looking at dead letters, replaying, archiving and purging them."""
    jobs: Jobs
    """Submitting jobs, looking at them and changing them."""
    flows: Flows
    """Looking at flows, cancelling and requeueing them."""
    limits: Limits
    """Looking at limits and rates, and setting their numbers."""
    schedules: Schedules
    """Setting, looking at and pausing schedules, which submit jobs by the clock."""
    events: Events
    """What this process's part of the store reports of its work."""

    def __init__(
        self,
        database: Database,
        process: Process,
        batcher: EnqueueBatcher,
        watches: Collection[Watch],
        telemetry: Telemetry,
    ) -> None:
        self._database = database
        self._process = process
        self._batcher = batcher
        self._transactions = TransactionLimit(database.pool)
        self._watches = watches
        self._telemetry = telemetry
        self.events = telemetry.events
        self.queues = Queues(database)
        self.workers = Workers(database)
        self.messages = Messages(database)
        self.dead_letters = DeadLetters(database)
        self.jobs = Jobs(database, process, batcher, telemetry)
        self.flows = Flows(database)
        self.limits = Limits(database)
        self.schedules = Schedules(database)

    def __repr__(self) -> str:
        where = f"{self._database.address}, schema {self._database.schema.name!r}"
        return f"<tocsin.{type(self).__name__} on {where}>"

    async def install(self, *, roles: bool | Roles = False) -> None:
        """Bring the schema to this version of Tocsin.

        The call is idempotent, and safe when many processes make it at once. An upgrade
        waits a quarter of a second for each lock, and is then tried again, so that
        producers and consumers go on when it meets a long transaction. A newer schema
        that serves this version is left as it is.

        Args:
            roles: Let other database roles than the schema's owner use it: those named,
                or with True the usual three. Missing ones are created, and privileges
                changed by hand are put right. Without, roles that were let in before
                stay so.

        Raises:
            SchemaNewer: The schema does not serve this version, or is newer and
                ``roles`` are given.
            SchemaBusy: Transactions that use the schema do not end for half a minute.
            PermissionDenied: The role may not create the ``roles`` (CREATEROLE).
            TocsinError: The schema holds something else.

        Cancellation:
            Changes nothing.
        """
        wanted = Roles() if roles is True else roles or None
        async with self._database.connection() as connection:
            await install.install(connection, self._database.schema, wanted)

    async def verify(self) -> tuple[SchemaDifference, ...]:
        """Return each difference between the installed schema and that of this version.

        There is none when all is well.

        Raises:
            SchemaMissing: Tocsin is not installed.
            SchemaOutdated: The schema is older than this version of Tocsin.
            SchemaNewer: The schema is newer, and does not serve this version.
            SchemaBusy: A session has a table locked for itself for half a minute.

        Cancellation:
            Changes nothing.
        """
        async with self._database.connection() as connection:
            return await verify(connection, self._database.schema)

    async def uninstall(self) -> None:
        """Drop the schema with all queues and messages.

        Raises:
            SchemaMissing: Tocsin is not installed.
            SchemaBusy: Transactions that use the schema do not end.

        Cancellation:
            Atomic.
        """
        async with self._database.connection() as connection:
            await install.uninstall(connection, self._database.schema)

    async def reclaim(self) -> ReclaimResult:
        """Declare dead processes dead, and requeue their messages.

        Messages with expired leases are requeued, too. Consumers do both automatically,
        with the next heartbeat. No process is declared dead in the first ten seconds of
        a server, in which live processes still connect again. If no process has
        registered since the start of the server, the ten seconds begin with the first
        call, so repeat the call ten seconds later.

        Raises:
            ConnectionLost: The database did not answer.

        Cancellation:
            Part of it is done: it works in short transactions.
        """
        return await reclaim(self._database)

    async def maintain(self) -> MaintenanceResult:
        """Maintain the archive's partitions, and delete expired dead letters.

        Partitions of the archive are made ahead, and dropped when their retention is
        over. Any process that consumes does this once a minute; the method is for cron,
        where none does. During another session's maintenance it does nothing.

        Raises:
            SchemaMissing: Tocsin is not installed.
            SchemaOutdated: The schema is older than this version of Tocsin.
            SchemaNewer: The schema is newer, and does not serve this version.
            ConnectionLost: The database did not answer.

        Cancellation:
            Part of it is done.
        """
        return await maintain(self._database)

    def producer(
        self, queue: str, *, name: str | None = None, rate_limit: RateLimit | None = None
    ) -> AbstractAsyncContextManager[Producer]:
        """Register a producer for as long as the block lasts.

        Args:
            name: A name in the registry; one is made up without it.
            rate_limit: How many messages the producer may enqueue in a second.

        Raises:
            QueueNotFound: The queue does not exist.
            StateTransitionError: The name is in use.
            SchemaMissing: Tocsin is not installed.
            SchemaOutdated: The schema is older than this version of Tocsin.
            SchemaNewer: The schema is newer, and does not serve this version.
            ConnectionLost: The database did not answer.

        Cancellation:
            The registration ends, as it does at any end of the block.
        """
        producer = Producer(
            self._database,
            self._process,
            self._batcher,
            queue,
            check_worker_name(name),
            rate_limit,
            self._telemetry,
        )
        return registered(producer)

    def consumer(
        self, queue: str, *, name: str | None = None
    ) -> AbstractAsyncContextManager[Consumer]:
        """Register a consumer for as long as the block lasts.

        However the block ends, what the consumer holds is released.

        Args:
            name: A name in the registry; one is made up without it.

        Raises:
            TocsinError: What `producer` raises.

        Cancellation:
            The registration ends, as it does at any end of the block.
        """
        return registered(
            Consumer(
                self._database, self._process, self._process.bell, queue, check_worker_name(name)
            )
        )

    def worker(
        self, tasks: Iterable[Task[..., Any]], **options: Unpack[JobWorkerOptions]
    ) -> AbstractAsyncContextManager[JobWorker]:
        """Register a worker that runs the jobs of these tasks.

        It has a consumer for each queue that it serves, for as long as the block lasts.
        However the block ends, the jobs that it holds are released.

        Args:
            tasks: The tasks. They are registered, so that SQL can submit them.
            options: Those of `JobWorkerOptions`.

        Raises:
            QueueNotFound: The queue of a task does not exist.
            StateTransitionError: The name is in use.
            SchemaMissing: Tocsin is not installed.
            ConnectionLost: The database did not answer.
            ModuleNotFoundError: A task runs in a process, and ``tocsin[processes]`` is
                not installed.
            ValueError: There is no task, or two have one name; a number is too small.

        Cancellation:
            The registrations end, as they do at any end of the block.
        """
        check_worker_name(options.get("name"))
        return open_worker(
            self._database,
            self._process,
            tasks,
            begin_transaction=self.transaction,
            options=options,
        )

    def flow(
        self,
        name: str,
        *,
        on_failure: OnFailure = "cancel",
        connection: AnyConnection | None = None,
    ) -> Flow:
        """Return a flow, whose block adds jobs and submits all or, if it raises, none.

        Args:
            connection: Submit in its transaction; see `Producer.enqueue`.
        """
        return Flow(self, name, on_failure=on_failure, connection=connection)

    async def produce(self, queue: str, payload: object, **options: Unpack[EnqueueOptions]) -> int:
        """Enqueue one message without registering a producer, and return its id.

        The options are those of `Producer.enqueue`.

        Raises:
            TocsinError: What `Producer.enqueue` raises.

        Cancellation:
            Atomic.
        """
        return await self._enqueuer(queue).enqueue(payload, **options)

    async def produce_many(
        self,
        queue: str,
        payloads: Iterable[object],
        *,
        connection: AnyConnection | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[int]:
        """Enqueue all of the payloads or none, without registering a producer.

        The options are those of `Producer.enqueue_many`.

        Raises:
            TocsinError: What `Producer.enqueue_many` raises.

        Cancellation:
            Atomic.
        """
        return await self._enqueuer(queue).enqueue_many(payloads, connection=connection, **options)

    def _enqueuer(self, queue: str) -> Enqueuer:
        return Enqueuer(self._database, self._batcher, queue, self._telemetry)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Check out a connection in a transaction.

        It is for your own statements, for ``connection=`` of `Producer.enqueue`, and
        for `Task.submit`.
        The transaction commits at the end of the block, and rolls back when the block
        raises. What the block sets on the connection and for its session (a role, a
        timeout, a row factory) ends with the block.

        At most ``pool_size - 1`` blocks run at a time, or one fewer than the server
        gives connections, and further blocks wait. So one connection is left for the
        calls of the block to the store, and for the extension of leases.

        Raises:
            ConnectionLost: The database did not answer.

        Cancellation:
            The transaction is rolled back.
        """
        async with (
            self._transactions,
            self._database.connection(for_user=True) as connection,
            connection.transaction(),
        ):
            await session.apply_users_limits(connection)
            connection.checked_out_by = self
            try:
                yield connection
            finally:
                connection.checked_out_by = None

    async def stats(self) -> StoreStats:
        """Count what the database has: queues, workers, messages of all processes.

        `statistics` describes only this process. The call takes for each queue what
        `Queues.metrics` takes.

        Raises:
            SchemaMissing: Tocsin is not installed.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        return await count_store(self._database)

    def statistics(self) -> ProcessStatistics:
        """Describe this process: its pool, LISTEN connection and heartbeat.

        The call sends no statement. `stats` counts what the whole store has, of all
        processes.
        """
        process = self._process
        since = min(watch.waiting_since for watch in self._watches)
        return ProcessStatistics(
            pool=self._database.pool.statistics(),
            listening=process.listener.connected,
            listen_works=process.listener.proof.works,
            notifications=process.listener.notifications,
            heartbeats=process.heartbeat.sent,
            unanswered_for=None if since == math.inf else trio.current_time() - since,
            failing_for=self._database.failing_for,
            closed_unanswered=sum(watch.dropped for watch in self._watches),
        )
