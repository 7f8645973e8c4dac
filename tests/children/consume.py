"""A process that consumes: prints what it does, one line each, and holds each message until told to go on (or for ever).

usage: consume.py DSN QUEUE NAME [hold|go]
"""

from __future__ import annotations

import sys

import trio

import tocsin


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the test hears of it


async def main(dsn: str, queue: str, name: str, mode: str) -> None:
    async def handle(message: tocsin.Message) -> None:
        say("handling", message.id)
        if mode == "hold":
            await trio.sleep_forever()

    async with tocsin.connect(dsn) as store, store.consumer(queue, name=name) as consumer:
        say("worker", consumer.worker_id)
        try:
            await consumer.handle(handle, concurrency=4)
        except tocsin.Suspended as suspended:
            say("suspended", suspended.reason)


trio.run(main, *sys.argv[1:])
