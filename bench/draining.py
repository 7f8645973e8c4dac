"""Draining a backlog: what all drains have in common, and the role of Tocsin.

Each call of a handler looks at its payload and counts. The clock runs from the first
call of a handler to the moment at which everything that was handled has also been
settled: by Tocsin archived, by the peers whatever keeps a finished message. What has to
be set up before the first call does not count.

A role ends after a number of messages, its *share*, or of seconds, whichever comes
first; in both cases its rate is what it settled by the time that it took. So a slow one
is a sample of its backlog, taken from the front of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Self

import attrs
import trio

import tocsin

from .child import orders, playing_together, say

TENTHS = 10
PATIENCE = 600.0
"""Seconds that a drain may take at most."""


class Tally:
    """The count of the messages that were handled.

    It notes when each tenth of them was (CLOCK_MONOTONIC, ns).
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
        """Note that a number of messages were handled."""
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
        """Tell the benchmark how it went: everything has been settled now.

        A role that waited in vain for the rest of its share ended earlier.
        """
        say(
            "drained",
            self.began,
            time.monotonic_ns() if self.count >= self._share else self.last,
            settled,
            *self.marks,
        )


@attrs.frozen
class Drained:
    """What a drain came to, by one process or several."""

    began: int
    """When the first handler was called (CLOCK_MONOTONIC, ns)."""
    ended: int
    """When everything that was handled had been settled."""
    settled: int
    """How many messages that were."""
    marks: Sequence[int]
    """When each tenth of the share had been handled; of one process."""

    @classmethod
    def read(cls, words: Sequence[str]) -> Self:
        """Read what `Tally.tell` wrote."""
        began, ended, settled, *marks = map(int, words)
        return cls(began, ended, settled, marks)

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.settled / (self.ended - self.began) * 1e9


async def drain(
    role: Callable[..., object],
    dsn: str,
    share: int,
    seconds: float,
    *words: object,
    processes: int = 1,
) -> Drained:
    """Have processes in this role drain a backlog, each its part of the share."""
    async with playing_together(
        role, dsn, *[(share // processes, seconds, *words)] * processes
    ) as children:
        for child in children:
            await child.order("go")
        ends = [Drained.read(await child.hear("drained", PATIENCE)) for child in children]
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

    The role uses ``handle`` when the size of a batch is 0, else ``handle_batches``.
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
        say("ready")
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
            tally.tell(tally.count)  # what was handled is archived before a run ends
