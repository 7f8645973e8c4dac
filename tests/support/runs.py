"""Runs of consumers, each for the length of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio

import tocsin
from tests.support import PATIENCE, Handled, next_event
from tocsin import telemetry
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin.telemetry.events import Subscription


class Run:
    """A run that goes on during the block that `running` or `running_call` opened."""

    def __init__(
        self,
        consumer: tocsin.Consumer,
        handled: Handled,
        settlements: Subscription[telemetry.Settled],
    ) -> None:
        self.handled = handled
        """The handler, and what it got."""
        self._consumer = consumer
        self._settlements = settlements
        self._settled: list[telemetry.Settled] = []
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._suspended: tocsin.Suspended | None = None

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self._ended.is_set()

    @property
    def suspended(self) -> tocsin.Suspended:
        """What the run ended with."""
        assert self._suspended is not None, "the run has not ended with Suspended"
        return self._suspended

    async def wait(self) -> tocsin.Suspended:
        """Wait for the end of the run, and return what it ended with."""
        with trio.fail_after(PATIENCE):
            await self._ended.wait()
        return self.suspended

    def cancel(self) -> None:
        """Cancel the run; it has ended when the block is left."""
        self._scope.cancel()

    async def settled(self, count: int, *outcomes: str) -> None:
        """Wait until the consumer has settled this many messages in the run, with one
        of these outcomes if any is given."""

        def so_far() -> int:
            return sum(len(s.ids) for s in self._settled if not outcomes or s.outcome in outcomes)

        while so_far() < count:
            self._settled.append(
                await next_event(
                    self._settlements, lambda s: s.worker_id == self._consumer.worker_id
                )
            )

    async def go(
        self,
        call: Callable[..., Awaitable[object]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until interrupted or cancelled."""
        try:
            with self._scope:
                await call(task_status=task_status)
        except tocsin.Suspended as suspended:
            self._suspended = suspended
        finally:
            self._ended.set()


@asynccontextmanager
async def running(
    consumer: tocsin.Consumer,
    handler: Callable[[tocsin.Message], Awaitable[object]] | None = None,
    **options: Any,
) -> AsyncIterator[Run]:
    """Run ``consumer.handle`` with an async handler for as long as the block lasts.

    The consumer polls when the block begins. At its end the consumer is interrupted,
    unless it is already, and the run is waited for. What the run raises, other than
    `Suspended`, cancels the block and is raised.
    """
    handled = handler if isinstance(handler, Handled) else Handled(handler)
    call = partial(consumer.handle, handled, **options)
    async with running_call(consumer, call, handled) as run:
        yield run


@asynccontextmanager
async def running_call(
    consumer: tocsin.Consumer,
    call: Callable[..., Awaitable[object]],
    handled: Handled | None = None,
) -> AsyncIterator[Run]:
    """Like `running`, for any call that makes this consumer poll: one with a plain
    function or of ``handle_batches``."""
    events = consumer._parts.process.telemetry.events
    with events.subscribe(telemetry.Settled) as settlements:
        run = Run(consumer, handled or Handled(), settlements)
        async with open_nursery_bare() as nursery:
            await nursery.start(partial(run.go, call))
            yield run
            if not (run.ended or run._scope.cancel_called):
                # refused when the test has interrupted the consumer itself
                with suppress(tocsin.StateTransitionError):
                    await consumer.interrupt()
                await run.wait()
