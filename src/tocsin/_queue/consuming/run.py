"""One run of a consumer: from the moment it polls until it has ended, in whatever way.

A run is one nursery. In it run the task that extends the leases and the one that
enforces an interruption's grace. The process's heartbeat and its LISTEN connection
bring the state of the worker in the registry to `Run.on_worker_status`.

The registry decides, and the run follows: a claim that the database refuses pauses the
run until the heartbeat, which is sent at once, has told why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio

from tocsin._concurrency.grace import Grace
from tocsin._queue.message import Message
from tocsin._queue.process.bell import Waiter

from .calls import Calls, CallScope
from .claims import Claim
from .parts import ConsumerParts
from .settlement import Settler


class Counts:
    """The numbers of messages that a run has settled so far."""

    def __init__(self, settler: Settler, end: _End) -> None:
        self.released = 0
        """The number of messages released by the run's end or the worker's stop."""
        self._end = end
        self._settler = settler
        self._handled_before = settler.handled
        self._failed_before = settler.failed

    @property
    def handled(self) -> int:
        """The number of messages archived, deleted or released by handlers."""
        return self._settler.handled - self._handled_before

    @property
    def failed(self) -> int:
        """The number of messages that have failed or been rejected."""
        return self._settler.failed - self._failed_before

    def add_released(self, count: int) -> None:
        """Count messages that were released, once the run is to end."""
        if self._end.reason is not None:
            self.released += count


@attrs.define
class _End:
    """The end of a run that is to end."""

    reason: str | None = None
    """The reason for it; None while the run is not to end."""
    cancel_at: float = math.inf
    """The time at which handlers still running are cancelled (`trio.current_time`)."""


@attrs.define
class _Polling:
    """The state of the worker in the registry, as far as the run knows."""

    status: str = "polling"
    """The worker's status."""
    paused: bool = False
    """Whether the worker may take no messages at present."""
    must_begin: bool = False
    """Whether the registry says that it does not poll, although it may."""
    stopped: bool = False
    """Whether the worker was stopped for good, and its messages released."""


class Closing:
    """The time for the last settlements of a run, after its handlers have ended.

    It is limited as that of any other cleanup is, since the database may not answer.
    """

    def __init__(self, grace: Grace) -> None:
        self.scope = trio.CancelScope()
        """The scope in which the run settles messages."""
        self._grace = grace

    def limit(self) -> None:
        """Begin that time: the run is to end, and its handlers have ended."""
        if self.scope.deadline == math.inf:
            self.scope.deadline = self._grace.begin()

    def extend(self) -> None:
        """Begin that time again, since the database has answered."""
        if self.scope.deadline < math.inf:
            self._grace.answered()
            self.scope.deadline = self._grace.begin()


class Run:
    """One run of a consumer."""

    def __init__(self, parts: ConsumerParts, waiter: Waiter, nursery: trio.Nursery) -> None:
        self.waiter = waiter
        self.nursery = nursery
        self.calls = Calls(nursery)
        """The calls of handlers that are going on."""
        self.closing = Closing(parts.database.grace)
        self._parts = parts
        self._end = _End()
        self._polling = _Polling()
        self.counts = Counts(parts.settler, self._end)

    @property
    def ended_by(self) -> str | None:
        """The reason for which the run is to end; None while it is not."""
        return self._end.reason

    @property
    def may_claim(self) -> bool:
        """Whether the run may take more messages."""
        return self._end.reason is None and not self._polling.paused

    @property
    def stopped(self) -> bool:
        """Whether the worker was stopped for good, and its messages released."""
        return self._polling.stopped

    @contextmanager
    def calling(self, call: CallScope) -> Iterator[None]:
        """Count this call as going on within the block.

        It is cancelled when the grace of an interruption is over.
        """
        self.calls.add(call)
        try:
            yield
        finally:
            self.calls.discard(call)
            self._limit_closing()
            self.waiter.wake()

    # End

    def end(self, reason: str, grace: float | None = None) -> None:
        """Take no more messages, and end when the handlers have.

        Called again, the first reason and the shortest grace count.

        Args:
            reason: The reason for `Suspended`.
            grace: Seconds after which handlers are cancelled; None: they are not.
        """
        self._end.reason = self._end.reason or reason
        if grace is not None and trio.current_time() + grace < self._end.cancel_at:
            self._end.cancel_at = trio.current_time() + grace
            reason = "the grace period of the interruption has ended"
            self.nursery.start_soon(self.calls.cancel_at, self._end.cancel_at, reason)
        self._limit_closing()
        self.waiter.wake()

    def claim_again(self) -> None:
        """Claim, as if the bell had rung."""
        self.waiter.ring()

    def _limit_closing(self) -> None:
        if self._end.reason is not None and not self.calls:
            self.closing.limit()

    # Changes from the registry

    def pause(self) -> None:
        """Take no more messages until `on_worker_status` says otherwise."""
        self._polling.paused = True
        self._parts.process.request_heartbeat()

    def on_worker_status(self, status: str, grace: float | None) -> None:
        """Follow the worker's state in the registry."""
        polling = self._polling
        before, polling.status = polling.status, status
        match status:
            case "ready":  # resumed, or registered again
                if before != status:  # a suspension may have begun and ended
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
                self.waiter.wake()  # the messages that wait for a handler must be released
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
        """Find out which leases are gone, and cancel the handlers that rely on them."""
        self.nursery.start_soon(self._parts.keeper.refresh)

    @trio.lowlevel.enable_ki_protection
    async def _on_stopped(self) -> None:
        """Cancel the handlers whose messages the worker's stop has released."""
        self.counts.add_released(await self._parts.keeper.refresh(on_purpose=True))

    # Claim

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
