"""A worker of functions in tasks, threads and processes, which says each attempt that
begins, so that it can be killed at any time.

usage: run_jobs_anywhere.py DSN
"""

from __future__ import annotations

import sys
import time

import trio

import tocsin


def say_and_double(number: int) -> int:
    job = tocsin.current_job()
    sys.stdout.write(f"attempt {job.id} {job.attempt}\n")  # whole, also from a thread
    sys.stdout.flush()
    time.sleep(0.01 * (number % 4))
    return 2 * number


@tocsin.task(name="in_task", queue="q", max_attempts=10_000)
async def in_task(number: int) -> int:
    await trio.sleep(0.01 * (number % 4))
    return say_and_double(number)


@tocsin.task(name="in_thread", queue="q", max_attempts=10_000)
def in_thread(number: int) -> int:
    return say_and_double(number)


@tocsin.task(name="in_process", queue="q", max_attempts=10_000, runs="process")
def in_process(number: int) -> int:
    return say_and_double(number)


async def main(dsn: str) -> None:
    async with (
        tocsin.connect(dsn, heartbeat=0.1) as store,
        store.worker([in_task, in_thread, in_process], concurrency=6, processes=2) as worker,
    ):
        await worker.run()


if __name__ == "__main__":
    (DSN,) = sys.argv[1:]
    trio.run(main, DSN)
