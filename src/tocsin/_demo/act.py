"""The course of the demo, from an empty schema to the checked outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._connect import connect
from tocsin._demo import wakeup
from tocsin._queue.consuming.consumer import Consumer
from tocsin._store import Store
from tocsin.errors import Suspended

from .tables import QUEUE_SCHEMA, open_tables
from .view import Report, View
from .work import CONCURRENCY, QUEUE, Progress, enqueue, work

NORTH, SOUTH = "north", "south"


async def perform(dsn: str, root: Path, paths: Sequence[str], view: View) -> Report:
    """Run the demo in this database, and return what came of it.

    Raises:
        TocsinError: Another demo is running in the database, or the work failed.
        psycopg.Error: A statement of the demo's own failed.

    Cancellation:
        The schemas of the demo stay until the next demo drops them. Nothing runs on.
    """
    async with (
        connect(dsn, schema=QUEUE_SCHEMA, pool_size=2 * CONCURRENCY + 4) as store,
        open_tables(dsn) as tables,
    ):
        await store.install()
        delays: list[float] = []
        async with view.bars(wakeup.MESSAGES, {"wake-up": delays.__len__}):
            measured = await wakeup.measure(store, dsn, delays)
        view.say(
            "wake-up",
            f"{measured.messages} single messages from another process, awake after"
            f" {measured.p50:.2f} ms (median)",
        )

        began = trio.current_time()
        await enqueue(store, paths)
        view.say(
            "enqueue",
            f"{len(paths):,} messages in one transaction, in {trio.current_time() - began:.2f} s",
        )

        began = trio.current_time()
        await _share_the_work(store, root, len(paths), view)
        seconds = trio.current_time() - began
        return Report(await tables.check(), await tables.handled(QUEUE), measured, seconds)


async def _share_the_work(store: Store, root: Path, total: int, view: View) -> None:
    progress = Progress(total)
    finished = progress.finished

    async def run(consumer: Consumer) -> None:
        try:
            await work(store, consumer, root, progress)
        except Suspended as suspended:
            done = f"{suspended.handled:,} handled, {suspended.released} released"
            view.say(
                str(consumer.name),
                f"{suspended.reason} at {finished.total():,} of {total:,} files: {done}",
            )

    async with (
        store.consumer(QUEUE, name=NORTH) as north,
        store.consumer(QUEUE, name=SOUTH) as south,
        view.bars(
            total,
            {
                "files": finished.total,
                NORTH: lambda: finished[NORTH],
                SOUTH: lambda: finished[SOUTH],
            },
        ),
        open_nursery_bare() as nursery,
    ):
        for consumer in (north, south):
            nursery.start_soon(run, consumer)
        await progress.wait(-(-total // 3))
        await north.interrupt()
        await progress.wait(total)
        await south.interrupt()
