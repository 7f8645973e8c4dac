"""Workers that run jobs for the length of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

import tocsin


@asynccontextmanager
async def working(
    store: tocsin.Store, *tasks: tocsin.Task[..., Any], **options: Any
) -> AsyncIterator[tocsin.JobWorker]:
    """Run these tasks' jobs for the length of the block; their queues are created."""
    for queue in {task.options.queue for task in tasks}:
        await store.queues.ensure(queue)

    async with store.worker(tasks, **options) as worker, trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                await worker.run(task_status=task_status)
            except tocsin.Suspended:
                return

        await nursery.start(run)
        yield worker
        await worker.interrupt()
