"""A producer of the soak test: enqueues in every way there is, until SIGTERM, and says
what became of each message.

usage: soak_producer.py DSN NAME SEED Lines: ``sent CID...`` before, then ``committed
CID:ID...``, ``rolledback CID...``; nothing when it cannot be known.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import sys

import psycopg
import trio

import tocsin

DSN, NAME, SEED = sys.argv[1:]
MODES = (
    ["quick"] * 12 + ["slow"] * 2 + ["flaky"] * 2 + ["settles"] * 2 + ["fails", "hangs", "blocks"]
)
BACKLOG = 500
"""Messages that may wait before a producer does, so that what is left at the end can be
drained."""
dice = random.Random(SEED)
numbers = itertools.count()


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the parent hears of it


class RollBack(Exception):
    pass


def payloads(count: int) -> list[dict[str, str]]:
    made = [
        {"cid": f"{os.getpid()}-{SEED}-{next(numbers)}", "mode": dice.choice(MODES)}
        for _ in range(count)
    ]
    say("sent", *(p["cid"] for p in made))
    return made


def committed(made: list[dict[str, str]], ids: list[int]) -> None:
    say("committed", *(f"{p['cid']}:{i}" for p, i in zip(made, ids, strict=True)))


async def produce(store: tocsin.Store, producer: tocsin.Producer) -> None:
    priority, delay = dice.randint(-2, 2), dice.choice([None, None, 0.05, 0.5])
    match dice.randrange(6):
        case 0 | 1:
            made = payloads(1)
            committed(made, [await producer.enqueue(made[0], priority=priority, delay=delay)])
        case 2:
            made = payloads(dice.randint(1, 40))
            committed(made, await producer.enqueue_many(made, priority=priority, delay=delay))
        case 3:
            made = payloads(1)
            say("keyed", made[0]["cid"])
            committed(made, [await producer.enqueue(made[0], key=f"key-{dice.randrange(5)}")])
        case 4:
            made = payloads(3)
            try:
                async with store.transaction() as connection:
                    await producer.enqueue_many(made, connection=connection)
                    raise RollBack
            except RollBack:
                say("rolledback", *(p["cid"] for p in made))
        case 5:
            made = payloads(2)
            async with store.transaction() as connection:
                ids = [await producer.enqueue(p, connection=connection, delay=delay) for p in made]
            committed(made, ids)


async def backlog(store: tocsin.Store) -> int:
    async with store.transaction() as connection:
        cursor = await connection.execute("select count(*) from tocsin.messages")
        (count,) = await cursor.fetchone() or (0,)
        return int(count)


async def produce_forever() -> None:
    while True:
        try:
            async with (
                tocsin.connect(DSN, heartbeat=0.5, pool_size=2) as store,
                store.producer("soak") as producer,
            ):
                while True:
                    with trio.move_on_after(dice.uniform(0.01, 3)):
                        while True:
                            await produce(store, producer)
                            await trio.sleep(dice.expovariate(20))
                            # the consumers are other processes
                            while (await backlog(store)) > BACKLOG:  # noqa: ASYNC110
                                await trio.sleep(0.5)
        except (tocsin.ConnectionLost, tocsin.StateTransitionError, psycopg.OperationalError):
            await trio.sleep(0.1)


async def main() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce_forever)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(message)s")
trio.run(main)
