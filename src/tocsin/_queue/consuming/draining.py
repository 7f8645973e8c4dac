"""The open blocks of `drain_on_signals` in this trio run, and the trio run's consumers.

Several consumers of one program drain at different speeds. The first that is at its end
would raise `Suspended` into a nursery that has the other ones in it, and their handlers
would be cancelled in the middle of their messages. After a signal, each consumer waits
until the runs of the others have ended and their manually dequeued messages are settled
or expired. A run inside a handler of another run does not wait for that one, and no
task waits for messages that it dequeued itself.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator

import attrs
import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.run_local import RunLocal
from tocsin._database.error_mapping import TRANSIENT
from tocsin.errors import TocsinError

from .consumer_state import ConsumerState

logger = logging.getLogger("tocsin.signals")


class DrainBlock:
    """One open block of `drain_on_signals`."""

    def __init__(
        self, consumers: frozenset[ConsumerState], grace: float | None, nursery: trio.Nursery
    ) -> None:
        self.draining = False
        """Whether a signal has arrived."""
        self.cancelled = False
        """Whether a second signal has cancelled it."""
        self._consumers = consumers
        self._grace = grace
        self._nursery = nursery

    def drain(self) -> None:
        """Let its consumers take no more messages, and end their runs.

        A block that names no consumers has all of the trio run.
        """
        self.draining = True
        for consumer in list(self._consumers or _state.get().consumers):
            self._close(consumer)

    def admit(self, consumer: ConsumerState) -> None:
        """Record a consumer that was opened, perhaps after the signal."""
        if self.draining and not self._consumers:
            self._close(consumer)

    def cancel(self) -> None:
        """Cancel the block."""
        self.cancelled = True
        cancel(self._nursery.cancel_scope, "a second signal has arrived")

    def reopen(self) -> None:
        """End the effect of `drain`."""
        for consumer in list(_state.get().consumers):
            consumer.reopen(self)

    def _close(self, consumer: ConsumerState) -> None:
        # The call does not depend on the registry: the worker may be suspended, or the
        # database unreachable.
        consumer.close(self, self._grace)
        self._nursery.start_soon(_interrupt, consumer, self._grace)


@trio.lowlevel.enable_ki_protection
async def _interrupt(consumer: ConsumerState, grace: float | None) -> None:
    retries = OutageRetry("interrupting", logger)
    while True:
        try:
            await consumer.interrupt(grace)
        except TRANSIENT as lost:
            await retries.pause_after(lost)
            continue
        except (
            TocsinError
        ) as refused:  # the worker is suspended, or the worker or its store is closed
            logger.info("interrupted without a change in the registry: %s", refused)
        return


@attrs.define
class _State:
    consumers: weakref.WeakSet[ConsumerState] = attrs.Factory(weakref.WeakSet)
    blocks: list[DrainBlock] = attrs.Factory(list)


_state = RunLocal("tocsin.draining", _State)


def current_blocks() -> list[DrainBlock]:
    """Return the list that holds the blocks open in this trio run."""
    return _state.get().blocks


def add_consumer(consumer: ConsumerState) -> None:
    """Record a consumer of this trio run."""
    state = _state.get()
    state.consumers.add(consumer)
    for block in state.blocks:
        block.admit(consumer)


def remove_consumer(consumer: ConsumerState) -> None:
    """Record that a consumer is at its end."""
    _state.get().consumers.discard(consumer)


async def wait_for_others(consumer: ConsumerState) -> None:
    """Wait until every other consumer that a signal ends is at its end, too.

    When the last one is there, all return without another checkpoint. So each raises
    its own `Suspended`, and the first one cancels none.

    Cancellation:
        Changes nothing.
    """
    if not consumer.closed:
        await trio.lowlevel.checkpoint()
        return
    task = trio.lowlevel.current_task()
    with consumer.leaving():
        while busy := [
            c
            for c in _state.get().consumers
            if c is not consumer and c.closed and not c.is_idle(task) and not _is_inside(c)
        ]:
            await busy[0].wait_idle(task)


def _is_inside(consumer: ConsumerState) -> bool:
    """Return whether the current task is a part of this consumer's run."""
    return consumer.run is not None and consumer.run.nursery in _enclosing_nurseries()


def _enclosing_nurseries() -> Iterator[trio.Nursery]:
    task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    inner: trio.Nursery | None = None
    while task is not None:
        nurseries = task.child_nurseries
        yield from nurseries if inner is None else nurseries[: nurseries.index(inner) + 1]
        inner = task.parent_nursery
        task = inner.parent_task if inner is not None else None
