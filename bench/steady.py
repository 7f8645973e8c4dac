"""Producing and consuming at half of what goes through at most, for a minute.

First the peak: one process whose producers enqueue as fast as they can, one after the
other each, and one that consumes; what the handlers got in a few seconds. Then the same
processes at half of that rate: each producer has a timetable and keeps to it, whatever
became of the message before. A message's latency counts from its time in the table to
the handler's first line, so a producer that is late is not forgiven.

``steady``: the 99th percentile of the latency; its floor is the median wake-up of an
idle consumer (``wakeup.py``), of this run. ``steady.growth``: pages of the table of
messages with its indexes at the end; the floor is what it had after two thirds. It
comes to its size with the first rounds of autovacuum.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import trio

import tocsin

from . import wakeup
from .child import orders, playing, say
from .frame import Bench, execute
from .results import Result, percentile

QUEUE = "steady"
PRODUCERS = 32
CONCURRENCY = 100
TARGET = 10.0
"""How many times the wake-up the latency may be."""
GROWTH = 1.05
"""How many times its earlier size the table may have: a page or two more say nothing.
"""


async def measure(bench: Bench) -> list[Result]:
    """Give the latency in ms, and the table's size in kB."""
    seconds, peak_seconds = bench.pick(60.0, 3.0, 0.9), bench.pick(5.0, 1.0, 0.3)
    woken = await _wake_up(bench, bench.pick(200, 50, 3))
    async with (
        bench.store_database(QUEUE) as dsn,
        playing(consume, dsn) as consumer,
        playing(produce, dsn) as producer,
    ):
        await producer.order(0, peak_seconds)
        await producer.hear("done")
        await consumer.order("report")
        handled, *_ = await consumer.hear("handled")
        rate = int(handled) / peak_seconds / 2
        await _wait_until_empty(dsn)
        await consumer.order("report")
        await consumer.hear("handled")
        await producer.order(rate, seconds)
        await trio.sleep(seconds * 2 / 3)
        early = await _size(dsn)
        (sent,) = await producer.hear("done", seconds + 30)
        late = await _size(dsn)
        await _wait_until_empty(dsn)
        await consumer.order("report")
        handled, p50, p99 = await consumer.hear("handled")
    settings = {
        "seconds": seconds,
        "producers": PRODUCERS,
        "rate": round(rate),
        "sent": int(sent),
        "handled": int(handled),
        "p50_ms": float(p50),
    }
    return [
        Result("steady", float(p99), "ms", woken, settings | {"target_ratio": TARGET}),
        Result(
            "steady.growth",
            late,
            "kB",
            early,
            settings | bench.pick({"target_ratio": GROWTH}, {}, {}),
        ),
    ]


async def _wake_up(bench: Bench, samples: int) -> float:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(bench.store_database(wakeup.QUEUE))
        consumer = await stack.enter_async_context(playing(wakeup.consume, dsn))
        producer = await stack.enter_async_context(playing(wakeup.produce, dsn))
        await wakeup.exchange(producer, consumer, min(20, samples))
        return percentile(
            [handled for handled, *_ in await wakeup.exchange(producer, consumer, samples)], 50
        )


async def _wait_until_empty(dsn: str) -> None:
    # the server sends no event when it has archived a message
    while await execute(dsn, b"select 1 from tocsin.messages limit 1"):  # noqa: ASYNC110
        await trio.sleep(0.05)


async def _size(dsn: str) -> float:
    ((kilobytes,),) = await execute(dsn, b"select pg_total_relation_size('tocsin.messages') / 1024")
    return float(kilobytes)


async def produce(dsn: str) -> None:
    """Enqueue at a rate for some seconds; each order says both.

    A rate of 0 is as fast as possible. Say how many messages that were.
    """
    async with (
        tocsin.connect(dsn, pool_size=PRODUCERS) as store,
        store.producer(QUEUE) as producer,
        orders() as incoming,
    ):
        say("ready")
        while True:
            rate, seconds = map(float, await incoming.next())
            sent = 0

            async def send(number: int, began: float, rate: float, seconds: float) -> None:
                nonlocal sent
                at = began + (number / rate if rate else 0)
                while at < began + seconds:
                    await trio.sleep(max(0, at - time.monotonic()))
                    await producer.enqueue({"sent": at})
                    sent += 1
                    at = at + PRODUCERS / rate if rate else time.monotonic()

            async with trio.open_nursery() as nursery:
                for number in range(PRODUCERS):
                    nursery.start_soon(send, number, time.monotonic(), rate, seconds)
            say("done", sent)


async def consume(dsn: str) -> None:
    """Handle messages, and say at each order how many came since the last one.

    Say also the median and 99th percentile of their latency in ms.
    """
    latencies: list[float] = []

    async def handle(message: tocsin.Message) -> None:
        latencies.append(time.monotonic() - message.payload["sent"])

    async with (
        orders() as incoming,
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: consumer.handle(handle, concurrency=CONCURRENCY))
        say("ready")
        while True:
            await incoming.next()
            ordered = sorted(latencies)
            latencies.clear()
            say(
                "handled",
                len(ordered),
                *(percentile(ordered or [0.0], percent) * 1e3 for percent in (50, 99)),
            )
