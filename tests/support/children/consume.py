"""A process that consumes: prints what it does, one line each.

usage: consume.py DSN QUEUE NAME [go|hold|tell|wait]

go: done at once; hold: each message without end; tell: the same, and says when it is
cancelled; wait: until there is a queue called "go on".
"""

from __future__ import annotations

import sys

import trio

import tocsin


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the test hears of it


async def main(*arguments: str) -> None:
    dsn, queue, name, mode = arguments

    async def handle(message: tocsin.Message) -> None:
        say("handling", message.id)
        try:
            if mode in ("hold", "tell"):
                await trio.sleep_forever()
            while mode == "wait" and not await store.queues.exists("go on"):
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            if mode == "tell":
                say("cancelled", message.id)
            raise
        if mode == "wait":
            say("handled", message.id)

    async with tocsin.connect(dsn) as store, store.consumer(queue, name=name) as consumer:
        say("worker", consumer.worker_id)
        try:
            await consumer.handle(handle, concurrency=4)
        except tocsin.Suspended as suspended:
            say("suspended", suspended.reason)


trio.run(main, *sys.argv[1:])
