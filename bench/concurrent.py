"""The rate of inserts, one message per transaction, while the consumer is busy.

Thirty-two connections insert. The floor is the same inserts with the table's triggers
disabled, so the ratio is the cost of the bell. The consumer's only handler runs all the
time, so the inserts have the machine to themselves. ``draining``: the consumer claims
and archives a backlog at the same time. ``always``: the queue notifies on each insert,
with the same consumer. ``enqueue``: ``select tocsin.enqueue(...)`` instead of a bare
INSERT shows the cost of the checks. ``driver``: an empty statement shows that the load
(``driver.py``) could be larger.

Each way has a separate database, and the ways take turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import NoReturn

import attrs
import psycopg
import trio

import tocsin

from . import backlog, draining
from .child import child_process, report, until_idle
from .driver import PROCESSES, Driver, driving
from .frame import Bench, execute
from .results import Result

QUEUE = "concurrent"
TARGET = 1 / 0.7
"""Maximum ratio of the floor to the rate."""
INSERT = f"{backlog.INSERT}'{QUEUE}'"
ENQUEUE = f"select tocsin.enqueue('{QUEUE}', '{{\"n\": 1}}')"
SILENT = b"alter table tocsin.messages disable trigger user"


@attrs.frozen
class Way:
    """One way to insert."""

    dsn: str
    """Connection string of its database."""
    statement: str
    """The statement of each transaction."""


async def measure(bench: Bench) -> list[Result]:
    """Measure transactions per second."""
    connections, turns, seconds = (
        bench.pick(32, 32, 4),
        bench.pick(5, 1, 1),
        bench.pick(2.0, 1.0, 0.2),
    )
    backlogged = bench.pick(400_000, 20_000, 1000)
    rates: dict[str, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        driver = await enter(driving())
        busy, silenced = (
            await enter(_queue_with_consumer(bench)),
            await enter(_queue_with_consumer(bench)),
        )
        await execute(silenced, SILENT)
        ways = {
            "busy": Way(busy, INSERT),
            "enqueue": Way(busy, ENQUEUE),
            "silent": Way(silenced, INSERT),
            "driver": Way(silenced, "select 1"),
        }
        always = await _queue_that_always_notifies(stack, bench)
        if always is not None:
            ways["always"] = Way(always, INSERT)
        for _ in range(turns):
            for name, way in ways.items():
                rates[name].append(await driver.load(way.dsn, connections, seconds, way.statement))
        for _ in range(bench.pick(3, 1, 1)):
            for name in ("draining", "draining.silent"):
                rates[name].append(
                    await _load_while_draining(
                        bench, driver, backlogged, connections, seconds, silent=name != "draining"
                    )
                )
    settings = {
        "connections": connections,
        "turns": turns,
        "seconds": seconds,
        "driver_processes": PROCESSES,
    }
    silent, empty = rates.pop("silent"), rates.pop("driver")
    silent_draining = rates.pop("draining.silent")
    results = [
        Result(
            f"enqueue_concurrent.{name}" if name != "busy" else "enqueue_concurrent",
            median(own),
            "/s",
            median(silent_draining if name == "draining" else silent),
            settings | ({"target_ratio": TARGET} if name in ("busy", "draining") else {}),
        )
        for name, own in rates.items()
    ]
    return [*results, Result("enqueue_concurrent.driver", median(empty), "/s", None, settings)]


@asynccontextmanager
async def _queue_with_consumer(
    bench: Bench, create: bytes = b"select tocsin.create_queue(%s)"
) -> AsyncIterator[str]:
    async with bench.store_database() as dsn:
        await execute(dsn, create, QUEUE)
        async with child_process(be_busy, dsn):
            yield dsn


async def _queue_that_always_notifies(stack: AsyncExitStack, bench: Bench) -> str | None:
    create = b"select tocsin.create_queue(%s, notify => 'always')"
    try:
        return await stack.enter_async_context(_queue_with_consumer(bench, create))
    except psycopg.errors.UndefinedFunction:
        bench.note("enqueue_concurrent.always is left out: queues have no such setting here")
        return None


async def _load_while_draining(
    bench: Bench, driver: Driver, messages: int, connections: int, seconds: float, *, silent: bool
) -> float:
    async with bench.store_database(QUEUE) as dsn:
        await backlog.fill(dsn, QUEUE, messages)
        if silent:
            await execute(dsn, SILENT)
        async with child_process(
            draining.handle, dsn, messages * 10, 600, QUEUE, 100, 0
        ) as consumer:
            await consumer.order("go")
            return await driver.load(dsn, connections, seconds, INSERT)


async def be_busy(dsn: str) -> NoReturn:
    """Consume with one handler that never ends."""
    at_work = trio.Event()

    async def handle(message: tocsin.Message) -> None:
        at_work.set()
        await trio.sleep_forever()

    async with (
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(consumer.handle, handle)
        await store.produce(QUEUE, None)
        await at_work.wait()
        await until_idle(store)
        report("ready")
        await trio.sleep_forever()
