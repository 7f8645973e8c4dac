"""The cost of many idle consumers.

``herd``: the number of claims that run for one message when a hundred consumers of its
queue are idle, in ten processes. ``pg_stat_statements`` counts the claims. One claim
suffices, and is the floor. The next message is sent when no statement has run for a
while.

``herd.listeners``: eight connections insert, one message per transaction, while a
hundred consumers of other queues are idle: a hundred stores in ten processes, each with
its own LISTEN connection. The floor is the same work with a hundred plain connections
that LISTEN. The settings contain the rate without any such connection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import NoReturn

import trio

import tocsin

from . import backlog, floor
from .child import child_processes, report, until_idle
from .driver import driving
from .frame import Bench, execute
from .results import Result

QUEUE, OTHER = "herd", "elsewhere-{}"
PRODUCERS = 8
TARGET_LISTENERS = 1.1
CALM = 0.05
"""Seconds without a statement after which no further statement is expected."""
_CLAIMS = b"""
select coalesce(sum(calls) filter (where query ~ 'claim'), 0)::bigint,
    coalesce(sum(calls) filter (where query !~ 'heartbeat'), 0)::bigint
from pg_stat_statements where dbid = %s and toplevel
"""


async def measure(bench: Bench) -> list[Result]:
    """Measure claims per message, and transactions per second."""
    return [await _measure_claims(bench), await _measure_listeners(bench)]


async def _measure_claims(bench: Bench) -> Result:
    processes, each, messages = bench.pick(10, 2, 2), bench.pick(10, 10, 2), bench.pick(50, 5, 2)
    async with AsyncExitStack() as stack:
        watch = await stack.enter_async_context(
            bench.bare_database(b"create extension pg_stat_statements")
        )
        dsn = await stack.enter_async_context(bench.store_database(QUEUE))
        await stack.enter_async_context(child_processes(consume, dsn, *[[each]] * processes))
        ((database,),) = await execute(
            dsn, b"select oid from pg_database where datname = current_database()"
        )
        before = await _calm(watch, database)
        async with tocsin.connect(dsn) as store:
            for _ in range(messages):
                await store.produce(QUEUE, None)
                after = await _calm(watch, database)
        archived = await backlog.archived(dsn)
    if archived != messages:
        raise RuntimeError(f"{archived} messages were archived instead of {messages}")
    settings = {"processes": processes, "consumers": processes * each, "messages": messages}
    return Result("herd", (after - before) / messages, "claims", 1, settings)


async def _calm(watch: str, database: int) -> int:
    """Wait until no more claims run, and return how many have run."""
    seen = -1
    while True:
        ((claims, statements),) = await execute(watch, _CLAIMS, database)
        if statements == seen:
            return int(claims)
        seen = statements
        await trio.sleep(CALM)


async def _measure_listeners(bench: Bench) -> Result:
    processes, each = bench.pick(10, 2, 2), bench.pick(10, 20, 2)
    turns, seconds = bench.pick(5, 1, 1), bench.pick(2.0, 0.5, 0.2)
    queues = [OTHER.format(number) for number in range(processes * each)]
    rates: dict[str, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        driver = await stack.enter_async_context(driving())
        ways: dict[str, Callable[..., object] | None] = {
            "sleep": sleep,
            "listen": floor.listen,
            "none": None,
        }
        databases: dict[str, str] = {}
        for name, function in ways.items():
            databases[name] = await stack.enter_async_context(bench.store_database(QUEUE, *queues))
            if function is not None:
                shares = [
                    queues[number * each : (number + 1) * each] for number in range(processes)
                ]
                await stack.enter_async_context(child_processes(function, databases[name], *shares))
        for _ in range(turns):
            for name, dsn in databases.items():
                rates[name].append(
                    await driver.load(dsn, PRODUCERS, seconds, f"{backlog.INSERT}'{QUEUE}'")
                )
    settings = {
        "listeners": processes * each,
        "producers": PRODUCERS,
        "turns": turns,
        "seconds": seconds,
        "rate_without_listeners": round(median(rates["none"])),
        "target_ratio": TARGET_LISTENERS,
    }
    return Result("herd.listeners", median(rates["sleep"]), "/s", median(rates["listen"]), settings)


async def consume(dsn: str, consumers: str) -> NoReturn:
    """Run a number of consumers of one queue."""

    async def handle(message: tocsin.Message) -> None:
        assert message.payload is None

    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(tocsin.connect(dsn, pool_size=2))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for _ in range(int(consumers)):
            consumer = await stack.enter_async_context(store.consumer(QUEUE))
            nursery.start_soon(consumer.handle, handle)
        await until_idle(store)
        report("ready")
        await trio.sleep_forever()


async def sleep(dsn: str, *queues: str) -> NoReturn:
    """Run a store and a consumer for each of these queues."""

    async def handle(message: tocsin.Message) -> None:
        raise AssertionError("there are no messages")

    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for queue in queues:
            store = await stack.enter_async_context(tocsin.connect(dsn, pool_size=2))
            consumer = await stack.enter_async_context(store.consumer(queue))
            nursery.start_soon(consumer.handle, handle)
            await until_idle(store)
        report("ready")
        await trio.sleep_forever()
