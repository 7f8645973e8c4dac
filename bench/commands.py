"""The time from a command to a worker of another process to its effect there.

Each round begins with a handler that holds a message. The round measures three
commands. ``suspend(release=True)`` takes the message away: the time ends when the
handler is cancelled. ``resume`` lets the consumer handle the message again: the time
ends at the handler's first line. ``interrupt(grace=0)`` ends the run: the time ends
when `tocsin.Suspended` is raised. The floor is a command between two blocking
processes: one inserts a row and notifies, and the other deletes the row.
"""

from __future__ import annotations

import logging
import time
from typing import NoReturn

import trio

import tocsin

from . import floor
from .child import Child, child_process, report
from .frame import Bench
from .results import Result, percentile

QUEUE = "commands"
TARGET = 100.0
"""Maximum time of a command, in milliseconds."""


async def measure(bench: Bench) -> list[Result]:
    """Measure the median and the maximum time of each command, in ms."""
    floors = list[float]()
    taken: dict[str, list[float]] = {"suspend": [], "resume": [], "interrupt": []}
    async with (
        bench.bare_database(floor.TABLE) as bare,
        bench.store_database(QUEUE) as dsn,
        child_process(floor.receive_and_claim, bare) as listener,
        child_process(floor.send, bare, floor.INSERT_AND_NOTIFY) as sender,
        tocsin.connect(dsn) as store,
        child_process(consume, dsn) as child,
    ):
        (worker,) = await store.workers.list(QUEUE)
        handle = await store.workers.get(worker.id)
        await store.produce(QUEUE, None)
        for _ in range(bench.pick(20, 20, 2)):
            await child.receive("handling")
            began = time.monotonic_ns()
            await handle.suspend(release=True)
            taken["suspend"].append(await _until(child, "cancelled", began))
            began = time.monotonic_ns()
            await handle.resume()
            taken["resume"].append(await _until(child, "handling", began))
            began = time.monotonic_ns()
            await handle.interrupt(grace=0)
            await child.receive("cancelled")
            taken["interrupt"].append(await _until(child, "suspended", began))
            await sender.order("go")
            floors.append(float((await listener.receive("handled"))[0]))
    settings = {"rounds": len(floors), "target_value": TARGET}
    results = []
    for command, times in taken.items():
        results.append(
            Result(
                f"commands.{command}.p50",
                percentile(times, 50),
                "ms",
                percentile(floors, 50),
                settings,
            )
        )
        results.append(Result(f"commands.{command}.max", max(times), "ms", None, settings))
    return results


async def _until(child: Child, word: str, began: int) -> float:
    return (await child.receive_number(word) - began) / 1e6


async def consume(dsn: str) -> NoReturn:
    """Hold each message until cancelled, and start a new run after each interruption.

    Report the time of each event (CLOCK_MONOTONIC, ns).
    """

    async def handle(message: tocsin.Message) -> None:
        report("handling", time.monotonic_ns())
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            report("cancelled", time.monotonic_ns())
            raise

    # Tocsin would log a warning for each message that is taken away.
    logging.getLogger("tocsin").setLevel(logging.ERROR)
    async with tocsin.connect(dsn) as store, store.consumer(QUEUE) as consumer:
        report("ready")
        while True:
            try:
                await consumer.handle(handle)
            except tocsin.Suspended:
                report("suspended", time.monotonic_ns())
            await consumer.resume()
