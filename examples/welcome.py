"""Greet each user that has signed up.

    uv run examples/welcome.py [DSN]

The programs sign_up_* sign users up, each with another driver or library. Leave this
program running and start one of them in another terminal. As soon as its transaction
commits, this program prints `Welcome`; after a rollback it prints nothing.
"""

import sys

import trio

import tocsin


async def greet(message: tocsin.Message) -> None:
    print(f"Welcome, {message.payload['name']}!", flush=True)


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("welcome")
        async with store.transaction() as connection:
            await connection.execute("drop table if exists example_users")
            await connection.execute("create table example_users (name text primary key)")

        async with store.consumer("welcome") as consumer, tocsin.drain_on_signals(consumer):
            print("waiting; stop with Ctrl-C", flush=True)
            try:
                await consumer.handle(greet)
            except tocsin.Suspended as suspended:
                print(f"stopped: {suspended.handled} greeted")


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
