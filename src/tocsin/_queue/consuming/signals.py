"""SIGINT and SIGTERM: the first one drains, a later one cancels.

Python has one handler for each signal, and trio's `trio.open_signal_receiver` gives a
signal to the receiver that was opened last. So the blocks that are open in one trio run
share one handler here.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import trio

from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._concurrency.run_local import RunLocal
from tocsin._durations import Duration, to_seconds
from tocsin.errors import ConnectionLost, StateTransitionError, Suspended

from .consumer import Consumer
from .draining import DrainBlock, current_blocks

logger = logging.getLogger("tocsin.signals")

ONE_SIGNAL_WITHIN = 1.0
"""Seconds in which further signals are the same one.

A process of a group gets it from the terminal or the supervisor, and from its parent.
"""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@asynccontextmanager
async def drain_on_signals(
    *consumers: Consumer, grace: Duration | None = None
) -> AsyncIterator[None]:
    """Interrupt consumers when SIGINT or SIGTERM arrives within the block.

    Their runs end with `Suspended` when their handlers have ended. Several runs end
    together: `Suspended` is raised when the last of them has ended, so it cancels no
    handler of another consumer in the same nursery. A block that would end with a group
    of `Suspended` ends with one, which has their sums. Several blocks may be open at a
    time, in any tasks; a signal is for all of them, and for those that are opened
    before they have ended.

    A second signal, if it comes at least a second after the first, cancels the block at
    once. A signal that comes sooner is taken for the first, which a process group often
    gets twice. At the end of the block the signals mean what they meant before; after a
    signal, when its second is over.

    After a signal no other run begins, and `Consumer.dequeue` raises `Suspended`. A
    loop around the block must not begin again then.

    Args:
        consumers: Default: every consumer of the program.
        grace: Seconds after which handlers still running are cancelled and their
            messages released.

    Raises:
        Suspended: A run has ended; also in the place of `ConnectionLost` or
            `StateTransitionError` after a signal.
        KeyboardInterrupt: A second signal has cancelled the block.
        RuntimeError: This is not the main thread.

    Cancellation:
        Ends the block like any other.
    """
    limit = None if grace is None else to_seconds(grace, "grace", zero=True)
    block: DrainBlock | None = None
    try:
        async with open_nursery_bare() as nursery:
            block = DrainBlock(frozenset(c._state for c in consumers), limit, nursery)
            with _receiver.get().sending_to(block):
                yield
            nursery.cancel_scope.cancel()
    except (Suspended, ConnectionLost, StateTransitionError, BaseExceptionGroup) as error:
        end = _summarize(error, drained=block is not None and block.draining)
        if end is None:
            raise
        if block is not None and block.cancelled:
            raise KeyboardInterrupt from error
        if end is error:
            raise
        raise end from error
    finally:
        if block is not None:
            block.reopen()
    if block.cancelled:
        raise KeyboardInterrupt


def _summarize(error: BaseException, *, drained: bool) -> BaseException | None:
    """Return the error with which a block ends whose consumers ended with this error.

    None stands for the group itself, in which something else went wrong.
    """
    errors = list(_leaves(error))
    ends = [e for e in errors if isinstance(e, Suspended)]
    if len(ends) < len(errors) and not (
        drained
        and all(isinstance(e, (Suspended, ConnectionLost, StateTransitionError)) for e in errors)
    ):
        return None if isinstance(error, BaseExceptionGroup) else error
    if error in ends:
        return error
    reasons = list(dict.fromkeys(e.reason for e in ends)) or ["interrupted"]
    return Suspended(
        "; ".join(reasons),
        handled=sum(e.handled for e in ends),
        failed=sum(e.failed for e in ends),
        released=sum(e.released for e in ends),
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif not isinstance(error, trio.Cancelled):
        yield error


class _Receiver:
    """The handler of signals for all blocks of one trio run.

    It is installed from the first block's beginning to the last one's end. After a
    signal it stays until the signal's second is over, also when the last block ends
    sooner: the same signal may arrive once more, and would end the program in the
    middle of its cleanup. When the trio run ends sooner, the handler for SIGTERM stays
    until the next signal, which it passes on.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._process = os.getpid()
        self._former: dict[int, Any] = {}
        self._acted_at = -math.inf

    @contextmanager
    def sending_to(self, block: DrainBlock) -> Iterator[None]:
        """Send signals to this block, too."""
        blocks = current_blocks()
        self._install()
        if any(b.draining for b in blocks):
            block.drain()
        blocks.append(block)
        try:
            yield
        finally:
            blocks.remove(block)
            if not blocks:
                if self._is_repeated(time.monotonic()):
                    trio.lowlevel.spawn_system_task(self._restore_later)
                else:
                    self._restore()

    def _install(self) -> None:
        for number in _SIGNALS:
            if signal.getsignal(number) != self._catch:
                try:
                    self._former[number] = signal.signal(number, self._catch)
                except ValueError:
                    raise RuntimeError(
                        "drain_on_signals works in the main thread only, where Python handles"
                        " signals"
                    ) from None

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers or _SIGNALS:
            if number in self._former and signal.getsignal(number) == self._catch:
                signal.signal(number, self._former.pop(number))

    async def _restore_later(self) -> None:
        try:
            await trio.sleep(max(0, self._acted_at + ONE_SIGNAL_WITHIN - time.monotonic()))
            if not current_blocks():
                self._restore()
        finally:
            if not current_blocks():
                # The next run of trio has its own handler of the signal.
                self._restore(signal.SIGINT)

    def _is_repeated(self, at: float) -> bool:
        return at < self._acted_at + ONE_SIGNAL_WITHIN

    def _catch(self, number: int, frame: FrameType | None) -> None:
        at = time.monotonic()
        try:
            if os.getpid() == self._process:
                self._token.run_sync_soon(self._arrived, number, at)
                return
        except trio.RunFinishedError:
            if self._is_repeated(at):
                return
        # This process was forked and does not run trio, or trio has ended.
        self._pass_on(number)

    def _arrived(self, number: int, at: float) -> None:
        blocks = current_blocks()
        if self._is_repeated(at):
            logger.info(
                "%s: ignored, because the last signal came less than a second ago",
                signal.Signals(number).name,
            )
        elif not blocks:
            self._pass_on(number)
        elif new := [b for b in blocks if not b.draining]:
            self._acted_at = at
            logger.info(
                "%s: draining; a second signal, at least a second later, cancels",
                signal.Signals(number).name,
            )
            for block in new:
                block.drain()
        else:
            self._acted_at = at
            logger.info("%s: cancelling", signal.Signals(number).name)
            for block in blocks:
                block.cancel()

    def _pass_on(self, number: int) -> None:
        self._restore()
        signal.raise_signal(number)


_receiver = RunLocal("tocsin.signals", _Receiver)
