"""A consumer of the soak test. Ends after an interruption or a signal; says on standard
output what its parent has to know.

usage: soak_consumer.py DSN NAME KIND SEED
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from contextlib import suppress

import psycopg
import trio

import tocsin

DSN, NAME, KIND, SEED = sys.argv[1:]
VT = 1.0
RECORD = (
    "insert into soak.effects (message_id, lease, pid) select m.id, m.lease, %s from"
    " tocsin.messages m where m.id = %s and m.lease = %s for share of m"
)
dice = random.Random(SEED)


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the parent hears of it


def parameters(message: tocsin.Message) -> list[int]:
    return [os.getpid(), message.id, message.lease_token]


async def work(store: tocsin.Store, message: tocsin.Message) -> None:
    """Do what the message's mode asks for; write an effect under its lease."""
    match message.payload["mode"]:
        case "slow":
            await trio.sleep(dice.uniform(0.2, 2 * VT))
        case "flaky" if dice.random() < 0.5:
            raise RuntimeError("flaky")
        case "fails":
            raise RuntimeError("always")
        case "hangs" if dice.random() < 0.5:
            await trio.sleep_forever()
        case "blocks" if dice.random() < 0.3:
            # a handler that blocks the loop is part of the chaos
            time.sleep(dice.uniform(0.1, 1.5 * VT))  # noqa: ASYNC251
    async with store.transaction() as connection:
        await connection.execute(RECORD, parameters(message))
    if message.payload["mode"] == "settles":
        await message.archive()


def work_in_thread(message: tocsin.Message) -> None:
    mode = message.payload["mode"]
    if mode == "fails" or (mode == "flaky" and dice.random() < 0.5):
        raise RuntimeError(mode)
    if mode in ("slow", "blocks", "hangs"):
        time.sleep(dice.uniform(0.1, 2 * VT))
    with psycopg.connect(DSN, autocommit=True) as connection:
        connection.execute(RECORD, parameters(message))


async def consume(store: tocsin.Store, consumer: tocsin.Consumer) -> None:
    async def handle(message: tocsin.Message) -> None:
        await work(store, message)

    async def handle_batch(messages: list[tocsin.Message]) -> None:
        for message in messages:
            await work(store, message)

    match KIND:
        case "async":
            await consumer.handle(handle, concurrency=dice.randint(1, 20), timeout=3)
        case "thread":
            await consumer.handle(work_in_thread, concurrency=4, timeout=5)
        case "batches":
            await consumer.handle_batches(
                handle_batch, size=dice.randint(2, 20), concurrency=2, timeout=10
            )
        case "stream":
            async with consumer.messages() as stream:
                async for message in stream:
                    try:
                        with trio.move_on_after(3):
                            await work(store, message)
                            if message.payload["mode"] != "settles":
                                await message.archive()
                            continue
                    except (RuntimeError, tocsin.TocsinError, psycopg.OperationalError):
                        pass
                    with suppress(tocsin.TocsinError, psycopg.OperationalError):
                        await message.release(delay=0.1)
            say("silent end of the stream")
        case "hand":
            while True:
                for message in await consumer.dequeue(5, wait=0.5):
                    try:
                        with trio.fail_after(3):
                            await work(store, message)
                        if message.payload["mode"] != "settles":
                            await message.archive()
                    except (RuntimeError, trio.TooSlowError, tocsin.LeaseLost):
                        with suppress(tocsin.LeaseLost):
                            await consumer.release(message, delay=0.1)


async def main() -> None:
    while True:
        registered = False
        try:
            async with (
                tocsin.connect(DSN, heartbeat=0.5, pool_size=dice.randint(2, 8)) as store,
                store.consumer("soak", name=None if NAME == "-" else NAME) as consumer,
                tocsin.drain_on_signals(consumer, grace=dice.choice([None, 0.5])),
            ):
                registered = True
                while True:
                    # cancelled anywhere, and begun again
                    with trio.move_on_after(dice.uniform(0.05, 8)):
                        await consume(store, consumer)
        except tocsin.Suspended as suspended:
            say(
                "suspended",
                suspended.reason.replace(" ", "_"),
                suspended.handled,
                suspended.released,
            )
            if suspended.reason != "interrupted" and not suspended.reason.startswith("interrupted"):
                say("ended by", suspended.reason)
            return
        except (tocsin.ConnectionLost, tocsin.StateTransitionError, tocsin.LeaseLost) as error:
            if registered and isinstance(error, tocsin.StateTransitionError):
                return  # suspended or interrupted between two runs; a signal may be the reason
            say("again", type(error).__name__)
            await trio.sleep(0.2)


logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(message)s")
trio.run(main)
