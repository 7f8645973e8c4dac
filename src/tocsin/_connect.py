"""`connect`, which puts the parts of a store together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from tocsin import settings
from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.grace import Grace
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database import session
from tocsin._database.client import Connection, Database
from tocsin._database.connect import open_unwatched, open_watched
from tocsin._database.dsn import describe_address
from tocsin._database.schema import Schema
from tocsin._queue.process.maintenance import Maintenance
from tocsin._queue.process.process import Process
from tocsin._queue.producing.batcher import EnqueueBatcher
from tocsin.driver._watch import Watch

from ._durations import Duration
from ._store import Store
from .driver import Hosts, open_pool
from .errors import ConnectionLost
from .telemetry.instruments import Instrument, Instruments, Telemetry

RECONNECT_FOR: Final = 1.0
"""How long, in seconds, a store without any connection tries to open one before its
caller gets `ConnectionLost`.

Long enough for the server to end the session of a connection that was just closed,
which counts against its limits until then. Callers that are to outlive an outage try
again, as Tocsin's own tasks do.
"""


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

    An argument that is not given comes from the environment (``TOCSIN_DSN``,
    ``TOCSIN_POOL_SIZE`` and so on), else from the table ``[tool.tocsin]`` of a TOML
    file, else from the default: see `tocsin.settings`. (A ``listen_dsn`` from a
    weaker source than the ``dsn`` does not apply.)

    Args:
        dsn: A PostgreSQL connection string. Without one libpq's environment
            (``PGHOST`` and so on) counts.
        schema: Where Tocsin is, or is to be installed (``tocsin``).
        listen_dsn: For the LISTEN connection, when ``dsn`` leads through a pooler.
        pool_size: The most connections of the pool (8). The LISTEN connection of a
            process that consumes does not count. While a statement has no answer,
            further ones are open for a moment: one asks the server about it, and each
            run of a consumer may extend its leases on one.
        heartbeat: Interval of the one periodic statement in seconds (2). Other
            processes notice a dead one within about one and a half of it.
        instruments: Run round each handler call and each enqueue: see
            `tocsin.telemetry.Instrument`.

    Raises:
        ConfigError: A setting is wrong.
        ConnectionLost: The database did not answer.

    Cancellation:
        The connections are closed, as they are at any end of the block.
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
    listen_watch = (
        watch
        if chosen.listen_dsn is None
        else Watch(partial(open_unwatched, chosen.listen_dsn, hosts))
    )

    async def open_pooled() -> Connection:
        return await open_watched(chosen.dsn or "", hosts, address, grace, watch)

    async def open_listen_connection() -> Connection:
        return await open_watched(
            chosen.listen_dsn or chosen.dsn or "", hosts, listen_address, grace, listen_watch
        )

    async with open_pool(
        open_pooled,
        min_size=1,
        max_size=chosen.pool_size,
        reconnect_timeout=RECONNECT_FOR,
        reconnect_on=ConnectionLost,
        reset=session.reset,
    ) as pool:
        database = Database(
            pool, Schema(chosen.schema), address, grace, watch, open_pooled, telemetry.events
        )
        maintenance = Maintenance(database, telemetry.events)
        process = Process(
            database, open_listen_connection, chosen.heartbeat, maintenance.request, telemetry
        )
        async with open_nursery_bare() as nursery:
            nursery.start_soon(watch.run)
            if listen_watch is not watch:
                nursery.start_soon(listen_watch.run)
            nursery.start_soon(process.run, name="tocsin: registration, LISTEN and heartbeat")
            nursery.start_soon(maintenance.run, name="tocsin: maintenance")
            batcher = EnqueueBatcher(database, nursery)
            try:
                yield Store(database, process, batcher, {watch, listen_watch}, telemetry)
            finally:
                batcher.close()
                telemetry.events.close()
            cancel(nursery.cancel_scope, "the store is closed")
