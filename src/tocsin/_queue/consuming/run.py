"""One run of a consumer: from the moment it polls until it has ended, by whatever way.

A run is one nursery. In it live the task that keeps the leases alive, the handlers, and
the one that enforces an interruption's grace; what the registry says of the worker (the
process's heartbeat and its LISTEN connection bring it) arrives at `Run.noticed`. The
nursery's end is the end of all of them, and after it one statement gives back what was
not settled and tells the registry.

The registry is the truth, and this object only its echo: a claim that the database
refuses pauses the run until the heartbeat, sent at once, has told why.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import psycopg
import trio

from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._queue.message import Message
from tocsin._queue.process.bell import Waiter
from tocsin.errors import StateTransitionError, Suspended, TocsinError

from .draining import wait_for_others
from .intake import Claim, Intake
from .leases import HandlerCall

logger = logging.getLogger("tocsin.consumer")


class Run:
    """See the module."""

    def __init__(self, intake: Intake, waiter: Waiter, nursery: trio.Nursery) -> None:
        self.intake = intake
        self.waiter = waiter
        self.nursery = nursery
        self.units: set[HandlerCall] = set()
        """What handlers are working on."""
        self.ended_by: str | None = None
        """Why the run is to end; None while it is not."""
        self.flush: Callable[[], Awaitable[None]] | None = None
        """What is still to be settled when the handlers have ended."""
        self.requeued = 0
        """Messages that were given back because the run is to end, or by who stopped
        the worker."""
        self.stopped = False
        """Whether the worker was stopped for good, and what it held given back."""
        self.closing = trio.CancelScope()
        """What goes on until the run's end, where that is not the run's block: it is
        cut off when the database does not answer."""
        self._cancel_at = math.inf
        self._paused = False
        self._to_poll = False
        self._status = "polling"
        self._handled_before = intake.handled
        self._failed_before = intake.failed

    @property
    def handled(self) -> int:
        """Messages archived, deleted or released so far."""
        return self.intake.handled - self._handled_before

    @property
    def failed(self) -> int:
        """Messages that have failed or been rejected so far."""
        return self.intake.failed - self._failed_before

    @property
    def may_claim(self) -> bool:
        """Whether the run may take more messages."""
        return self.ended_by is None and not self._paused

    def end(self, reason: str, grace: float | None = None) -> None:
        """Take no more messages, and end when the handlers have; after ``grace``
        seconds, if given, they are cancelled.

        Asked again, the first reason and the shortest grace count.
        """
        self.ended_by = self.ended_by or reason
        if grace is not None and trio.current_time() + grace < self._cancel_at:
            self._cancel_at = trio.current_time() + grace
            self.nursery.start_soon(self._cancel_units_at, self._cancel_at)
        self.limit_lock_wait()
        self.waiter.wake()

    def limit_lock_wait(self) -> None:
        """When the run is to end and its handlers have, let what is left to be settled
        take no longer than any other cleanup."""
        if self.ended_by is not None and not self.units and self.closing.deadline == math.inf:
            self.closing.deadline = self.intake.grace.begin()

    def limit_lock_waits_again(self) -> None:
        """The database has answered: what is left to be settled has all of that time
        once more."""
        if self.closing.deadline < math.inf:
            self.intake.grace.answered()
            self.closing.deadline = self.intake.grace.begin()

    def pause(self) -> None:
        """Take no more messages until `noticed` says otherwise."""
        self._paused = True
        self.intake.process.request_heartbeat()

    def on_worker_status(self, status: str, grace: float | None) -> None:
        """Do what the worker's state in the registry asks for."""
        before, self._status = self._status, status
        match status:
            case "ready":  # resumed, or registered anew
                if before != status:  # the suspension may have come and gone between two looks
                    self.nursery.start_soon(self.intake.leases.refresh)
                self._to_poll = True
                self._paused = False
                self.waiter.ring()
            case "polling" if self._paused:
                self._paused = False
                self.waiter.ring()
            case "interrupted":
                self.end("interrupted", grace)
            case "suspended" if before != status:
                self._paused = True
                self.waiter.wake()  # what waits for a handler is to be given back
                # It may have been suspended with its messages released; the database
                # knows.
                self.nursery.start_soon(self.intake.leases.refresh)
            case "stopped":
                self.end("stopped by a command")
                if before != status:
                    self.stopped = True
                    self.nursery.start_soon(self._let_go)
            case "gone":
                self.end("its registration has ended")
                if before != status:  # perhaps with its queue, and all leases
                    self.nursery.start_soon(self.intake.leases.refresh)

    def on_leases_revoked(self) -> None:
        """Find out which leases are gone, and cancel the handlers that relied on them."""
        self.nursery.start_soon(self.intake.leases.refresh)

    async def claim(
        self,
        limit: int,
        vt: float | None,
        archive: Sequence[Message] = (),
        *,
        ordered: bool = False,
    ) -> Claim:
        """Claim messages, whose leases are kept from then on, and archive others: see
        `Intake.claim`."""
        self.waiter.begin_claim()
        try:
            if self._to_poll:  # the registry says of this worker that it does not poll any more
                await self.intake.begin_poll()
                self._to_poll = False
                self._status = "polling"
            claim = await self.intake.claim(limit, vt, archive, ordered=ordered)
        except BaseException:
            self.waiter.claim_failed()
            raise
        self.waiter.end_claim(claim.again_at, full=claim.full)
        return claim

    @trio.lowlevel.enable_ki_protection
    async def _let_go(self) -> None:
        """Cancel the handlers whose messages were given back when the worker was
        stopped."""
        requeued = await self.intake.leases.refresh(on_purpose=True)
        self.requeued += requeued

    @trio.lowlevel.enable_ki_protection
    async def _cancel_units_at(self, time: float) -> None:
        await trio.sleep_until(time)
        for unit in self.units:
            unit.scope.cancel()


async def _begin(intake: Intake) -> bool:
    """Have the registry say that the consumer polls; return whether it may."""
    await trio.lowlevel.checkpoint()
    try:
        if not intake.closed:
            await intake.begin_poll()
    except StateTransitionError as refused:
        if refused.from_ != "interrupted" and not intake.closed:
            raise
        return False
    return not intake.closed  # it may have been closed meanwhile


@asynccontextmanager
async def open_run(
    intake: Intake, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> AsyncIterator[Run]:
    """Make the consumer poll for as long as the block lasts. Raises `Suspended` at its
    end if the run was ended from outside."""
    if intake.running:
        raise RuntimeError(
            f"consumer {intake.name!r} is running already; open another consumer for a second run"
        )
    intake.running = True
    run: Run | None = None
    ended_by: str | None = None
    handled = failed = released = 0
    try:
        if not await _begin(intake):
            ended_by = "interrupted before it began"
        else:
            with intake.bell.waiter(intake.queue_id) as waiter:
                async with open_nursery_bare() as nursery:
                    run = intake.run = Run(intake, waiter, nursery)
                    nursery.start_soon(intake.leases.keep)
                    waiter.ring()
                    task_status.started()
                    try:
                        yield run
                    finally:
                        # before the nursery closes: what the registry says may start a
                        # task in it
                        intake.run = None
                        nursery.cancel_scope.cancel()
    finally:
        if run is not None:
            with intake.grace.scope():
                try:
                    if run.flush is not None:
                        await run.flush()
                    await intake.leases.look_at_promised()
                except (TocsinError, psycopg.Error) as error:
                    logger.warning(
                        "messages handled by worker %r will be delivered again: %s",
                        intake.name,
                        error,
                    )
        with intake.grace.scope() as patience:
            try:
                released = await intake.complete_poll()
            except (TocsinError, psycopg.Error) as error:
                logger.warning(
                    "what worker %r holds will be delivered again when its leases end: %s",
                    intake.name,
                    error,
                )
        if patience.cancelled_caught:
            logger.warning(
                "what worker %r holds will be delivered again when its leases end: no answer",
                intake.name,
            )
        intake.running = False
        intake.leases.wake_waiters()
    if run is not None:
        ended_by, handled, failed, released = (
            run.ended_by,
            run.handled,
            run.failed,
            released + run.requeued,
        )
    if ended_by is not None:
        await wait_for_others(intake)
        raise Suspended(ended_by, handled=handled, failed=failed, released=released)
