"""Run two consumers, one after the other: A is interrupted, and B continues.

    uv run examples/handoff.py [DSN]

A message that arrives while no consumer runs waits in the queue.
"""

import sys

import trio

import tocsin


async def handle_one(store: tocsin.Store, name: str) -> None:
    """Consume a single message."""
    async with store.consumer("handoff", name=name) as consumer:

        async def handle(message: tocsin.Message) -> None:
            print(f"{name} handles {message.payload!r}")
            # The run ends after this handler has ended and its message is archived.
            await consumer.interrupt()

        try:
            await consumer.handle(handle)
        except tocsin.Suspended as suspended:
            print(f"{name} is {await consumer.status()}: {suspended}")


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("handoff")
        async with store.producer("handoff") as producer:
            await producer.enqueue("the first message")
            await handle_one(store, "A")
            await producer.enqueue("the second message")
            await handle_one(store, "B")


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
