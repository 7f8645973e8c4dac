"""The latency at half of the maximum throughput, for a minute.

The scenario first measures the peak rate for a few seconds: the producers of one
process enqueue as fast as they can, each one message after the other, and another
process consumes. Then the same processes run at half of that rate. Each producer has a
timetable and follows it even if the message before is late. The latency of a message is
the time from its time in the timetable to the handler's first line, so it includes the
delay of a late producer.

``steady``: the 99th percentile of the latency. Its floor is the median wake-up time of
an idle consumer (``wakeup.py``) in the same run. ``steady.growth``: the size of the
table of messages with its indexes at the end. Its floor is the size after two thirds of
the time. The table reaches its final size with the first rounds of autovacuum.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import trio

import tocsin

from . import wakeup
from .child import child_process, orders, report
from .frame import Bench, execute
from .results import Result, percentile

QUEUE = "steady"
PRODUCERS = 32
CONCURRENCY = 100
TARGET = 10.0
"""Maximum ratio of the latency to the wake-up time."""
GROWTH = 1.05
"""Maximum ratio of the table's size to its earlier size; a page or two more are not
growth.
"""


async def measure(bench: Bench) -> list[Result]:
    """Measure the latency in ms, and the table's size in kB."""
    seconds, peak_seconds = bench.pick(60.0, 3.0, 0.9), bench.pick(5.0, 1.0, 0.3)
    woken = await _wake_up(bench, bench.pick(200, 50, 3))
    async with (
        bench.store_database(QUEUE) as dsn,
        child_process(consume, dsn) as consumer,
        child_process(produce, dsn) as producer,
    ):
        await producer.order(0, peak_seconds)
        await producer.receive("done")
        await consumer.order("report")
        handled, *_ = await consumer.receive("handled")
        rate = int(handled) / peak_seconds / 2
        await _wait_until_empty(dsn)
        await consumer.order("report")
        await consumer.receive("handled")
        await producer.order(rate, seconds)
        await trio.sleep(seconds * 2 / 3)
        early = await _size(dsn)
        (sent,) = await producer.receive("done", seconds + 30)
        late = await _size(dsn)
        await _wait_until_empty(dsn)
        await consumer.order("report")
        handled, p50, p99 = await consumer.receive("handled")
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
        consumer = await stack.enter_async_context(child_process(wakeup.consume, dsn))
        producer = await stack.enter_async_context(child_process(wakeup.produce, dsn))
        await wakeup.exchange(producer, consumer, min(20, samples))
        return percentile(
            [handled for handled, *_ in await wakeup.exchange(producer, consumer, samples)], 50
        )


async def _wait_until_empty(dsn: str) -> None:
    # The server sends no event when a message is archived.
    while await execute(dsn, b"select 1 from tocsin.messages limit 1"):  # noqa: ASYNC110
        await trio.sleep(0.05)


async def _size(dsn: str) -> float:
    ((kilobytes,),) = await execute(dsn, b"select pg_total_relation_size('tocsin.messages') / 1024")
    return float(kilobytes)


async def produce(dsn: str) -> None:
    """Enqueue at a rate for some seconds; each order gives both numbers.

    A rate of 0 means as fast as possible. Report the number of messages.
    """
    async with (
        tocsin.connect(dsn, pool_size=PRODUCERS) as store,
        store.producer(QUEUE) as producer,
        orders() as incoming,
    ):
        report("ready")
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
            report("done", sent)


async def consume(dsn: str) -> None:
    """Handle messages, and report at each order the number since the last order.

    Also report the median and the 99th percentile of their latency in ms.
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
        report("ready")
        while True:
            await incoming.next()
            ordered = sorted(latencies)
            latencies.clear()
            report(
                "handled",
                len(ordered),
                *(percentile(ordered or [0.0], percent) * 1e3 for percent in (50, 99)),
            )
