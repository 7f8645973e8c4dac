"""The cost of a process with ten idle consumers on ten queues.

The scenario counts the connections of the process, the statements that it runs, its CPU
time, and the wake-ups of its event loop, while no message arrives. The floor is a
blocking process that LISTENs on ten channels and updates one row as often as Tocsin
sends a heartbeat. It is idle at the same time, in another database.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import trio

import tocsin

from . import floor
from .child import child_process, orders, report, until_idle
from .frame import Bench, execute
from .results import Result

CONNECTIONS = 2
"""The minimum of the pool, and the LISTEN connection."""


async def measure(bench: Bench) -> list[Result]:
    """Measure connections, statements, CPU seconds and wake-ups."""
    seconds = bench.pick(30.0, 3.0, 3.0)
    queues = [f"idle-{number}" for number in range(floor.QUEUES)]
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        watch = await enter(bench.bare_database(b"create extension pg_stat_statements"))
        dsn, bare = await enter(bench.store_database(*queues)), await enter(bench.bare_database())
        subject = await enter(child_process(consume, dsn, *queues))
        floor_child = await enter(child_process(floor.listen_and_beat, bare))
        ((database,),) = await execute(
            dsn, b"select oid from pg_database where datname = current_database()"
        )
        before = await _statements(watch, database)
        for child in (subject, floor_child):
            await child.order("count")
        await trio.sleep(seconds)
        for child in (subject, floor_child):
            await child.order("stop")
        cpu, wakeups = map(float, await subject.receive("counted"))
        floor_cpu, floor_statements, floor_wakeups = map(
            float, await floor_child.receive("counted")
        )
        after = await _statements(watch, database)
        ((connections,),) = await execute(
            watch,
            b"select count(*) from pg_stat_activity where datid = %s and backend_type = 'client"
            b" backend'",
            database,
        )
    ran = {
        query: calls - before.get(query, 0)
        for query, calls in after.items()
        if calls > before.get(query, 0)
    }
    beats = sum(calls for query, calls in ran.items() if ".heartbeat(" in query)
    settings = {"seconds": seconds, "consumers": len(queues)}
    return [
        Result("idle.connections", connections, "", CONNECTIONS, settings | {"target_ratio": 1}),
        Result("idle.heartbeats", beats, "", floor_statements, settings | {"target_ratio": 1.25}),
        Result(
            "idle.other_statements",
            sum(ran.values()) - beats,
            "",
            None,
            settings | {"target_value": 0, "ran": ran},
        ),
        # One or two heartbeats are too few for a comparison.
        Result("idle.cpu", cpu * 1e3, "ms", bench.pick(floor_cpu * 1e3, None, None), settings),
        Result("idle.wakeups", wakeups, "", floor_wakeups, settings),
    ]


async def _statements(watch: str, database: int) -> dict[str, int]:
    return dict(
        await execute(
            watch,
            b"select query, sum(calls)::bigint from pg_stat_statements where dbid = %s and toplevel"
            b" group by 1",
            database,
        )
    )


class _Wakeups(trio.abc.Instrument):
    count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


async def consume(dsn: str, *queues: str) -> None:
    """Consume all of these queues, and count between one order and the next.

    Then report the seconds of CPU and the wake-ups of the event loop.
    """

    async def handle(message: tocsin.Message) -> None:
        raise AssertionError("there are no messages")

    async with AsyncExitStack() as stack:
        incoming = await stack.enter_async_context(orders())
        store = await stack.enter_async_context(tocsin.connect(dsn))
        nursery = await stack.enter_async_context(trio.open_nursery())
        # One after the other, so that the pool opens no surplus connections, which it
        # would keep for ten seconds.
        for queue in queues:
            consumer = await stack.enter_async_context(store.consumer(queue))
            nursery.start_soon(consumer.handle, handle)
            await until_idle(store)
        report("ready")
        await incoming.next()
        wakeups = _Wakeups()
        trio.lowlevel.add_instrument(wakeups)
        began = time.process_time()
        await incoming.next()
        report(
            "counted", time.process_time() - began, wakeups.count - 1
        )  # the order itself was one
        await trio.sleep_forever()
