"""What a signal ends: the open blocks of `drain_on_signals` in this trio run, and its
consumers.

Several consumers of one program drain at different speeds. The first that is at its end
would raise `Suspended` into a nursery that has the others in it, and their handlers
would be cancelled in the middle of their messages. So a consumer that a signal has
ended waits there for the other consumers that a signal has ended: a run until their
runs are over, and until what they dequeued by hand is settled or expired. A run inside
of a handler of another run does not wait for that one.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs
import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._database.error_mapping import TRANSIENT
from tocsin.errors import TocsinError

if TYPE_CHECKING:
    from .intake import Intake

logger = logging.getLogger("tocsin.signals")


class Block:
    """One open block of `drain_on_signals`."""

    def __init__(
        self, intakes: frozenset[Intake], grace: float | None, nursery: trio.Nursery
    ) -> None:
        self.draining = False
        """Whether a signal has arrived."""
        self.cancelled = False
        """Whether a second signal has cancelled it."""
        self._intakes = intakes
        self._grace = grace
        self._nursery = nursery

    def drain(self) -> None:
        """Let its consumers take no more messages, and end their runs. Those are all of
        the trio run where none is named."""
        self.draining = True
        for intake in list(self._intakes or _state().intakes):
            self._close(intake)

    def admit(self, intake: Intake) -> None:
        """Note a consumer that was opened in this trio run: perhaps after the signal."""
        if self.draining and not self._intakes:
            self._close(intake)

    def cancel(self) -> None:
        """Cancel all of the block."""
        self.cancelled = True
        self._nursery.cancel_scope.cancel()

    def reopen(self) -> None:
        """End what `drain` began."""
        for intake in list(_state().intakes):
            intake.reopen(self)

    def _close(self, intake: Intake) -> None:
        # whatever the registry says to it: the worker may be suspended, or the database
        # away
        intake.close(self, self._grace)
        self._nursery.start_soon(_interrupt, intake, self._grace)


@trio.lowlevel.enable_ki_protection
async def _interrupt(intake: Intake, grace: float | None) -> None:
    retries = OutageRetry("interrupting", logger)
    while True:
        try:
            await intake.interrupt(grace)
        except TRANSIENT as lost:
            await trio.sleep(retries.failed(lost))
            continue
        except TocsinError as refused:  # it is suspended, or at its end, perhaps with its store
            logger.info("interrupted without a change in the registry: %s", refused)
        return


@attrs.define
class _State:
    intakes: weakref.WeakSet[Intake] = attrs.Factory(weakref.WeakSet)
    blocks: list[Block] = attrs.Factory(list)


_run_state: trio.lowlevel.RunVar[_State] = trio.lowlevel.RunVar("tocsin.draining")


def _state() -> _State:
    try:
        return _run_state.get()
    except LookupError:
        _run_state.set(state := _State())
        return state


def open_blocks() -> list[Block]:
    """Return the blocks that are open in this trio run."""
    return _state().blocks


def note(intake: Intake) -> None:
    """Note a consumer of this trio run."""
    state = _state()
    state.intakes.add(intake)
    for block in state.blocks:
        block.admit(intake)


def forget(intake: Intake) -> None:
    """Note that a consumer is at its end."""
    _state().intakes.discard(intake)


async def wait_for_others(intake: Intake) -> None:
    """Return when every other consumer that a signal ends is at its end, too.
    Cancellation changes nothing.

    When the last one is there, all return without another checkpoint. So each raises
    its own `Suspended`, and the first one cancels none.
    """
    if not intake.closed:
        await trio.lowlevel.checkpoint()
        return
    with intake.leaving():
        while busy := [
            i
            for i in _state().intakes
            if i is not intake and i.closed and not i.idle and not _is_inside(i)
        ]:
            await busy[0].wait_idle()


def _is_inside(intake: Intake) -> bool:
    """Whether the current task is a part of this consumer's run."""
    return intake.run is not None and intake.run.nursery in _enclosing_nurseries()


def _enclosing_nurseries() -> Iterator[trio.Nursery]:
    task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    inner: trio.Nursery | None = None
    while task is not None:
        nurseries = task.child_nurseries
        yield from nurseries if inner is None else nurseries[: nurseries.index(inner) + 1]
        inner = task.parent_nursery
        task = inner.parent_task if inner is not None else None
