"""Cancel an operation at each of its checkpoints, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Literal

import trio
from trio.lowlevel import Task

When = Literal["blocked", "running"]


class _Cancel(trio.abc.Instrument):
    """Cancels `scope` when `task` has come to its `nth` checkpoint, or is about to run
    on from it."""

    def __init__(self, scope: trio.CancelScope, task: Task, nth: int, when: When) -> None:
        self._scope = scope
        self._task = task
        self._left = nth
        self._when = when

    def before_task_step(self, task: Task) -> None:
        if self._when == "running":
            self._step(task)

    def after_task_step(self, task: Task) -> None:
        if self._when == "blocked":
            self._step(task)

    def _step(self, task: Task) -> None:
        if task is self._task:
            if self._left == 0:
                self._scope.cancel()
            self._left -= 1


async def cancel_sweep(
    operation: Callable[[], Awaitable[object]], check: Callable[[], Awaitable[object]] | None = None
) -> int:
    """Run `operation` again and again, cancelled at its first checkpoint, then at its
    second, and so on.

    Ends with a run that is over before its turn to be cancelled comes. Each checkpoint
    is tried twice: cancelled while the task is blocked in it, and when the task goes on
    from it, so that the next one finds the scope cancelled already. `check` is called
    after every run. Returns how many runs were cut short.
    """
    cut_short = 0
    moments: tuple[When, ...] = ("blocked", "running")
    for when in moments:
        for nth in count(-1):
            with trio.CancelScope() as scope:
                if nth < 0:
                    scope.cancel()
                canceller = _Cancel(scope, trio.lowlevel.current_task(), nth, when)
                trio.lowlevel.add_instrument(canceller)
                try:
                    await operation()
                finally:
                    trio.lowlevel.remove_instrument(canceller)
            cut_short += scope.cancelled_caught
            if check is not None:
                await check()
            if not scope.cancel_called:
                break
    return cut_short
