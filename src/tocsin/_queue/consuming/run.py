"""One run of a consumer: from the moment it polls until it has ended, by whatever way.

A run is one nursery. In it live the task that extends the leases and the one that
enforces an interruption's grace; what the registry says of the worker (the process's
heartbeat and its LISTEN connection bring it) arrives at `Run.on_worker_status`.

The registry is the truth, and this object only its echo: a claim that the database
refuses pauses the run until the heartbeat, sent at once, has told why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio

from tocsin._concurrency.cancelling import cancel
from tocsin._queue.message import Message
from tocsin._queue.process.bell import Waiter
from tocsin.driver._grace import Grace

from .claims import Claim
from .leases import HandlerCall
from .parts import ConsumerParts
from .settlement import Settler


class Counts:
    """How many messages a run has settled so far."""

    def __init__(self, settler: Settler) -> None:
        self.released = 0
        """Messages released because the run is to end, or the worker was stopped."""
        self._settler = settler
        self._handled_before = settler.handled
        self._failed_before = settler.failed

    @property
    def handled(self) -> int:
        """Messages archived, deleted or released by handlers."""
        return self._settler.handled - self._handled_before

    @property
    def failed(self) -> int:
        """Messages that have failed or been rejected."""
        return self._settler.failed - self._failed_before


@attrs.define
class _End:
    """Why and how the run is to end."""

    reason: str | None = None
    cancel_at: float = math.inf
    """When handlers that still run are cancelled (`trio.current_time`)."""


@attrs.define
class _Polling:
    """What the registry says of the worker, as far as the run knows."""

    status: str = "polling"
    paused: bool = False
    """Whether the worker may take no messages at present."""
    must_begin: bool = False
    """Whether the registry says that it does not poll, although it may."""
    stopped: bool = False
    """Whether the worker was stopped for good, and what it held released."""


class Closing:
    """The time for settling what is left when the handlers of a run have ended: that of
    any other cleanup, for the case that the database does not answer."""

    def __init__(self, grace: Grace) -> None:
        self.scope = trio.CancelScope()
        """The scope in which the run settles messages."""
        self._grace = grace

    def limit(self) -> None:
        """The run is to end and its handlers have: begin that time."""
        if self.scope.deadline == math.inf:
            self.scope.deadline = self._grace.begin()

    def extend(self) -> None:
        """The database has answered: begin that time again."""
        if self.scope.deadline < math.inf:
            self._grace.answered()
            self.scope.deadline = self._grace.begin()


class Run:
    """See the module."""

    def __init__(self, parts: ConsumerParts, waiter: Waiter, nursery: trio.Nursery) -> None:
        self.waiter = waiter
        self.nursery = nursery
        self.closing = Closing(parts.database.grace)
        self._parts = parts
        self._calls: set[HandlerCall] = set()
        self._end = _End()
        self._polling = _Polling()
        self.counts = Counts(parts.settler)

    @property
    def ended_by(self) -> str | None:
        """Why the run is to end; None while it is not."""
        return self._end.reason

    @property
    def may_claim(self) -> bool:
        """Whether the run may take more messages."""
        return self._end.reason is None and not self._polling.paused

    @property
    def stopped(self) -> bool:
        """Whether the worker was stopped for good, and what it held released."""
        return self._polling.stopped

    @property
    def calls(self) -> int:
        """How many calls of handlers are going on."""
        return len(self._calls)

    @contextmanager
    def calling(self, call: HandlerCall) -> Iterator[None]:
        """Count this call as going on, for as long as the block lasts. It is cancelled
        when the grace of an interruption is over."""
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)
            self._limit_closing()
            self.waiter.wake()

    # Ending

    def end(self, reason: str, grace: float | None = None) -> None:
        """Take no more messages, and end when the handlers have.

        Called again, the first reason and the shortest grace count.

        Args:
            reason: why, for `Suspended`.
            grace: seconds after which handlers are cancelled; None: they are not.
        """
        self._end.reason = self._end.reason or reason
        if grace is not None and trio.current_time() + grace < self._end.cancel_at:
            self._end.cancel_at = trio.current_time() + grace
            self.nursery.start_soon(self._cancel_calls_at, self._end.cancel_at)
        self._limit_closing()
        self.waiter.wake()

    def count_released(self, count: int) -> None:
        """Count messages that were released; those of a run that goes on are none that
        its end has released."""
        if self._end.reason is not None:
            self.counts.released += count

    def _limit_closing(self) -> None:
        if self._end.reason is not None and not self._calls:
            self.closing.limit()

    @trio.lowlevel.enable_ki_protection
    async def _cancel_calls_at(self, time: float) -> None:
        await trio.sleep_until(time)
        for call in self._calls:
            cancel(call.scope, "the grace of the interruption is over")

    # What the registry says

    def pause(self) -> None:
        """Take no more messages until `on_worker_status` says otherwise."""
        self._polling.paused = True
        self._parts.process.request_heartbeat()

    def on_worker_status(self, status: str, grace: float | None) -> None:
        """Do what the worker's state in the registry asks for."""
        polling = self._polling
        before, polling.status = polling.status, status
        match status:
            case "ready":  # resumed, or registered again
                if before != status:  # a suspension may have come and gone
                    self.on_leases_revoked()
                polling.must_begin = True
                polling.paused = False
                self.waiter.ring()
            case "polling" if polling.paused:
                polling.paused = False
                self.waiter.ring()
            case "interrupted":
                self.end("interrupted", grace)
            case "suspended" if before != status:
                polling.paused = True
                self.waiter.wake()  # what waits for a handler is to be requeued
                self.on_leases_revoked()  # the suspension may have released the messages
            case "stopped":
                self.end("stopped by a command")
                if before != status:
                    polling.stopped = True
                    self.nursery.start_soon(self._on_stopped)
            case "gone":
                self.end("its registration has ended")
                if before != status:  # perhaps with its queue, and all leases
                    self.on_leases_revoked()

    def on_leases_revoked(self) -> None:
        """Find out which leases are gone, and cancel the handlers that relied on them."""
        self.nursery.start_soon(self._parts.keeper.refresh)

    @trio.lowlevel.enable_ki_protection
    async def _on_stopped(self) -> None:
        """Cancel the handlers whose messages were released when the worker was
        stopped."""
        self.count_released(await self._parts.keeper.refresh(on_purpose=True))

    # Claiming

    async def claim(
        self,
        limit: int,
        vt: float | None,
        archive: Sequence[Message] = (),
        *,
        ordered: bool = False,
    ) -> Claim:
        """Claim messages, and archive messages: see `Claimer.claim`."""
        self.waiter.begin_claim()
        polling = self._polling
        try:
            if polling.must_begin:
                await self._parts.claimer.begin_poll()
                polling.must_begin = False
                polling.status = "polling"
            claim = await self._parts.claimer.claim(limit, vt, archive, ordered=ordered)
        except BaseException:
            self.waiter.claim_failed()
            raise
        self.waiter.end_claim(claim.again_at, full=claim.full)
        return claim
