"""The lateness of a delayed message on an otherwise idle queue.

No other message wakes the consumer when the message is due. Lateness is the time at the
handler's first line minus the due time in the message's row. The first time is from
this host's clock and the second from the server's, so the server must be on this host.
The floor is a blocking process that sleeps until its table's next row is due and then
deletes it.
"""

from __future__ import annotations

import time
from typing import NoReturn

import trio

import tocsin

from . import floor
from .child import child_process, report, until_idle
from .frame import Bench, execute
from .results import Result, percentile

QUEUE = "delayed"
IN_TURN = 10
"""Number of delayed messages in a turn, before the turn of the floor."""
FIRST, BETWEEN = 0.3, 0.097
"""Delay of the first message of a turn, and the time between two messages, in
seconds."""
TARGET = 50.0
"""Maximum lateness of a message, in milliseconds."""


async def measure(bench: Bench) -> list[Result]:
    """Measure the median and the maximum lateness, in ms."""
    late, floors = list[float](), list[float]()
    async with (
        bench.bare_database(floor.TABLE) as bare,
        bench.store_database(QUEUE) as dsn,
        tocsin.connect(dsn) as store,
        child_process(consume, dsn) as consumer,
        child_process(floor.claim_when_due, bare) as floor_child,
    ):
        count = bench.pick(IN_TURN, IN_TURN, 2)
        delays = [FIRST + BETWEEN * number for number in range(count)]
        for _ in range(bench.pick(10, 1, 1)):
            for delay in delays:
                await store.produce(QUEUE, None, delay=delay)
            due = dict(
                await execute(
                    dsn, b"select id, extract(epoch from due)::float8 from tocsin.messages"
                )
            )
            for _ in delays:
                message_id, now = await consumer.receive("handled")
                late.append((float(now) - due[int(message_id)]) * 1e3)
            await execute(
                bare,
                b"insert into messages (due) select clock_timestamp() + make_interval(secs => s)"
                b" from unnest(%s::float8[]) s",
                delays,
            )
            for _ in delays:
                await floor_child.order("go")
                floors.append(await floor_child.receive_number("handled"))
    settings = {"samples": len(late), "target_value": TARGET}
    return [
        Result("delayed.p50", percentile(late, 50), "ms", percentile(floors, 50), settings),
        Result("delayed.max", max(late), "ms", None, settings),
    ]


async def consume(dsn: str) -> NoReturn:
    """Handle messages, and report the time of each one (seconds since 1970)."""

    async def handle(message: tocsin.Message) -> None:
        now = time.time()
        report("handled", message.id, now)

    async with (
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(consumer.handle, handle)
        await until_idle(store)
        report("ready")
        await trio.sleep_forever()
