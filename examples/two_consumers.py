"""Drain one queue with two consumers, and interrupt both when all messages are done.

    uv run examples/two_consumers.py [DSN]

Both runs live in one nursery, so neither can outlive the block. The event says when the
last message is done, so the program does not poll the database.
"""

import sys
from collections import Counter

import trio

import tocsin

MESSAGES = 40


async def main(dsn: str) -> None:
    done_by: Counter[str] = Counter()
    all_done = trio.Event()

    async def run(consumer: tocsin.Consumer) -> None:
        async def handle(message: tocsin.Message) -> None:
            await trio.sleep(0.01)  # the work
            done_by[str(consumer.name)] += 1
            if done_by.total() == MESSAGES:
                all_done.set()

        try:
            await consumer.handle(handle, concurrency=2)
        except tocsin.Suspended as suspended:
            print(f"{consumer.name} is {await consumer.status()}: {suspended.handled} handled")

    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("parcels")
        async with (
            store.producer("parcels") as producer,
            store.consumer("parcels", name="left") as left,
            store.consumer("parcels", name="right") as right,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(run, left)
            nursery.start_soon(run, right)
            for number in range(MESSAGES):
                await producer.enqueue({"parcel": number})
            await all_done.wait()
            await left.interrupt()
            await right.interrupt()
        print(f"{done_by.total()} messages done by {len(done_by)} consumers")


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
