"""Where the functions of a worker run: in a task, in a thread, or in a process.

The numbers of threads and processes are limited. An attempt begins, and its timeout
with it, when there is a place for it. A thread that a timeout leaves behind holds no
place, since it may never end.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import trio

from tocsin._queue.message import Message

from .elsewhere import Written, run_elsewhere
from .executor import Executor
from .task import Task


class Places:
    """The places for functions of one worker."""

    def __init__(self, threads: int, processes: int, executor: Executor | None) -> None:
        self._executor = executor
        self._limiters = {
            "thread": trio.CapacityLimiter(threads),
            "process": trio.CapacityLimiter(processes),
        }

    def place_for(self, task: Task[..., Any]) -> AbstractAsyncContextManager[object]:
        """Wait for a place for the task's function, and have it in the block."""
        limiter = self._limiters.get(task.options.runs)
        return nullcontext() if limiter is None else limiter

    async def run_elsewhere(
        self, task: Task[..., Any], message: Message, arguments: str, seconds: float | None
    ) -> Written:
        """Run a job's function in another process, and return its result.

        Raises:
            FailedElsewhere: The function has raised.

        Cancellation:
            The process is killed.
        """
        assert self._executor is not None
        return await run_elsewhere(self._executor, task, message, arguments, seconds)
