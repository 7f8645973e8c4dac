"""The time from the SIGKILL of a process to the redelivery of its messages.

The time ends when a handler of another process has received all of them. The leases
last an hour, so their end plays no part. The processes die at any phase of their own
heartbeat and of the other process's heartbeat. The same run measures how long an
advisory lock takes to pass from a killed process to a waiting one, which is the time
that the kernel and the server need to detect the death. Tocsin takes hundreds of times
as long on purpose, because a lost connection does not prove that a process is dead
(``sql/functions/workers/processes.sql``): Tocsin waits for a missed heartbeat. A ratio
of the two times would show only the phase of a heartbeat, so there is none.
"""

from __future__ import annotations

import random
import signal
import time
from typing import NoReturn

import trio

import tocsin
from tocsin.settings import HEARTBEAT

from . import floor
from .child import Child, child_process, report
from .frame import Bench, execute
from .results import Result, percentile

QUEUE = "kill"
MESSAGES = 5
LEASE = 3600.0
TARGET = 5.0
"""Maximum time, in seconds."""


async def measure(bench: Bench) -> list[Result]:
    """Measure the median and the maximum, in seconds."""
    taken, floors = list[float](), list[float]()
    async with bench.bare_database() as bare, bench.store_database(QUEUE) as dsn:
        await _let_deaths_count(dsn)
        for _ in range(bench.pick(10, 1, 1)):
            taken.append(await _kill_consumer(dsn))
            floors.append(await _kill_holder(bare))
    settings = {
        "runs": len(taken),
        "messages": MESSAGES,
        "lease_s": LEASE,
        "lock_p50_s": percentile(floors, 50),
    }
    return [
        Result("kill.p50", percentile(taken, 50), "s", None, settings),
        Result("kill.max", max(taken), "s", None, settings | {"target_value": TARGET}),
    ]


async def _let_deaths_count(dsn: str) -> None:
    """Wait until a process can be declared dead.

    No process is declared dead in the first ten seconds of a server, or in the first
    ten seconds after a database's first heartbeat.
    """
    ((server_up,),) = await execute(
        dsn, b"select extract(epoch from now() - pg_postmaster_start_time())::float8"
    )
    await trio.sleep(max(0.0, 10.5 - server_up))
    await execute(dsn, b"insert into tocsin.uptime (since) values (now() - interval '1 hour')")


async def _kill_consumer(dsn: str) -> float:
    async with child_process(hold, dsn) as victim:
        async with tocsin.connect(dsn) as store:
            for number in range(MESSAGES):
                await store.produce(QUEUE, number)
        for _ in range(MESSAGES):
            await victim.receive("holding")
        async with child_process(rescue, dsn) as rescuer:
            await trio.sleep(random.uniform(0, HEARTBEAT))
            return await _kill(victim, rescuer)


async def _kill_holder(dsn: str) -> float:
    async with (
        child_process(floor.hold_lock, dsn) as victim,
        child_process(floor.wait_for_lock, dsn) as rescuer,
    ):
        await trio.sleep(0.2)  # until its statement waits
        return await _kill(victim, rescuer)


async def _kill(victim: Child, rescuer: Child) -> float:
    began = time.monotonic_ns()
    victim.process.send_signal(signal.SIGKILL)
    taken = (await rescuer.receive_number("handled") - began) / 1e9
    await rescuer.process.wait()  # ends by itself, so that it is not the next dead process
    return taken


async def hold(dsn: str) -> NoReturn:
    """Hold all messages until the process is killed."""

    async def handle(message: tocsin.Message) -> None:
        report("holding")
        await trio.sleep_forever()

    async with tocsin.connect(dsn) as store, store.consumer(QUEUE) as consumer:
        report("ready")
        await consumer.handle(handle, concurrency=MESSAGES, vt=LEASE)


async def rescue(dsn: str) -> None:
    """Handle all messages; report the time of the last one (CLOCK_MONOTONIC, ns)."""
    came: list[int] = []

    async def handle(message: tocsin.Message) -> None:
        came.append(time.monotonic_ns())
        if len(came) == MESSAGES:
            report("handled", came[-1])
            await consumer.interrupt()

    async with tocsin.connect(dsn) as store, store.consumer(QUEUE) as consumer:
        report("ready")
        try:
            await consumer.handle(handle, concurrency=MESSAGES)
        except tocsin.Suspended:
            return
