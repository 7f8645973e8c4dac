"""Run Chancy with its asyncio executor, concurrency 500 and its default plugins.

Chancy polls again as soon as a job ends (``eager_polling``), takes as many jobs as its
concurrency allows, and batches the updates of finished jobs. A job is found by its
import path, so a variable of this module counts the calls. The updates are written once
a second by default. Here ``send_outgoing_interval`` is 10 ms, so that no consumer waits
for them.
"""

from __future__ import annotations

import psycopg
from chancy import Chancy, Queue, Worker, job

from . import Handled, Peer

CONCURRENCY = 500
INTERVAL = 0.01
_handled: list[Handled] = []


@job(queue="peer")
async def handle(*, n: int) -> None:
    _handled[0]()


async def fill(dsn: str, messages: int) -> None:
    async with Chancy(dsn) as app:
        await app.migrate()
        # Each worker also serves the queue "default", by default with a pool of
        # processes.
        await app.declare(Queue("default", executor=Chancy.Executor.Async))
        await app.declare(
            Queue(
                "peer",
                concurrency=CONCURRENCY,
                executor=Chancy.Executor.Async,
                eager_polling=True,
                polling_interval=1,
            ),
            upsert=True,
        )
        async for _ in app.push_many(
            [handle.job.with_kwargs(n=number) for number in range(messages)]
        ):
            pass


async def work(dsn: str, size: int, handled: Handled) -> None:
    _handled.append(handled)
    async with Chancy(dsn) as app:
        worker = Worker(app, register_signal_handlers=False)
        worker.send_outgoing_interval = INTERVAL
        async with worker:
            await worker.wait_for_shutdown()


async def settled(dsn: str) -> int:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (
            await connection.execute("select count(*) from chancy_jobs where state = 'succeeded'")
        ).fetchone()
    return int(row[0]) if row else 0


PEER = Peer(
    {
        "executor": "async",
        "concurrency": CONCURRENCY,
        "eager_polling": True,
        "send_outgoing_interval": INTERVAL,
    },
    fill,
    work,
    settled,
)
