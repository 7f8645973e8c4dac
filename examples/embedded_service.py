"""Run a network service with its queue inside.

    uv run examples/embedded_service.py [DSN [PORT]]      # then: nc 127.0.0.1 PORT

A TCP server enqueues each line that a client sends, and a consumer handles the lines. A
client gets its answer when its line is durable, and does not wait for the work. The
server, its connections and the consumer are tasks of one nursery. When the consumer has
drained after Ctrl-C, the nursery is cancelled, and no task is left running.
"""

import sys
from collections.abc import AsyncIterator
from functools import partial

import trio

import tocsin


async def lines(stream: trio.SocketStream) -> AsyncIterator[str]:
    """Yield the lines that a client sends."""
    rest = b""
    async for chunk in stream:
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            yield line.decode(errors="replace").strip()


async def shout(message: tocsin.Message) -> None:
    print(f"{message.id}: {message.payload.upper()}", flush=True)


async def main(dsn: str, port: int) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("lines")
        async with (
            store.producer("lines") as producer,
            store.consumer("lines") as consumer,
            tocsin.drain_on_signals(),
            trio.open_nursery() as nursery,
        ):

            async def serve(stream: trio.SocketStream) -> None:
                try:
                    async for line in lines(stream):
                        message_id = await producer.enqueue(line)
                        await stream.send_all(f"queued as {message_id}\n".encode())
                except trio.BrokenResourceError:
                    print("a client went away", flush=True)

            (listener,) = await nursery.start(
                partial(trio.serve_tcp, serve, port, host="127.0.0.1")
            )
            print(f"listening on port {listener.socket.getsockname()[1]}", flush=True)
            try:
                await consumer.handle(shout, concurrency=4)
            except tocsin.Suspended as suspended:
                print(f"stopped: {suspended.handled} handled")
            nursery.cancel_scope.cancel()


dsn = sys.argv[1] if len(sys.argv) > 1 else "postgresql:///"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
trio.run(main, dsn, port)
