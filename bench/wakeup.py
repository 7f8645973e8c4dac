"""From one process's enqueue statement to the first line of an idle consumer's handler in another process.

The clock (CLOCK_MONOTONIC, which all processes of a host share) is read just before the statement and travels in the message. Each message
finds everybody asleep: it is sent when the one before was archived, its consumer waits for a notification again, and a pause is over.

Two ways of sending: ``produce`` is a trio process with a `tocsin.Producer`, ``sql`` is ``select tocsin.enqueue(...)`` by blocking psycopg.
The floor is a NOTIFY by one blocking psycopg to another that waits for it; it commits nothing that must reach the disk. ``claim`` is how
far above it a queue by hand already is: insert and NOTIFY in one statement, wake, delete the row and have it returned; two commits.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import NoReturn

import trio

import tocsin

from . import floor
from .child import Child, asleep, orders, playing, say
from .frame import Bench
from .results import Result, percentile

QUEUE = "wakeup"
PAUSE = 0.005
"""Seconds between the end of one message and the start of the next."""
IN_TURN = 25
"""Messages that one way sends before it is the next one's turn."""
ENQUEUE = f"select tocsin.enqueue('{QUEUE}', jsonb_build_object('sent', %s::bigint))"
TARGETS = {50: 2.5, 99: 5.0}
"""By percentile: how many times the floor may be taken."""


async def measure(bench: Bench) -> list[Result]:
    """Give p50 and p99 of each way, in ms."""
    samples = bench.pick(500, 100, 3)
    delays: dict[str, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        notified, claimed, dsn = (
            await enter(bench.bare_database()),
            await enter(bench.bare_database(floor.TABLE)),
            await enter(bench.store_database(QUEUE)),
        )
        consumer = await enter(playing(consume, dsn))
        ways = {
            "notify": (await enter(playing(floor.send, notified, floor.NOTIFY)), await enter(playing(floor.hear, notified))),
            "claim": (
                await enter(playing(floor.send, claimed, floor.INSERT_AND_NOTIFY)),
                await enter(playing(floor.hear_and_claim, claimed)),
            ),
            "produce": (await enter(playing(produce, dsn)), consumer),
            "sql": (await enter(playing(floor.send, dsn, ENQUEUE)), consumer),
        }
        for sender, receiver in ways.values():  # statements are prepared, and plans kept, after some repetitions
            await _exchange(sender, receiver, bench.pick(20, 20, 1))
        while len(delays["sql"]) < samples:
            for name, (sender, receiver) in ways.items():
                delays[name] += await _exchange(sender, receiver, min(IN_TURN, samples))
    return [
        Result(
            f"wakeup.{name}.p{percent}",
            percentile(delays[name], percent),
            "ms",
            percentile(delays["notify"], percent),
            {"samples": len(delays[name])} | ({} if name == "claim" else {"target_ratio": target}),
        )
        for name in ("claim", "produce", "sql")
        for percent, target in TARGETS.items()
    ]


async def _exchange(sender: Child, receiver: Child, count: int) -> list[float]:
    delays = []
    for _ in range(count):
        await trio.sleep(PAUSE)
        await sender.order("go")
        delays.append(await receiver.hear_number("handled"))
    return delays


async def consume(dsn: str) -> NoReturn:
    """Handle messages, and say when asleep again how long each one took to come, in ms."""
    send, receive = trio.open_memory_channel[float](1)

    async def handle(message: tocsin.Message) -> None:
        now = time.monotonic_ns()
        await send.send((now - message.payload["sent"]) / 1e6)

    async with tocsin.connect(dsn) as store, store.consumer(QUEUE) as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(consumer.handle, handle)
        await asleep(store)
        say("ready")
        while True:
            delay = await receive.receive()
            await asleep(store)
            say("handled", delay)


async def produce(dsn: str) -> NoReturn:
    """For each order, enqueue a message."""
    async with tocsin.connect(dsn) as store, store.producer(QUEUE) as producer, orders() as incoming:
        say("ready")
        while True:
            await incoming.next()
            await producer.enqueue({"sent": time.monotonic_ns()})
