"""Tasks with limits, a flow of 1,000 of their jobs, and a worker that can be killed
when it says that a job has begun.

usage: run_limited.py DSN
"""

from __future__ import annotations

import random
import sys

import trio

import tocsin

SMTP = tocsin.Limit("smtp", 3)
"""The jobs of both queues share it."""
HOST = tocsin.Limit("host", 2, key="host")
ACCOUNT = tocsin.Limit("account", key="account", ordered=True)
RATE = tocsin.Rate("api", 1_000_000, per=10, key="host")
N = {limit.name: limit.n for limit in (SMTP, HOST, ACCOUNT)}


async def work(number: int) -> int:
    """Say that a job has begun, which then takes a moment."""
    print("began", number, flush=True)  # noqa: T201 - the test strikes by it
    await trio.sleep(random.uniform(0, 0.02))
    return number


@tocsin.task(name="start", queue="q", max_attempts=1000)
async def start() -> int:
    return await work(0)


@tocsin.task(name="send", queue="q", max_attempts=1000, limits=[SMTP, HOST])
async def send(after: int, number: int, host: str) -> int:
    return await work(after + number)


@tocsin.task(name="book", queue="r", max_attempts=1000, limits=[ACCOUNT, SMTP])
async def book(number: int, account: str) -> int:
    del account
    return await work(number)


@tocsin.task(name="ask", queue="q", max_attempts=1000, limits=[RATE, HOST])
async def ask(number: int, host: str) -> int:
    del host
    return await work(number)


@tocsin.task(name="total", queue="r", max_attempts=1000)
async def total(numbers: list[int]) -> int:
    return await work(sum(numbers))


TASKS = start, send, book, ask, total


def add_thousand(flow: tocsin.Flow) -> None:
    """Add 1,000 jobs: from one, 333 chains of three, in nine totals and their total."""
    first = flow.add(start.call())
    ends = []
    for number in range(330):
        host = f"{'abcde'[number % 5]}.example"
        sent = flow.add(send.call(first, number, host))
        booked = flow.add(book.call(sent, f"account {number % 7}"))
        ends.append(flow.add(ask.call(booked, host)))
    totals = [flow.add(total.call(ends[n::8])) for n in range(8)]
    flow.add(total.call(totals))


EXPECTED = sum(range(330))


async def main(dsn: str) -> None:
    while True:
        try:
            async with (
                tocsin.connect(dsn, heartbeat=0.2) as store,
                store.worker(TASKS, concurrency=5) as worker,
            ):
                await worker.run()
        except tocsin.ConnectionLost:  # begun while there was no server
            await trio.sleep(0.05)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
