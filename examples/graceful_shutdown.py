"""End well: let the running handlers finish after Ctrl-C or SIGTERM.

    uv run examples/graceful_shutdown.py [DSN]

After the first signal the consumer claims no more messages, so the next worker gets
them. A handler that has not finished ten seconds later is cancelled, and its message is
released. A second signal, at least a second later, cancels all handlers at once.
"""

import sys

import trio

import tocsin


async def send(message: tocsin.Message) -> None:
    """Pretend to send a letter, slowly."""
    print(f"sending letter {message.payload}", flush=True)
    await trio.sleep(1)
    print(f"sent letter {message.payload}", flush=True)


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("letters")
        async with store.producer("letters") as producer:
            await producer.enqueue_many(range(1, 11))

        async with store.consumer("letters") as consumer, tocsin.drain_on_signals(grace=10):
            print("working; stop with Ctrl-C", flush=True)
            try:
                await consumer.handle(send, concurrency=2)
            except tocsin.Suspended as suspended:
                print(f"stopped: {suspended.handled} sent, {suspended.released} released")


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
