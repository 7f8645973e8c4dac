"""Run Procrastinate with its async worker and concurrency 100.

The pool has as many connections as the worker can use. Procrastinate claims and
finishes jobs one by one. It keeps finished jobs, as Tocsin does.
"""

from __future__ import annotations

from typing import Any

import procrastinate
import psycopg

from . import Handled, Peer

CONCURRENCY = 100
POOL = 20


def _app(
    dsn: str, handled: Handled | None = None
) -> tuple[procrastinate.App, procrastinate.tasks.Task[[int], Any, [int]]]:
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=POOL, max_size=POOL)
    )

    @app.task(name="peer", queue="peer")
    async def handle(n: int) -> None:
        if handled is not None:
            handled()

    return app, handle


async def fill(dsn: str, messages: int) -> None:
    app, task = _app(dsn)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for start in range(0, messages, 1000):
            jobs: list[dict[str, Any]] = [
                {"n": number} for number in range(start, min(start + 1000, messages))
            ]
            await task.batch_defer_async(*jobs)


async def work(dsn: str, size: int, handled: Handled) -> None:
    app, _ = _app(dsn, handled)
    async with app.open_async():
        await app.run_worker_async(
            queues=["peer"], concurrency=CONCURRENCY, wait=False, install_signal_handlers=False
        )


async def settled(dsn: str) -> int:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (
            await connection.execute(
                "select count(*) from procrastinate_jobs where status = 'succeeded'"
            )
        ).fetchone()
    return int(row[0]) if row else 0


PEER = Peer({"concurrency": CONCURRENCY, "pool": POOL, "delete_jobs": "never"}, fill, work, settled)
