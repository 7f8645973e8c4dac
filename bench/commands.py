"""From a command to a worker of another process, by its id, to its effect there.

Each round: the consumer's handler holds a message. ``suspend(release=True)`` takes it
away: until the handler is cancelled. ``resume`` has the message handled again: until
the handler's first line. ``interrupt(grace=0)`` ends the run: until `tocsin.Suspended`
has been raised. The floor is a command by hand between two blocking processes: a row
and a NOTIFY, and the row is taken out.
"""

from __future__ import annotations

import logging
import time
from typing import NoReturn

import trio

import tocsin

from . import floor
from .child import Child, playing, say
from .frame import Bench
from .results import Result, percentile

QUEUE = "commands"
TARGET = 100.0
"""Milliseconds that a command may take."""


async def measure(bench: Bench) -> list[Result]:
    """Give the median and the maximum for each command, in ms."""
    floors = list[float]()
    taken: dict[str, list[float]] = {"suspend": [], "resume": [], "interrupt": []}
    async with (
        bench.bare_database(floor.TABLE) as bare,
        bench.store_database(QUEUE) as dsn,
        playing(floor.hear_and_claim, bare) as listener,
        playing(floor.send, bare, floor.INSERT_AND_NOTIFY) as sender,
        tocsin.connect(dsn) as store,
        playing(consume, dsn) as child,
    ):
        (worker,) = await store.workers.list(QUEUE)
        handle = await store.workers.get(worker.id)
        await store.produce(QUEUE, None)
        for _ in range(bench.pick(20, 20, 2)):
            await child.hear("handling")
            began = time.monotonic_ns()
            await handle.suspend(release=True)
            taken["suspend"].append(await _until(child, "cancelled", began))
            began = time.monotonic_ns()
            await handle.resume()
            taken["resume"].append(await _until(child, "handling", began))
            began = time.monotonic_ns()
            await handle.interrupt(grace=0)
            await child.hear("cancelled")
            taken["interrupt"].append(await _until(child, "suspended", began))
            await sender.order("go")
            floors.append(float((await listener.hear("handled"))[0]))
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
    return (await child.hear_number(word) - began) / 1e6


async def consume(dsn: str) -> NoReturn:
    """Hold each message until cancelled, and poll again after each interruption.

    Say when what happened (CLOCK_MONOTONIC, ns).
    """

    async def handle(message: tocsin.Message) -> None:
        say("handling", time.monotonic_ns())
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            say("cancelled", time.monotonic_ns())
            raise

    # it would warn of each message that is taken away
    logging.getLogger("tocsin").setLevel(logging.ERROR)
    async with tocsin.connect(dsn) as store, store.consumer(QUEUE) as consumer:
        say("ready")
        while True:
            try:
                await consumer.handle(handle)
            except tocsin.Suspended:
                say("suspended", time.monotonic_ns())
            await consumer.resume()
