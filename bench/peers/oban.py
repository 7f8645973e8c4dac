"""Run Oban for Python (3.12 and later) in its embedded mode: one queue, a limit of 500.

Only Oban's paid edition has bulk acknowledgement. Finished jobs are kept in the state
"completed".
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from oban import Job, Oban, worker
from oban.schema import install

from . import Handled, Peer

LIMIT = 500
_handled: list[Handled] = []


class Handler:
    """A handler that Oban finds by its import path.

    So a variable of this module counts the calls.
    """

    async def process(self, job: Job) -> None:
        assert job.args is not None
        _handled[0]()


handler: Any = worker(queue="peer")(Handler)


async def fill(dsn: str, messages: int) -> None:
    pool = await Oban.create_pool(dsn)
    await install(pool)
    app = Oban(pool=pool)
    for start in range(0, messages, 1000):
        await app.enqueue_many(
            [handler.new({"n": n}) for n in range(start, min(start + 1000, messages))]
        )
    await pool.close()


async def work(dsn: str, size: int, handled: Handled) -> None:
    _handled.append(handled)
    pool = await Oban.create_pool(dsn, min_size=10, max_size=10)
    async with Oban(pool=pool, queues={"peer": LIMIT}):
        await asyncio.Event().wait()


async def settled(dsn: str) -> int:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (
            await connection.execute("select count(*) from oban_jobs where state = 'completed'")
        ).fetchone()
    return int(row[0]) if row else 0


PEER = Peer({"limit": LIMIT, "pool": 10}, fill, work, settled)
