"""A consumer that settles each message together with a row of its own, and says each
step, so that it can be killed at any.

usage: settle_in_transaction.py DSN
"""

from __future__ import annotations

import sys

import psycopg
import trio

import tocsin

(DSN,) = sys.argv[1:]
EFFECT = "insert into effects (message_id) values (%s)"


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the test hears of it


async def main() -> None:
    async def handle(message: tocsin.Message) -> None:
        say("began", message.id)
        match message.payload % 3:
            case 0:
                async with store.transaction() as connection:
                    await connection.execute(EFFECT, [message.id])
                    say("wrote", message.id)
                    await message.archive(connection=connection)
                    say("settled", message.id)
            case 1:
                with psycopg.connect(DSN) as blocking:
                    blocking.execute(EFFECT, [message.id])
                    await message.archive(connection=blocking)
                    say("settled", message.id)
            case _:
                async with store.transaction() as connection:
                    await message.delete(connection=connection)
                    say("settled", message.id)
                    await connection.execute(EFFECT, [message.id])
        say("committed", message.id)

    async with tocsin.connect(DSN, heartbeat=0.1) as store, store.consumer("q") as consumer:
        await consumer.handle(handle, concurrency=3)


trio.run(main)
