"""A service that installs at its start, as an older or a newer package does, and then
produces or consumes until SIGTERM. It prints what it has done.

usage: rolling.py DSN producer|consumer
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

import trio

import tocsin

DSN, ROLE = sys.argv[1:]
MESSAGES = 200


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the parent hears of it


async def produce(store: tocsin.Store) -> None:
    async with store.producer("q") as producer:
        for number in range(MESSAGES):
            payload = f"{os.getpid()}:{number}"
            await producer.enqueue(payload)
            say("sent", payload)
        await trio.sleep_forever()


async def handle(message: tocsin.Message) -> None:
    say("handled", message.id, message.read_ct)


async def consume(store: tocsin.Store) -> None:
    async with store.consumer("q") as consumer, tocsin.drain_on_signals():
        say("consumes")
        await consumer.handle(handle, concurrency=4)


async def main() -> None:
    async with tocsin.connect(DSN, heartbeat=0.5) as store:
        await store.install()
        if ROLE == "consumer":
            with suppress(tocsin.Suspended):
                await consume(store)
            return
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce, store)
                async for _ in signals:
                    nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
