"""The time from one process's enqueue statement to another process's handler.

Both sides are here. The sender is a process of its own (``python -m
tocsin._demo.wakeup``, with the DSN in ``TOCSIN_DSN``, where no list of processes shows
it): a sender in the same event loop could not be told from a function call. It pauses
between messages, so that each one finds an idle consumer that has to be woken.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

import attrs
import trio

from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._connect import connect
from tocsin._queue.message import Message
from tocsin._store import Store
from tocsin.errors import Suspended, TocsinError

from .tables import QUEUE_SCHEMA

QUEUE = "wake-up"
MESSAGES = 100
_PAUSE = 0.01


@attrs.frozen
class Wakeup:
    """Milliseconds from sending the enqueue statement to the handler's first line."""

    messages: int
    """How many messages were measured."""
    p50: float
    """Half of them took at most this long."""
    p99: float
    """All but one in a hundred took at most this long."""
    enqueue_p50: float
    """How long the enqueue statement itself took in half of the cases, at most; most of
    it is the commit."""


async def measure(store: Store, dsn: str, delays: list[float]) -> Wakeup:
    """Have another process send messages one by one, and time them.

    Args:
        store: Where the messages are received.
        dsn: The database that the other process connects to.
        delays: Gets each time, in milliseconds, as it comes.

    Raises:
        TocsinError: The other process failed.

    Cancellation:
        The other process is killed.
    """

    async def handle(message: Message) -> None:
        delays.append((time.monotonic_ns() - message.payload["sent"]) / 1e6)
        if len(delays) == MESSAGES:
            await consumer.interrupt()

    await store.queues.ensure(QUEUE)
    sender: list[float] = []
    async with store.consumer(QUEUE, name="stopwatch") as consumer, open_nursery_bare() as nursery:
        nursery.start_soon(_run_sender, dsn, sender)
        with suppress(Suspended):
            await consumer.handle(handle)
    return Wakeup(
        len(delays),
        p50=_percentile(delays, 50),
        p99=_percentile(delays, 99),
        enqueue_p50=_percentile(sender, 50),
    )


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


async def _run_sender(dsn: str, durations: list[float]) -> None:
    # The process has a session of its own. The demo handles Ctrl-C, and cancels this
    # process.
    ended = await trio.run_process(
        [sys.executable, "-m", __name__],
        env=os.environ | {"TOCSIN_DSN": dsn},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        start_new_session=True,
    )
    if ended.returncode != 0:
        lines = ended.stderr.decode(errors="replace").splitlines()
        raise TocsinError(
            f"the sending process ended with status {ended.returncode}:"
            f" {lines[-1] if lines else 'it said nothing'}"
        )
    durations += map(float, ended.stdout.split())


async def _send(dsn: str) -> None:
    async with connect(dsn, schema=QUEUE_SCHEMA) as store, store.producer(QUEUE) as producer:
        for _ in range(MESSAGES):
            await trio.sleep(_PAUSE)
            began = time.monotonic_ns()
            await producer.enqueue({"sent": began})
            sys.stdout.write(f"{(time.monotonic_ns() - began) / 1e6}\n")


if __name__ == "__main__":
    trio.run(_send, os.environ["TOCSIN_DSN"])
