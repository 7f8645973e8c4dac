"""The rate of messages that are requeued: ``fail`` and ``release``.

``fail``: one process calls an async handler for each message of a backlog, with
concurrency 100, and the handler raises. The message is delayed by an hour, and its
error and traceback are kept. ``release``: ``dequeue(100)`` and ``release_many``, with
the same delay. The floor of both is one blocking connection that claims a hundred rows
and then delays them, in two statements, and keeps no error. Tocsin and the floor take
turns, each turn in a new database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from statistics import median
from typing import NoReturn

import trio

import tocsin

from . import backlog, floor
from .child import orders, report
from .draining import Drained, Tally, drain
from .frame import Bench, execute
from .results import Result

QUEUE = "returning"
BATCH, CONCURRENCY = 100, 100
FOREVER = 600.0
DELAY = 3600
"""Delay of a requeued message in seconds, so long that none is delivered twice in a
run.
"""


async def measure(bench: Bench) -> list[Result]:
    """Measure messages per second."""
    messages, rounds = bench.pick(20_000, 5_000, 300), bench.pick(3, 1, 1)
    rates: dict[str, list[float]] = {"fail": [], "release": [], "floor": []}
    for _ in range(rounds):
        for name, function in (("fail", fail), ("release", release)):
            rates[name].append((await _return_with_tocsin(bench, function, messages)).rate)
        async with bench.bare_database(floor.QUEUE_TABLES) as dsn:
            await floor.fill(dsn, messages)
            rates["floor"].append((await drain(floor.claim_and_delay, dsn, messages, FOREVER)).rate)
    floor_rate = median(rates["floor"])
    settings = {"messages": messages, "rounds": rounds}
    return [
        Result(name, median(rates[name]), "/s", floor_rate, settings)
        for name in ("fail", "release")
    ]


async def _return_with_tocsin(
    bench: Bench, function: Callable[..., object], messages: int
) -> Drained:
    async with bench.store_database(QUEUE) as dsn:
        async with tocsin.connect(dsn) as store:
            await store.queues.update(QUEUE, retry_base=DELAY, retry_jitter=0)
        await backlog.fill(dsn, QUEUE, messages)
        returned = await drain(function, dsn, messages, FOREVER)
        ((waiting,),) = await execute(
            dsn,
            b"select count(*) from tocsin.messages where read_ct = 1 and lease is not null and vt >"
            b" now()",
        )
    if waiting != messages:
        raise RuntimeError(f"{waiting} messages went back instead of {messages}")
    return returned


async def fail(dsn: str, share: str, seconds: str) -> None:
    """Fail each message of the queue once."""
    tally = Tally(int(share))

    async def handle(message: tocsin.Message) -> NoReturn:
        tally.add()
        raise ValueError("it cannot be done")

    logging.disable()  # each failure is logged, with its traceback
    async with (
        orders() as incoming,
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
    ):
        report("ready")
        await incoming.next()
        with trio.move_on_after(float(seconds)):
            try:
                await consumer.handle(handle, concurrency=CONCURRENCY, once=True)
            except tocsin.Suspended:
                tally.tell(tally.count)
                await trio.sleep_forever()


async def release(dsn: str, share: str, seconds: str) -> None:
    """Dequeue messages, a batch at a time, and release them."""
    tally = Tally(int(share))
    async with (
        orders() as incoming,
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
    ):
        report("ready")
        await incoming.next()
        with trio.move_on_after(float(seconds)):
            while messages := await consumer.dequeue(BATCH):
                tally.add(len(messages))
                await consumer.release_many(messages, delay=DELAY)
            tally.tell(tally.count)
            await trio.sleep_forever()
