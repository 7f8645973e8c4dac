"""Drain a backlog: the common part of all drains, and the drain by Tocsin.

Each call of a handler reads its payload and counts it. The clock runs from the first
call of a handler until all handled messages are settled: archived by Tocsin, and kept
as finished by a peer. Setup before the first call does not count.

A process ends after a number of messages, its *share*, or after a number of seconds. In
both cases its rate is the number of settled messages divided by the time. So a slow
process drains only the front of its backlog.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Self

import attrs
import trio

import tocsin

from .child import child_processes, orders, report

TENTHS = 10
PATIENCE = 600.0
"""Maximum number of seconds of a drain."""


class Tally:
    """Count the handled messages.

    It records the time of each tenth of them (CLOCK_MONOTONIC, ns).
    """

    def __init__(self, share: int, when_full: Callable[[], object] | None = None) -> None:
        self.count = 0
        self.began = 0
        self.last = 0
        self.marks: list[int] = []
        self._share = share
        self._next = 1
        self._when_full = when_full

    def add(self, count: int = 1) -> None:
        """Add a number of handled messages."""
        self.count += count
        self.last = time.monotonic_ns()
        if self.count >= self._next:
            self._mark()

    def _mark(self) -> None:
        if not self.began:
            self.began = time.monotonic_ns()
        else:
            self.marks.append(time.monotonic_ns())
        self._next = max(self.count + 1, self._share * (len(self.marks) + 1) // TENTHS)
        if self.count >= self._share and self._when_full is not None:
            self._when_full()

    def tell(self, settled: int) -> None:
        """Report the result to the benchmark; all handled messages are settled now.

        If the share was not reached, the reported end is the time of the last message.
        """
        report(
            "drained",
            self.began,
            time.monotonic_ns() if self.count >= self._share else self.last,
            settled,
            *self.marks,
        )


@attrs.frozen
class Drained:
    """The result of a drain by one or several processes."""

    began: int
    """Time of the first call of a handler (CLOCK_MONOTONIC, ns)."""
    ended: int
    """Time at which all handled messages were settled."""
    settled: int
    """Number of settled messages."""
    marks: Sequence[int]
    """Time at which each tenth of the share was handled; for one process."""

    @classmethod
    def read(cls, words: Sequence[str]) -> Self:
        """Read the result that `Tally.tell` wrote."""
        began, ended, settled, *marks = map(int, words)
        return cls(began, ended, settled, marks)

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.settled / (self.ended - self.began) * 1e9


async def drain(
    function: Callable[..., object],
    dsn: str,
    share: int,
    seconds: float,
    *words: object,
    processes: int = 1,
) -> Drained:
    """Drain a backlog with processes that run this function.

    Each process has its part of the share.
    """
    async with child_processes(
        function, dsn, *[(share // processes, seconds, *words)] * processes
    ) as children:
        for child in children:
            await child.order("go")
        ends = [Drained.read(await child.receive("drained", PATIENCE)) for child in children]
    return Drained(
        min(e.began for e in ends),
        max(e.ended for e in ends),
        sum(e.settled for e in ends),
        ends[0].marks,
    )


async def handle(
    dsn: str, share: str, seconds: str, queue: str, concurrency: str, size: str
) -> None:
    """Drain with Tocsin.

    The process uses ``handle`` if the batch size is 0, otherwise ``handle_batches``.
    """
    full = trio.Event()
    tally = Tally(int(share), full.set)

    async def one(message: tocsin.Message) -> None:
        assert message.payload is not None
        tally.add()

    async def batch(messages: list[tocsin.Message]) -> None:
        assert all(m.payload is not None for m in messages)
        tally.add(len(messages))

    async with (
        orders() as incoming,
        tocsin.connect(dsn) as store,
        store.consumer(queue) as consumer,
        trio.open_nursery() as nursery,
    ):
        report("ready")
        await incoming.next()

        async def end() -> None:
            with trio.move_on_after(float(seconds)):
                await full.wait()
            await consumer.interrupt()

        nursery.start_soon(end)
        try:
            if int(size):
                await consumer.handle_batches(batch, size=int(size), concurrency=int(concurrency))
            else:
                await consumer.handle(one, concurrency=int(concurrency))
        except tocsin.Suspended:
            tally.tell(tally.count)  # a run archives all handled messages before it ends
