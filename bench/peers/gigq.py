"""Run GigQ on its SQLite file, with one thread.

More threads would only wait for the lock of the file. GigQ calls synchronous functions
and finds them by their import path, so a variable of this module counts the calls.
"""

from __future__ import annotations

import asyncio

from gigq import JobQueue, JobStatus, Worker, task

from . import Handled, Peer

_handled: list[Handled] = []


@task()
def handle(n: int) -> None:
    _handled[0]()


async def fill(path: str, messages: int) -> None:
    queue = JobQueue(path)
    for number in range(messages):
        handle.submit(queue, n=number)


async def work(path: str, size: int, handled: Handled) -> None:
    _handled.append(handled)
    await asyncio.to_thread(Worker(path).start)


async def settled(path: str) -> int:
    return int(JobQueue(path).stats()[JobStatus.COMPLETED.value])


PEER = Peer({"concurrency": 1, "database": "SQLite, WAL"}, fill, work, settled, on_file=True)
