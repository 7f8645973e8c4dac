"""The store: a database with Tocsin in it, and everything that can be done there."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final, Unpack

import trio

from tocsin import settings
from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database import install, session
from tocsin._database.caller_connection import AnyConnection
from tocsin._database.client import Connection, Database
from tocsin._database.connect import open_unwatched, open_watched
from tocsin._database.dsn import describe_address
from tocsin._database.roles import Roles
from tocsin._database.schema import Schema
from tocsin._database.transaction_limit import TransactionLimit
from tocsin._database.verify import SchemaDifference, verify
from tocsin._queue.admin.dead_letters import DeadLetters
from tocsin._queue.admin.messages import Messages
from tocsin._queue.admin.queues import Queues
from tocsin._queue.admin.store_stats import StoreStats, count_store
from tocsin._queue.consuming.consumer import Consumer
from tocsin._queue.process.maintenance import Maintenance, MaintenanceResult, maintain
from tocsin._queue.process.process import Process
from tocsin._queue.process.reclaim import ReclaimResult, reclaim
from tocsin._queue.process.statistics import ProcessStatistics
from tocsin._queue.producing.batcher import EnqueueBatcher
from tocsin._queue.producing.enqueue_request import BatchOptions
from tocsin._queue.producing.producer import EnqueueOptions, Enqueuer, Producer
from tocsin._queue.producing.rate_limit import RateLimit
from tocsin._queue.workers.registration import registered
from tocsin._queue.workers.registry import Workers
from tocsin.driver._grace import Grace
from tocsin.driver._watch import Watch

from ._arguments import check_text
from ._durations import Duration
from .driver import Hosts, open_pool
from .errors import ConnectionLost
from .telemetry.events import Events
from .telemetry.instruments import Instrument, Instruments, Telemetry

RECONNECT_FOR: Final = 1.0
"""How long, in seconds, a store without any connection tries to open one before its
caller gets `ConnectionLost`.

Long enough for the server to end the session of a connection that was just closed,
which counts against its limits until then. Callers that are to outlive an outage try
again, as Tocsin's own tasks do.
"""


class Store:
    """Made by `connect`; its members do not outlive that block."""

    queues: Queues
    """Creating, finding and pausing queues."""
    workers: Workers
    """The registry of workers, and handles to any of them by id."""
    messages: Messages
    """Looking at messages, finished or not, and changing those that wait."""
    dead_letters: DeadLetters
    """Looking at dead letters, replaying, archiving and purging them."""
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

    def __repr__(self) -> str:
        where = f"{self._database.address}, schema {self._database.schema.name!r}"
        return f"<tocsin.{type(self).__name__} on {where}>"

    async def install(self, *, roles: bool | Roles = False) -> None:
        """Bring the schema to this version of Tocsin; idempotent, and safe when many
        processes do it at once.

        With ``roles``, let other database roles than the schema's owner use it: those
        named, or with True the usual three. Missing ones are created, and what was
        changed about their privileges by hand is put right. Without, those that were
        let in before stay so.

        An upgrade waits a quarter of a second for each lock, and is then tried again,
        so that producers and consumers go on when it meets a long transaction. A newer
        schema that serves this version is left as it is. Raises `SchemaNewer` for one
        that does not serve it, and for any newer one with ``roles``; `TocsinError` when
        the schema holds something else; `SchemaBusy` when transactions that use it do
        not end for half a minute; `PermissionDenied` when the role may not create the
        ``roles`` (CREATEROLE). Cancelled, nothing has changed.
        """
        wanted = Roles() if roles is True else roles or None
        async with self._database.connection() as connection:
            await install.install(connection, self._database.schema, wanted)

    async def verify(self) -> tuple[SchemaDifference, ...]:
        """Return each difference between what is installed and what this version
        installs; none when all is well.

        Raises `SchemaMissing`, `SchemaOutdated`, `SchemaNewer`. Changes nothing,
        cancelled or not.
        """
        async with self._database.connection() as connection:
            return await verify(connection, self._database.schema)

    async def uninstall(self) -> None:
        """Drop the schema with all queues and messages. Raises `SchemaMissing`,
        `SchemaBusy`. Cancelled, it is dropped or not."""
        async with self._database.connection() as connection:
            await install.uninstall(connection, self._database.schema)

    async def reclaim(self) -> ReclaimResult:
        """Declare dead processes dead, and requeue what they and expired leases hold.

        Consumers do that automatically, with the next heartbeat. No process is declared
        dead in the first ten seconds of a server, in which live ones still connect
        again. Without a process since the start of the server, the ten seconds count
        from the first call: call it again after them.

        Raises `ConnectionLost`. It works in short transactions; cancelled, part of it
        is done.
        """
        return await reclaim(self._database)

    async def maintain(self) -> MaintenanceResult:
        """Make partitions of the archive, drop those whose retention is over, and
        delete dead letters that are kept no longer.

        Any process that consumes does it once a minute; this is for cron, where none
        does. When another session is at it, that one does it, and nothing is done here.
        Raises `SchemaMissing`, `SchemaOutdated`, `SchemaNewer`, `ConnectionLost`.
        Cancelled, part of it is done.
        """
        return await maintain(self._database)

    def producer(
        self, queue: str, *, name: str | None = None, rate_limit: RateLimit | None = None
    ) -> AbstractAsyncContextManager[Producer]:
        """Register a producer for as long as the block lasts. With a ``rate_limit`` it
        enqueues so much in a second and no more.

        Entering raises `QueueNotFound`, `StateTransitionError` when the name is in use,
        `SchemaMissing`, `SchemaOutdated`, `SchemaNewer`, `ConnectionLost`. However the
        block ends, cancelled or not, the registration ends with it.
        """
        producer = Producer(
            self._database,
            self._process,
            self._batcher,
            queue,
            _check_worker_name(name),
            rate_limit,
            self._telemetry,
        )
        return registered(producer)

    def consumer(
        self, queue: str, *, name: str | None = None
    ) -> AbstractAsyncContextManager[Consumer]:
        """Register a consumer for as long as the block lasts; raises what `producer`
        raises.

        However the block ends, cancelled or not, what it holds is released, and the
        registration ends with it.
        """
        return registered(
            Consumer(
                self._database, self._process, self._process.bell, queue, _check_worker_name(name)
            )
        )

    async def produce(self, queue: str, payload: object, **options: Unpack[EnqueueOptions]) -> int:
        """Enqueue one message without registering a producer, and return its id; the
        options are those of `Producer.enqueue`.

        Raises and, cancelled, leaves behind what that does.
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
        """Enqueue all of the payloads or none, without registering a producer; the
        options are those of `Producer.enqueue_many`.

        Raises and, cancelled, leaves behind what that does.
        """
        return await self._enqueuer(queue).enqueue_many(payloads, connection=connection, **options)

    def _enqueuer(self, queue: str) -> Enqueuer:
        return Enqueuer(self._database, self._batcher, queue, self._telemetry)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a connection in a transaction, for your own statements and as
        ``connection=`` of `Producer.enqueue`.

        Commits at the end of the block; rolls back when it raises or is cancelled. At
        most ``pool_size - 1`` blocks run at a time, or one fewer than the server gives
        connections, and further blocks wait. So one connection is left for the calls of
        the block to the store, and for the extension of leases. What the block sets on
        the connection and for its session (a role, a timeout, a row factory) ends with
        the block. Raises `ConnectionLost`.
        """
        async with (
            self._transactions,
            self._database.connection(lent=True) as connection,
            connection.transaction(),
        ):
            await session.lend(connection)
            yield connection

    async def stats(self) -> StoreStats:
        """Return what is in the whole store. Takes for each queue what `Queues.metrics`
        takes.

        Raises `SchemaMissing`, `ConnectionLost`. Cancellation leaves nothing behind.
        """
        return await count_store(self._database)

    def statistics(self) -> ProcessStatistics:
        """Return what this process's side of the store has and did."""
        process = self._process
        since = min(watch.waiting_since for watch in self._watches)
        return ProcessStatistics(
            pool=self._database.pool.statistics(),
            listening=process.connected,
            listen_works=process.listen_works,
            notifications=process.notifications,
            heartbeats=process.heartbeats,
            unanswered_for=None if since == math.inf else trio.current_time() - since,
            failing_for=self._database.failing_for,
            silenced=sum(watch.dropped for watch in self._watches),
        )


def _check_worker_name(name: str | None) -> str | None:
    if name == "":
        raise ValueError("name must not be empty")
    return None if name is None else check_text(name, "name")


@asynccontextmanager
async def connect(
    dsn: str | None = None,
    *,
    schema: str | None = None,
    listen_dsn: str | None = None,
    pool_size: int | None = None,
    heartbeat: Duration | None = None,
    instruments: Sequence[Instrument] = (),
) -> AsyncIterator[Store]:
    """Connect to a database, for as long as the block lasts.

    ``dsn`` is a PostgreSQL connection string; without one libpq's environment
    (``PGHOST`` and so on) counts. ``listen_dsn`` is for the LISTEN connection, when
    ``dsn`` leads through a pooler. ``schema`` (``tocsin``) is where Tocsin is, or is to
    be installed. At most ``pool_size`` (8) connections are open at a time, not counting
    the LISTEN connection of a process that consumes. ``heartbeat`` (2) is the interval
    of the one periodic statement in seconds: other processes notice a dead one within
    about one and a half of it. ``instruments`` run round each handler call and each
    enqueue: see `tocsin.telemetry.Instrument`.

    An argument that is not given comes from the environment (``TOCSIN_DSN``,
    ``TOCSIN_POOL_SIZE`` and so on), else from the table ``[tool.tocsin]`` of a TOML
    file, else from the default: see `tocsin.settings`. (A ``listen_dsn`` from a weaker
    source than the ``dsn`` does not apply.)

    Raises `ConfigError`, `ConnectionLost`. However the block ends, cancelled or not,
    its connections are closed.
    """
    telemetry = Telemetry(instruments=Instruments(instruments))
    chosen = settings.load(
        dsn, schema=schema, listen_dsn=listen_dsn, pool_size=pool_size, heartbeat=heartbeat
    )
    address = describe_address(chosen.dsn or "")
    listen_address = address if chosen.listen_dsn is None else describe_address(chosen.listen_dsn)

    grace = Grace()
    hosts = Hosts()
    watch = Watch(partial(open_unwatched, chosen.dsn or "", hosts))
    line_watch = (
        watch
        if chosen.listen_dsn is None
        else Watch(partial(open_unwatched, chosen.listen_dsn, hosts))
    )

    async def open_pooled() -> Connection:
        return await open_watched(chosen.dsn or "", hosts, address, grace, watch)

    async def open_line() -> Connection:
        return await open_watched(
            chosen.listen_dsn or chosen.dsn or "", hosts, listen_address, grace, line_watch
        )

    async with open_pool(
        open_pooled,
        min_size=1,
        max_size=chosen.pool_size,
        reconnect_timeout=RECONNECT_FOR,
        reconnect_on=ConnectionLost,
        reset=session.reset,
    ) as pool:
        database = Database(pool, Schema(chosen.schema), address, grace, watch, open_pooled)
        maintenance = Maintenance(database, telemetry.events)
        process = Process(database, open_line, chosen.heartbeat, maintenance.request, telemetry)
        async with open_nursery_bare() as nursery:
            nursery.start_soon(watch.run)
            if line_watch is not watch:
                nursery.start_soon(line_watch.run)
            nursery.start_soon(process.run, name="tocsin: registration, LISTEN and heartbeat")
            nursery.start_soon(maintenance.run, name="tocsin: maintenance")
            batcher = EnqueueBatcher(database, nursery)
            try:
                yield Store(database, process, batcher, {watch, line_watch}, telemetry)
            finally:
                batcher.close()
                telemetry.events.close()
            cancel(nursery.cancel_scope, "the store is closed")
