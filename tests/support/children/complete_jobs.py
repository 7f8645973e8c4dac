"""A worker whose function writes a row and finishes its job in one transaction, and
says each step, so that it can be killed at any.

usage: complete_jobs.py DSN
"""

from __future__ import annotations

import sys
from functools import partial

import psycopg
import trio

import tocsin

(DSN,) = sys.argv[1:]
EFFECT = "insert into effects (job_id) values (%s)"


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the test hears of it


@tocsin.task(name="note", queue="q")
async def note(number: int) -> int:
    job = tocsin.current_job()
    say("began", job.id)
    async with job.transaction() as connection:
        await connection.execute(EFFECT, [job.id])
        say("wrote", job.id)
        await job.done(number)
        say("done", job.id)
    say("committed", job.id)
    return number


@tocsin.task(name="note_in_thread", queue="q")
def note_in_thread(number: int) -> int:
    job = tocsin.current_job()
    with psycopg.connect(DSN) as connection:
        connection.execute(EFFECT, [job.id])
        say("wrote", job.id)
        trio.from_thread.run(partial(job.done, number, connection=connection))
        say("done", job.id)
    say("committed", job.id)
    return number


async def main() -> None:
    async with (
        tocsin.connect(DSN, heartbeat=0.1) as store,
        store.worker([note, note_in_thread], concurrency=3) as worker,
    ):
        await worker.run()


trio.run(main)
