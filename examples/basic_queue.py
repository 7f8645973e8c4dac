"""Enqueue, handle, archive: the smallest complete program.

    uv run examples/basic_queue.py [DSN]

The run of the consumer continues until it is interrupted, and then ends with
`Suspended`. Here the handler of the last message interrupts the run. In a service a
signal does so (see graceful_shutdown.py).
"""

import sys

import trio

import tocsin


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("greetings", vt=30, max_deliveries=5)

        async with store.producer("greetings") as producer:
            await producer.enqueue({"to": "Ada"})
            # Messages with smaller numbers are delivered first, so this message
            # overtakes the first one.
            await producer.enqueue({"to": "Grace"}, priority=-1)
            await producer.enqueue_many([{"to": "Barbara"}, {"to": "Margaret", "last": True}])

        async with store.consumer("greetings", name="greeter") as consumer:

            async def greet(message: tocsin.Message) -> None:
                print(f"Hello, {message.payload['to']}! (delivery {message.read_ct})")
                if message.payload.get("last"):
                    await consumer.interrupt()

            try:
                await consumer.handle(greet)
            except tocsin.Suspended as suspended:
                print(
                    f"{suspended.reason}: {suspended.handled} handled, {suspended.released}"
                    " released"
                )


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
