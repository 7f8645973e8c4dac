"""Driving psycopg's protocol generators with trio.

psycopg keeps what to say to the server apart from how to wait for it: its generators
yield `Wait.R`, `Wait.W` or `Wait.RW`, and go on when they are sent what the socket is
ready for. Waiting is all that this module does, and it has two things to get right.

**Not to wait when there is nothing to wait for.** A socket is nearly always writable,
and in pipeline mode and COPY psycopg asks for "writable" at every statement and every
buffer. Going through trio's loop for each of them costs five times what the statement
itself does. So when writing is wanted, one ``poll(2)`` with a timeout of zero comes
first. When only reading is wanted the answer is hardly ever there yet, and the poll
would be wasted.

**Not to starve the other tasks by that.** A task that never waits does not let another
run. A `Turn` says when a connection last did, and a checkpoint is made once that
is `MAX_TURN` ago. It outlives the single call, since COPY consists of thousands of
calls, none of which is long. A call after one that has waited begins a new turn: else
each statement on a connection that was idle would begin with a pass through trio's
loop, and be sent that much later.

Idle means idle: no timer wakes a waiting task (psycopg's own wait functions wake ten
times a second to look for signals; trio delivers those itself).
"""

from __future__ import annotations

import math
import select
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Final

import psycopg
import trio
from psycopg.abc import RV, PQGen
from psycopg.waiting import Ready, Wait

from tocsin._concurrency.nursery import open_nursery_bare

if TYPE_CHECKING:
    from ._watch import Watch

__all__ = ["MAX_TURN", "Turn", "wait"]

MAX_TURN: Final = 0.005
"""How long, in seconds, a task may go on without a checkpoint, while its socket is
always ready."""


class Turn:
    """When a connection last let the other tasks run."""

    def __init__(self) -> None:
        self._began = 0.0
        self._has_waited = True
        self.passes = 0
        """How many times the connection has let the other tasks run."""
        self.since = math.inf
        """Since when the call waits, as a `trio.current_time`; infinity while it does
        not."""
        self.watch: Watch | None = None
        """What is to know of it."""

    async def enter(self) -> None:
        """Record that a call begins."""
        if self._has_waited:
            self._began = perf_counter()
        else:
            await self.share()
        self._has_waited = False

    def waits(self) -> None:
        """Record that the call begins to wait."""
        self.since = now = trio.current_time()
        if (watch := self.watch) is not None and watch.idle:
            watch.wake(now)

    def waited(self) -> None:
        """Record that the call has waited, so that the other tasks could run."""
        self.since = math.inf
        self._began = perf_counter()
        self._has_waited = True
        self.passes += 1

    async def share(self) -> None:
        """Make a checkpoint if the last one is long ago."""
        if perf_counter() - self._began >= MAX_TURN:
            await trio.lowlevel.checkpoint()
            self._began = perf_counter()
            self.passes += 1


async def wait(gen: PQGen[RV], fileno: int, turn: Turn, deadline: float = math.inf) -> RV:
    """Drive ``gen`` to its end, and return what it returns.

    A generator that was driven by an earlier call, which was cancelled, goes on where
    it was.

    Args:
        gen: The generator.
        fileno: The socket that it waits for.
        turn: Says when a checkpoint is due.
        deadline: The time at which the wait ends (`trio.current_time`).

    Raises:
        psycopg.errors._WaitTimeout: The deadline has come; psycopg expects this class.
        psycopg.OperationalError: The socket is closed.
        Exception: What ``gen`` raises.

    Cancellation:
        ``gen`` is suspended where it wanted to wait.
    """
    await turn.enter()
    limited = deadline < math.inf
    try:
        want = next(gen)
        while True:
            ready = 0
            if want & Wait.W or limited:
                await turn.share()
                ready = _ready_now(fileno, want)
            if not ready:
                turn.waits()
                try:
                    ready = await (
                        _ready_by(deadline, fileno, want) if limited else _ready(fileno, want)
                    )
                finally:
                    turn.waited()
            want = gen.send(ready)
    except StopIteration as end:
        result: RV = end.value
        return result


def _ready_now(fileno: int, want: Wait) -> int:
    poll = select.poll()
    poll.register(fileno, (want & Wait.R and select.POLLIN) | (want & Wait.W and select.POLLOUT))
    ready = 0
    for _, event in poll.poll(0):
        # A socket that was closed is ready for nothing, and trio raises the error.
        ready |= (event & select.POLLIN and Ready.R) | (event & select.POLLOUT and Ready.W)
    return ready


async def _ready_by(deadline: float, fileno: int, want: Wait) -> int:
    with trio.CancelScope(deadline=deadline):
        return await _ready(fileno, want)
    raise psycopg.errors._WaitTimeout("wait timeout expired")


async def _ready(fileno: int, want: Wait) -> int:
    try:
        if want == Wait.R:
            await trio.lowlevel.wait_readable(fileno)
            return Ready.R
        if want == Wait.W:
            await trio.lowlevel.wait_writable(fileno)
            return Ready.W
        return await _ready_for_either(fileno)
    except (OSError, trio.ClosedResourceError) as error:
        raise psycopg.OperationalError("connection socket closed") from error


async def _ready_for_either(fileno: int) -> int:
    ready = 0
    closed: Exception | None = None

    @trio.lowlevel.enable_ki_protection
    async def wait_for(wait: Callable[[int], Awaitable[None]], meaning: Ready) -> None:
        nonlocal ready, closed
        try:
            await wait(fileno)
        except (OSError, trio.ClosedResourceError) as error:
            # Both tasks get this error, and raising it twice would make a group.
            closed = error
        else:
            ready |= meaning
        nursery.cancel_scope.cancel()

    async with open_nursery_bare() as nursery:
        nursery.start_soon(wait_for, trio.lowlevel.wait_readable, Ready.R)
        nursery.start_soon(wait_for, trio.lowlevel.wait_writable, Ready.W)
    if closed is not None:
        raise closed
    return ready
