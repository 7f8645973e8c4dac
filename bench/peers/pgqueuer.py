"""Run PgQueuer with asyncpg and large batches.

asyncpg is the driver that PgQueuer recommends, and its documentation recommends large
batches for throughput. A finished message is an entry "successful" of the log table.
PgQueuer writes these entries in batches.
"""

from __future__ import annotations

import json

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.domain.types import QueueExecutionMode
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from . import Handled, Peer, url

BATCH = 500


async def fill(dsn: str, messages: int) -> None:
    connection = await asyncpg.connect(url(dsn))
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for start in range(0, messages, 5000):
        payloads: list[bytes | None] = [
            json.dumps({"n": number}).encode()
            for number in range(start, min(start + 5000, messages))
        ]
        await queries.enqueue(["peer"] * len(payloads), payloads, [0] * len(payloads))
    await connection.close()


async def work(dsn: str, size: int, handled: Handled) -> None:
    app = PgQueuer(AsyncpgDriver(await asyncpg.connect(url(dsn))))

    @app.entrypoint("peer")
    async def handle(job: Job) -> None:
        assert json.loads(job.payload or b"null")
        handled()

    await app.qm.run(batch_size=size or BATCH, mode=QueueExecutionMode.drain)


async def settled(dsn: str) -> int:
    connection = await asyncpg.connect(url(dsn))
    try:
        return int(
            await connection.fetchval(
                "select count(*) from pgqueuer_log where status = 'successful'"
            )
        )
    finally:
        await connection.close()


PEER = Peer({"driver": "asyncpg", "batch_size": BATCH}, fill, work, settled)
