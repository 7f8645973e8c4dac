"""A worker that runs the jobs of flows, and says each step, so that it can be killed at
any. It notes each run, with its arguments and the parents that had not ended before.

usage: run_flows.py DSN SEED
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

import tocsin

DSN, SEED = sys.argv[1:]
dice = random.Random(SEED)
NOTE = """insert into runs (job_id, early) values (%(id)s, array(
    select e.parent from tocsin.edges e where e.child = %(id)s
        and not exists (select from ended x where x.job_id = e.parent)))"""


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the test hears of it


async def begin() -> None:
    """Note the run, and fail at random unless the test has come to its end."""
    job = tocsin.current_job()
    store: tocsin.Store = job.state
    say("began", job.id)
    async with store.transaction() as connection:
        await connection.execute(NOTE.encode(), {"id": job.id})
        cursor = await connection.execute(b"select calm from phase")
        ((calm,),) = await cursor.fetchall()
    if not calm and dice.random() < 0.15:
        raise RuntimeError("at random")


@tocsin.task(name="add_up", queue="flows", max_attempts=2, retry=0)
async def add_up(number: int, values: list[int | None]) -> int:
    await begin()
    return number + sum(value or 0 for value in values)


@tocsin.task(name="settle", queue="flows", max_attempts=2, retry=0)
async def settle(number: int, value: int | None) -> int:
    """Finish the job in a transaction of its own."""
    await begin()
    job = tocsin.current_job()
    result = number + (value or 0)
    async with job.transaction():
        await job.done(result)
        say("done", job.id)
    return result


@tocsin.task(name="elsewhere", queue="other", max_attempts=2, retry=0)
async def elsewhere(number: int) -> int:
    await begin()
    return number


async def main() -> None:
    async with tocsin.connect(DSN, heartbeat=0.2) as store:

        @asynccontextmanager
        async def share_store() -> AsyncIterator[tocsin.Store]:
            yield store

        tasks: list[tocsin.Task[..., int]] = [add_up, settle, elsewhere]
        async with store.worker(tasks, concurrency=5, lifespan=share_store) as worker:
            await worker.run()


trio.run(main)
